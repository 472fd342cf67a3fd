"""The generator for the model that `edit-trl evaluate` was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edit_trl.models.generation import ModelGenerator, VllmGenerator, vllm_is_faster
from edit_trl.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.evaluation.accuracy.config import EvaluateArguments


class Loaded(NamedTuple):
    """A generator, and what it was made of; `model` is None in vLLM, `positions` where it is not known."""

    generator: ModelGenerator | VllmGenerator
    tokenizer: PreTrainedTokenizerBase
    positions: int | None
    model: PreTrainedModel | None


def load_generator(arguments: EvaluateArguments) -> Loaded:
    """Load the model that `edit-trl evaluate` was given.

    Raises:
        InputError: It cannot be loaded, or not be batched as asked for.
    """
    decoding, trusted = arguments.decoding, arguments.trust_remote_code
    if arguments.batching == "vllm" or (arguments.batching == "auto" and vllm_is_faster()):
        tokenizer = load_tokenizer(arguments.model, trust_remote_code=trusted)
        dtype = arguments.dtype or "auto"
        generator = VllmGenerator(arguments.model, decoding, dtype=dtype, seed=arguments.seed)
        return Loaded(generator, tokenizer, None, None)
    model, tokenizer = arguments.load()
    generator = ModelGenerator(
        model,
        tokenizer,
        decoding,
        batch_size=arguments.batch_size,
        batching=arguments.batching,
        seed=arguments.seed,
    )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Loaded(generator, tokenizer, positions, model)
