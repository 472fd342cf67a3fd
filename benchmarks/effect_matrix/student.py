"""Makes a student from scratch: a small Llama, and a tokenizer trained on the texts of the warm-up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class FromScratch:
    """The sizes of a student.

    Attributes:
        hidden_size: Size of the hidden states.
        layers: Number of layers.
        heads: Number of attention heads.
        intermediate_size: Size of the feed-forward layer; 8/3 of the hidden size where 0.
        vocabulary: Maximum size of the tokenizer's vocabulary; digits are separate tokens.
        positions: Maximum length of a sequence, in tokens.
    """

    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    intermediate_size: int = 0
    vocabulary: int = 1000
    positions: int = 512


def make_student(sizes: FromScratch, rows: list[Mapping[str, Any]], seed: int, folder: Path) -> int:
    """Save a student with random weights; returns its number of parameters.

    Args:
        sizes: The sizes of the model.
        rows: Conversational dual CoTs; the tokenizer is trained on their prompts and correct chains.
        seed: Seed of the weights.
        folder: The folder to save to.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _learn_tokenizer(rows, sizes)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size or sizes.hidden_size * 8 // 3,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def _learn_tokenizer(rows: list[Mapping[str, Any]], sizes: FromScratch):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=sizes.positions
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _texts(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        for column in ("prompt", "chosen"):
            yield row[column][-1]["content"]
