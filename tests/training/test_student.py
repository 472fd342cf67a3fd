"""The student's tokenizer and chat template before training, and what can be done with what was trained."""

import json

import pytest
import torch
from conftest import CHAT_TEMPLATE, ROWS, byte_level_tokenizer, conversational, tiny_llama
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_invariants import config
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast, ProcessorMixin

from edit_trl import DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.models.loading import ModelSource, load_tokenizer
from edit_trl.models.merging import merge_adapter

ROWS_IN_MESSAGES = Dataset.from_list([conversational(row) for row in ROWS])
MINE = CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>MINE ")
IDS = torch.arange(3, 60)[None]


class Processor(ProcessorMixin):
    """As that of a model that sees, with the tokenizer alone."""

    attributes = ("tokenizer",)
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer=None, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer_of(tmp_path, model, processing_class=None, peft_config=None, **options) -> DualCoTTrainer:
    return DualCoTTrainer(
        model,
        args=config(tmp_path / "out", max_steps=2, learning_rate=1e-2, **options),
        train_dataset=ROWS_IN_MESSAGES,
        processing_class=processing_class,
        peft_config=peft_config,
    )


def first_prompt(trainer) -> str:
    return trainer._tokenizer.decode(trainer.train_dataset[0]["prompt_ids"])


@pytest.fixture
def plain_student(tmp_path, tokenizer):
    """A student without a chat template and without the tokens of turns, and the tokenizer that brings them."""
    template = tmp_path / "template"
    tokenizer.save_pretrained(template)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {"<|im_start|>": "<|a|>", "<|im_end|>": "<|end|>"}
    backend["model"]["vocab"] = {names.get(token, token): id_ for token, id_ in backend["model"]["vocab"].items()}
    for token in backend["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    (tmp_path / "plain.json").write_text(json.dumps(backend))
    plain = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "plain.json"), eos_token="<|end|>", pad_token="<|pad|>", model_max_length=512
    )
    assert len(plain) == 400
    return plain, template


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# Chat templates


def test_a_template_from_a_file_is_that_of_a_processor_too(tmp_path, tokenizer):
    file = tmp_path / "mine.jinja"
    file.write_text(MINE)
    trainer = trainer_of(tmp_path, tiny_llama(), Processor(tokenizer, CHAT_TEMPLATE), chat_template_path=str(file))
    assert first_prompt(trainer).startswith("<|im_start|>MINE user\n")
    assert trainer.processing_class.chat_template == MINE
    assert trainer.args.chat_template_path == str(file)
    trainer.save_model(str(tmp_path / "saved"))
    assert load_tokenizer(str(tmp_path / "saved")).chat_template == MINE


def test_a_processors_own_template_is_trained_with(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tiny_llama(), Processor(tokenizer, MINE))
    assert first_prompt(trainer).startswith("<|im_start|>MINE user\n")


@pytest.mark.parametrize("content", ["{% for m in messages %}", "{{ raise_exception('No') }}"])
def test_a_template_that_is_broken_is_said_before_the_model_is_loaded(tmp_path, saved_student, content):
    file = tmp_path / "mine.jinja"
    file.write_text(content)
    (saved_student / "model.safetensors").rename(tmp_path / "away")
    LlamaForCausalLM(tiny_llama().config).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(saved_student / "model.safetensors")
    (saved_student / "config.json").write_text(
        json.dumps(json.loads((saved_student / "config.json").read_text()) | {"num_hidden_layers": 3})
    )
    with pytest.raises(InputError, match="chat template"):  # and not that a layer is missing
        trainer_of(tmp_path, str(saved_student), chat_template_path=str(file))
    with pytest.raises(InputError, match=r"missing .*: model\.layers\.2\."):
        trainer_of(tmp_path, str(saved_student))


def test_a_tokenizer_that_brings_no_template(tmp_path, tokenizer):
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    for path, says in ((tmp_path / "bare", "has no chat template"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=rf"`chat_template_path: {path}`.* {says}"):
            trainer_of(tmp_path, tiny_llama(), byte_level_tokenizer(), chat_template_path=str(path))


# Tokens that a template brings


def test_an_adapter_with_new_tokens_is_used_again(tmp_path, plain_student):
    plain, template = plain_student
    student = save(tiny_llama(), plain, tmp_path / "student")
    trainer = trainer_of(tmp_path, student, peft_config=lora(), chat_template_path=str(template))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    trained = trainer.model.eval()(input_ids=IDS).logits
    end = trainer._tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end >= 400

    model, tokenizer = ModelSource(str(tmp_path / "adapter")).load()
    assert torch.allclose(model(input_ids=IDS).logits, trained, atol=1e-5)
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (CHAT_TEMPLATE, end)

    report = merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")
    assert report.mean < 1e-5
    merged, tokenizer = ModelSource(str(tmp_path / "merged")).load()
    assert torch.allclose(merged(input_ids=IDS).logits, trained, atol=1e-5)
    assert merged.config.eos_token_id == tokenizer.eos_token_id == end
    assert end in merged.generation_config.eos_token_id


def test_a_template_whose_tokens_are_there_resizes_nothing(tmp_path, tokenizer):
    template = tmp_path / "template"
    tokenizer.chat_template = MINE
    tokenizer.save_pretrained(template)
    own = byte_level_tokenizer()
    own.eos_token = "<|im_start|>"
    trainer = trainer_of(tmp_path, tiny_llama(), own, lora(), chat_template_path=str(template))
    assert trainer.model.get_input_embeddings().weight.shape == (400, 32)
    assert trainer.model.peft_config["default"].modules_to_save is None
    assert first_prompt(trainer).startswith("<|im_start|>MINE user\n")
    assert trainer._tokenizer.eos_token == "<|im_end|>"
    assert trainer.model.generation_config.eos_token_id == 2
    assert (trainer.args.chat_template_path, trainer.args.eos_token) == (str(template), None)


def test_new_tokens_that_an_adapter_cannot_learn_are_refused(tmp_path, plain_student):
    plain, template = plain_student
    options = {"processing_class": plain, "chat_template_path": str(template)}
    tied = tiny_llama().config
    tied.tie_word_embeddings = True
    gpt2 = GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2)
    for model, says in (
        (LlamaForCausalLM(tied), "`tie_word_embeddings`"),
        (GPT2LMHeadModel(gpt2), "other layers for them"),
        (get_peft_model(tiny_llama(), lora()), "trained without them"),
    ):
        adapter = None if hasattr(model, "peft_config") else lora()
        with pytest.raises(InputError, match=rf"`chat_template_path: {template}` brings tokens .*{says}"):
            trainer_of(tmp_path, model, peft_config=adapter, **options)
    # All weights of the same students can be trained.
    trainer = trainer_of(tmp_path, LlamaForCausalLM(tied), **options)
    assert trainer.model.get_input_embeddings().weight.shape[0] >= 402


# Tokens


def test_a_tokenizer_without_an_end(tmp_path, tokenizer):
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(InputError, match="has neither a pad token nor an EOS token; set `eos_token`"):
        trainer_of(tmp_path, tiny_llama(), tokenizer)
    trainer = trainer_of(tmp_path, tiny_llama(), tokenizer, eos_token="<|im_end|>")
    assert (trainer._tokenizer.eos_token_id, trainer._tokenizer.pad_token_id) == (2, 2)


def test_tokens_without_an_embedding_are_named(tmp_path, tokenizer):
    tokenizer.add_tokens(["<|never|>", "<|more|>"])
    trainer_of(tmp_path, tiny_llama(), tokenizer)  # as long as none is used
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", "<|more|>")
    with pytest.raises(InputError, match=r"uses 1 tokens that are not among the model's 400: '<\|more\|>'"):
        trainer_of(tmp_path, tiny_llama(), tokenizer)
