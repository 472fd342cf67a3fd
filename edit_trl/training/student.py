"""The student of a run: its tokenizer and chat template, settled before its weights are loaded, and the weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

from edit_trl.common.errors import InputError
from edit_trl.models.chat_templates import check_template, share_template
from edit_trl.models.loading import check_student, load_processor, load_tokenizer, load_trainable
from edit_trl.training.config import DualCoTConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig


def settle_processing(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model: str | PreTrainedModel,
    args: DualCoTConfig,
) -> PreTrainedTokenizerBase | ProcessorMixin:
    """Return the tokenizer or processor of a student, with the chat template and the pad token of its training.

    Args:
        processing_class: As it was given; the model's own is loaded where None.
        model: A path or Hub id, which is checked, or a model.
        args: The options of the training.

    Raises:
        InputError: The student, its tokenizer or the chat template cannot be used.
    """
    revision = (args.model_init_kwargs or {}).get("revision")
    if isinstance(model, str):
        check_student(model, revision=revision, trust_remote_code=args.trust_remote_code)
    if processing_class is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        processing_class = load_processor(name, revision=revision, trust_remote_code=args.trust_remote_code)
    path = args.chat_template_path
    if brings_tokens(path):
        if load_tokenizer(path, option="chat_template_path").chat_template is None:
            raise InputError(f"`chat_template_path: {path}`: its tokenizer has no chat template")
    elif path is not None:
        processing_class.chat_template = Path(path).read_text(encoding="utf-8")
    tokenizer = share_template(processing_class)
    check_template(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = args.pad_token or args.eos_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(
            f"the tokenizer ({tokenizer.name_or_path}) has neither a pad token nor an EOS token; set `eos_token`"
        )
    return processing_class


def brings_tokens(chat_template_path: str | None) -> bool:
    """Whether a chat template is that of a tokenizer, whose tokens TRL adds to the student, and no file."""
    is_file = chat_template_path is not None and Path(chat_template_path).is_file()
    return chat_template_path is not None and not (is_file and chat_template_path.endswith((".jinja", ".j2")))


def load_student(
    student: str, args: TrainingArguments, quantization_config: "BitsAndBytesConfig | None"
) -> "PreTrainedModel | PeftModel":
    """Load a student to train, with the `model_init_kwargs` of the trainer's options.

    TRL would load it too, but draws missing weights at random.

    Raises:
        InputError: See `load_trainable`.
    """
    options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # each process holds the whole model
    return load_trainable(student, options)
