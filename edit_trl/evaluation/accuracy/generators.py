"""The generator for a model that is loaded: vLLM's, or ours on a model in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.utils import is_peft_model

from edit_trl.common.errors import InputError
from edit_trl.models.drawing import Contrast
from edit_trl.models.generation import ModelGenerator
from edit_trl.models.generation_with_vllm import VllmEngine, VllmGenerator, vllm_is_faster
from edit_trl.models.pairs.tree_attention import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.models.decoding import Against, Batching, Decoding
    from edit_trl.models.loading import ModelSource


class Loaded(NamedTuple):
    """A generator and its parts.

    Attributes:
        generator: Generates the responses.
        tokenizer: The tokenizer of the model.
        positions: Maximum number of tokens of the model; None if it is unknown.
        model: The model; None if vLLM holds it.
    """

    generator: ModelGenerator | VllmGenerator
    tokenizer: PreTrainedTokenizerBase
    positions: int | None
    model: PreTrainedModel | None


def load_generator(
    source: ModelSource,
    decoding: Decoding,
    *,
    batch_size: int | None,
    batching: Batching,
    seed: int,
    in_memory: bool = False,
    against: Against | None = None,
) -> Loaded:
    """Load a model and make its generator; see `ModelGenerator` for the options.

    The batching `auto` is `vllm` if vLLM is installed and there is a GPU, unless the model is needed `in_memory`.
    With `against`, another model is loaded as this one is, and tokens are scored against it.

    Raises:
        InputError: The model cannot be loaded, or does not support `batching`.
    """
    if batching == "vllm" or (batching == "auto" and not in_memory and vllm_is_faster()):
        engine = VllmEngine(source.model, dtype=source.dtype or "auto", seed=seed)
        return Loaded(VllmGenerator(engine, decoding, seed=seed), source.load_tokenizer(), engine.positions, None)
    model, tokenizer = source.load()
    contrast = None
    if against is not None:
        other, its_tokenizer = replace(source, model=against.model).load()
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise InputError(
                f"`against: {against.model}` has another tokenizer than {source.model}; contrastive decoding "
                "compares the same tokens, so take an adapter of the same base"
            )
        adapter: Any = other.active_peft_config if is_peft_model(other) else None
        if adapter is not None and adapter.is_prompt_learning:
            raise InputError(
                f"`against: {against.model}` is a {adapter.peft_type.value} adapter, whose virtual tokens contrastive "
                "decoding leaves out; take one that changes layers, such as LoRA"
            )
        # The loop of the generation runs it without PEFT's own `generate`.
        contrast = Contrast(base_model(other), against.weight, against.cutoff)
    generator = ModelGenerator(
        model, tokenizer, decoding, batch_size=batch_size, batching=batching, seed=seed, contrast=contrast
    )
    return Loaded(generator, tokenizer, generator.engine.positions, model)
