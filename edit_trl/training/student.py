"""The student of a run: its tokenizer and chat template, settled before its weights are loaded, and the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from edit_trl.common.errors import InputError
from edit_trl.key_steps import SIDES
from edit_trl.models.chat_templates import check_template, check_variables, share_template
from edit_trl.models.loading import check_student, load_processor, load_tokenizer, load_trainable
from edit_trl.models.vocabulary import check_vocabulary
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.quantization import keep_unpacked

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig


def settle_processing(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model: "str | PreTrainedModel | PeftModel",
    args: DualCoTConfig,
    peft_config: PeftConfig | None = None,
) -> tuple[PreTrainedTokenizerBase | ProcessorMixin, dict[str, str | None]]:
    """Settle the tokenizer or processor of a student, its special tokens and its chat template.

    Args:
        processing_class: As it was given; the model's own is loaded where None.
        model: A path or Hub id, which is checked, or a model.
        args: The options of the training.
        peft_config: The options of a new adapter.

    Returns:
        The tokenizer or processor, and options that TRL must be given other values of; see `_take_template`.

    Raises:
        InputError: The student or its tokenizer cannot be used.
    """
    loading: Any = args.model_init_kwargs  # `__post_init__` has read the text of an option
    revision = (loading or {}).get("revision")
    is_loaded = not isinstance(model, str)
    if isinstance(model, str):
        check_student(model, revision=revision, trust_remote_code=args.trust_remote_code)
    if processing_class is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        processing_class = load_processor(name, revision=revision, trust_remote_code=args.trust_remote_code)
    tokenizer = share_template(processing_class)
    if args.pad_token is not None:
        check_token(tokenizer, "pad_token", args.pad_token)
    if args.pad_token is not None or tokenizer.pad_token is None:
        tokenizer.pad_token = args.pad_token or args.eos_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(
            f"the tokenizer ({tokenizer.name_or_path}) has neither a pad token nor an EOS token; set `eos_token`"
        )
    adapted = peft_config is not None or (is_loaded and is_peft_model(model))
    return processing_class, _take_template(processing_class, args, adapted)


def _take_template(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin, args: DualCoTConfig, adapted: bool
) -> dict[str, str | None]:
    """Take over the chat template that `chat_template_path` names, unless it brings tokens, which TRL then adds.

    TRL resizes the embeddings in any case, for which an adapter has to hold them and the LM head: not here, where the
    student is adapted and has the tokens.

    Returns:
        The options that TRL must be given: `chat_template_path`, None where it has nothing to do, and `eos_token`.

    Raises:
        InputError: There is no such template, or it is broken.
    """
    path, eos = args.chat_template_path, args.eos_token
    if path is not None and Path(path).is_file() and path.endswith((".jinja", ".j2")):
        processing_class.chat_template = Path(path).read_text(encoding="utf-8")
        path = None
    elif path is not None:
        source = load_tokenizer(path, option="chat_template_path")
        if source.chat_template is None:
            raise InputError(f"`chat_template_path: {path}`: its tokenizer has no chat template")
        vocabulary = share_template(processing_class).get_vocab()
        if adapted and all(token in vocabulary for token in source.get_added_vocab()):
            processing_class.chat_template = source.get_chat_template()
            path, eos = None, eos or source.eos_token
    tokenizer = share_template(processing_class)
    check_template(tokenizer)
    values: Any = args.chat_template_kwargs  # `__post_init__` has read the text of an option
    check_variables(tokenizer, values)
    if eos is not None and path is None:
        check_token(tokenizer, "eos_token", eos)
        tokenizer.eos_token = eos
    return {"chat_template_path": path, "eos_token": eos}


def check_token(tokenizer: PreTrainedTokenizerBase, option: str, token: str) -> None:
    """Check that a tokenizer has the token that an option names.

    Raises:
        InputError: It has not.
    """
    if token not in tokenizer.get_vocab():
        raise InputError(
            f"`{option}: {token}` is no token of the student's tokenizer ({type(tokenizer).__name__}); name one that "
            "it has"
        )


def check_added_tokens(model: "PreTrainedModel | PeftModel", path: str) -> None:
    """Check that an adapter of a model can learn the tokens that a chat template adds.

    TRL 1.16 trains their rows in `embed_tokens` and the whole `lm_head`.

    Raises:
        InputError: It cannot.
    """
    layers = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module in layers.values()}
    obstacle = None
    if is_peft_model(model):
        obstacle = "the adapter was trained without them; set `chat_template_path` where its training begins"
    elif names != layers.keys():
        obstacle = f"{type(model).__name__} has other layers for them ({', '.join(sorted(names))})"
    elif layers["embed_tokens"].weight is layers["lm_head"].weight:
        obstacle = "its LM head is its embeddings (`tie_word_embeddings`)"
    if obstacle:
        raise InputError(
            f"`chat_template_path: {path}` brings tokens that the student does not have, which LoRA cannot teach this "
            f"one: {obstacle}. Train all weights (`use_peft: false`), or take a template without new tokens"
        )


def check_rows(model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    """Check that a model has an embedding for the tokens of prepared rows, and for the one that pads them.

    Raises:
        InputError: It has not.
    """
    ids = chain.from_iterable(rows[f"{part}_ids"] for part in ("prompt", *SIDES))
    check_vocabulary(model, tokenizer, chain(ids, [[tokenizer.pad_token_id]]))


@contextmanager
def replaced_options(args: DualCoTConfig, **values: Any) -> Iterator[None]:
    """Give options other values inside the block."""
    given = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(given)


def load_student(
    student: str, args: Any, quantization_config: "BitsAndBytesConfig | None"
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
    model = load_trainable(student, options)
    keep_unpacked(model)  # before a trainer is made: DPO's may score the reference then
    return model
