"""The engine that draws responses from a model in memory, for evaluation, suites, chat and local teachers.

Prompts are batched in one of two ways. Padded batching calls `generate` with prompts of similar lengths.
Continuous batching uses transformers' scheduler, which gives the place of a finished response to the next prompt;
it is faster on a GPU, and slower on a CPU (`python benchmarks/evaluate_speed.py`).

Read in transformers 5.23: `ContinuousMixin.generate_batch`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteriaList, StopStringCriteria
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.models.decoding import Batching, Decoding, Generated, check_batching, pack
from edit_trl.models.drawing import Contrast, Draws, ResponseLoop, is_synced
from edit_trl.models.loading import positions_of
from edit_trl.models.responses import ResponseReader, eos_ids_of
from edit_trl.models.vocabulary import check_vocabulary, embeddings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


logger = logging.get_logger(__name__)

# Padded batches per call of the scheduler, which fills its places from them; a killed run loses at most one call.
_SUPPLY = 8


class Engine(ResponseReader):
    """Draws responses from a causal language model in memory: token ids in, token ids out.

    Of the model's own generation settings, only the EOS tokens are used. The model's mode, its settings and the
    random state are left as they were.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        contrast: Scores the tokens of padded batches against another model.

    Attributes:
        eos_ids: Every token that ends a response: the model's own, and the tokenizer's.
        positions: How many tokens the model takes, prompt and response together; None if unknown.
        can_schedule: Whether continuous batching supports the model and its attention.

    Raises:
        InputError: Neither the model nor the tokenizer has an EOS token, or the other model has another vocabulary.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contrast: Contrast | None = None):
        super().__init__(tokenizer, eos_ids_of(model.generation_config, tokenizer))
        self.model: Any = model  # also a `GenerationMixin`
        self._contrast = contrast
        self._most = sys.maxsize  # responses at once, as far as memory is known to reach
        if contrast is not None:
            _check_vocabularies(model, contrast.model)
        self.positions = positions_of(model.config)
        # The scheduler knows these attentions only; a model just trained has that of the tree layout.
        attention = model.config._attn_implementation or ""
        supported = attention in ("sdpa", "eager") or attention.startswith("flash")
        self.can_schedule = supported and not is_peft_model(model) and contrast is None

    def resolved(self, batching: Batching) -> Batching:
        """Return the batching that `auto` is for this model, or the given one.

        Raises:
            InputError: The model does not support it.
        """
        if batching == "auto":
            return "continuous" if self.model.device.type == "cuda" and self.can_schedule else "padded"
        if batching == "continuous" and not self.can_schedule:
            attention = self.model.config._attn_implementation or ""
            raise InputError(
                f"`batching: continuous` cannot run {type(self.model).__name__} with attention {attention!r}; use "
                "`batching: padded`"
            )
        return batching

    @property
    def pad_id(self) -> int:
        """The token that prompts are padded with."""
        pad, count = self.tokenizer.pad_token_id, embeddings_of(self.model)
        return self.eos_ids[0] if pad is None or (count is not None and pad >= count) else pad

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """Draw one response for each prompt, all prompts in one padded batch.

        Where memory does not suffice, the batch is halved, and so are those that come after it.

        Args:
            prompts: Token ids of each prompt.
            decoding: How responses are drawn; its `samples` are ignored.
            seed: Gives each response a seed, with its prompt and its place in the batch.
            seeds: The seed of each response: what it draws does not depend on its batch, except for rounding, since
                padding changes the order of sums.
            stop: Texts that end a response.
            streamer: Receives the tokens of a single prompt as they are drawn.

        Returns:
            The new token ids of each response, in the order of the prompts; an EOS token and padding may
            follow the response (see `response_of`).

        Raises:
            RuntimeError: The memory does not suffice for a single response, or for a batch of a model whose weights
                processes share.
        """
        check_vocabulary(self.model, self.tokenizer, prompts)
        if seeds is None:
            seeds = [batch_seed(seed, [number, *prompt]) for number, prompt in enumerate(prompts)]
        responses: list[list[int]] = []
        while (start := len(responses)) < len(prompts):
            part = slice(start, start + min(self._most, len(prompts)))
            try:
                responses += self._draw(prompts[part], decoding, seeds[part], stop, streamer)
            except RuntimeError as error:
                count = len(prompts[part])
                if count == 1 or is_synced(self.model) or not should_reduce_batch_size(error):
                    raise
                self._most = count // 2
                logger.warning(f"out of memory with {count} responses at once; going on with {self._most}")
            else:
                continue
            clear_device_cache(garbage_collection=True)  # now that the error holds no tensors
        return responses

    def _draw(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        seeds: Sequence[int],
        stop: Sequence[str],
        streamer: BaseStreamer | None,
    ) -> list[list[int]]:
        # A prompt of several responses is computed once.
        places: dict[tuple[int, ...], int] = {}
        copies = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
        loop = ResponseLoop(
            *(list(places), copies, Draws(decoding, seeds), self.tokenizer, decoding.max_thinking_tokens, streamer),
            contrast=self._contrast,
        )
        criteria = StoppingCriteriaList([StopStringCriteria(self.tokenizer, list(stop))] if stop else [])
        config = self.settings(replace(decoding, temperature=0.0, samples=1))  # the loop draws
        # No inference mode: weights that FSDP gathers in it could not be trained afterwards.
        with _prepared(self.model, config), torch.no_grad():
            inputs = _left_pad(list(places), config.pad_token_id, self.model.device)
            # `generate` gives the streamer the prompt, and the loop gives it the tokens.
            return self.model.generate(
                **inputs,
                generation_config=config,
                stopping_criteria=criteria,
                custom_generate=loop,
                streamer=streamer,
            )

    def schedule(self, prompts: Sequence[Sequence[int]], decoding: Decoding, *, seed: int = 0) -> list[list[int]]:
        """Draw one response for each prompt by continuous batching; see `generate`.

        Raises:
            RuntimeError: The scheduler has left prompts unanswered.
        """
        check_vocabulary(self.model, self.tokenizer, prompts)
        prompts, config = [list(prompt) for prompt in prompts], self.settings(decoding)
        with _prepared(self.model, config), _forked_random_state(self.model.device, seed), torch.no_grad():
            outputs = self.model.generate_batch(
                prompts,
                generation_config=config,
                continuous_batching_config=scheduling(self.model.device),
                warmup=False,
            )
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) < len(prompts):
            raise RuntimeError(
                f"continuous batching answered {len(outputs) - len(failed)} of {len(prompts)} prompts "
                f"({failed[:1]}); use `batching: padded`"
            )
        return [output.generated_tokens for output in outputs.values()]

    def settings(self, decoding: Decoding, stop: Sequence[str] = ()) -> GenerationConfig:
        """Return transformers' settings for a way of decoding; nothing is left to the model's own settings."""
        sampled = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        return GenerationConfig(
            use_cache=True,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=list(self.eos_ids),
            pad_token_id=self.pad_id,
            stop_strings=list(stop) or None,
            **(sampled if decoding.temperature else {"do_sample": False}),
        )


class ModelGenerator:
    """The `Generator` of a model in memory; see `Engine` for what is left as it was.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        decoding: How responses are drawn.
        batch_size: Responses at once; see `edit_trl.models.decoding.pack` for None.
        batching: `auto` is `continuous` on a GPU and `padded` elsewhere.
        seed: The seed of sampling.
        contrast: Scores the tokens against another model.

    Raises:
        InputError: There is no EOS token, `batching` is unknown or does not support the model, or
            `batch_size` is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        batch_size: int | None = None,
        batching: Batching = "auto",
        seed: int = 0,
        contrast: Contrast | None = None,
    ):
        check_batching(batching, batch_size)
        self.engine = Engine(model, tokenizer, contrast)
        self.batching = self.engine.resolved(batching)
        self._decoding, self._seed, self._batch_size = decoding, seed, batch_size

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        decoding = self._decoding
        batches = pack(lengths, decoding.max_new_tokens, samples=decoding.samples, batch_size=self._batch_size)
        if self.batching == "padded":
            return batches
        return [list(chain(*batches[start : start + _SUPPLY])) for start in range(0, len(batches), _SUPPLY)]

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`."""
        size = self._decoding.samples
        for batch in batches:
            drawn_for = [prompts[index] for index in batch for _ in range(size)]
            outputs = self._draw(drawn_for)
            read = partial(self.engine.generated, decoding=self._decoding)
            samples = list(map(read, drawn_for, outputs))
            yield batch, [samples[start : start + size] for start in range(0, len(samples), size)]

    def _draw(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Draw a response for each prompt; those of a prompt follow each other."""
        # The seeds depend on the batch at most: a resumed run draws what an uninterrupted one draws.
        if self.batching == "continuous":
            try:
                return self.engine.schedule(prompts, self._decoding, seed=batch_seed(self._seed, prompts[0]))
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                logger.warning("continuous batching ran out of memory; going on with padded batches")
            self.batching = "padded"
        samples = self._decoding.samples
        seeds = [batch_seed(self._seed, [number % samples, *prompt]) for number, prompt in enumerate(prompts)]
        outputs: list[list[int]] = [[] for _ in prompts]
        # A call of the scheduler that failed is several batches.
        for batch in pack([*map(len, prompts)], self._decoding.max_new_tokens, batch_size=self._batch_size):
            drawn_for = [prompts[index] for index in batch]
            drawn = self.engine.generate(drawn_for, self._decoding, seeds=[seeds[index] for index in batch])
            for index, ids in zip(batch, drawn, strict=True):
                outputs[index] = ids
        return outputs


def _check_vocabularies(model: PreTrainedModel, other: PreTrainedModel) -> None:
    sizes = [embeddings_of(one) for one in (model, other)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"`against`: a model of {sizes[1]} tokens beside one of {sizes[0]}; contrastive decoding needs models of "
            "the same vocabulary, such as an adapter of the same base"
        )


def batch_seed(seed: int, ids: Sequence[int]) -> int:
    """Return a seed of 32 bits that depends on the run's seed and on token ids."""
    return int.from_bytes(hashlib.sha256(f"{seed} {list(ids)}".encode()).digest()[:4], "big")


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into eval mode; afterwards its modes, its generation settings and the random state are as before."""
    with _prepared(model), _forked_random_state(model.device):
        yield


@contextmanager
def _prepared(model: PreTrainedModel, config: GenerationConfig | None = None) -> Iterator[None]:
    """Set eval mode and generation settings; afterwards modes and settings are as before.

    `generate` fills what its config leaves open from the model's own settings (transformers 5.23), so a
    repetition penalty or beams set there would be used, unless they are replaced meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    # With an adapter, both the wrapper and the model inside may hold settings.
    own: list[tuple[Any, Any]] = [(m, m.generation_config) for m, _ in modes if "generation_config" in vars(m)]
    model.eval()
    for module, _ in own if config is not None else ():
        module.generation_config = config
    try:
        yield
    finally:
        for module, settings in own:
            module.generation_config = settings
        for module, training in modes:
            module.training = training


@contextmanager
def _forked_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def scheduling(device: torch.device) -> ContinuousBatchingConfig | None:
    """Return the options of continuous batching on a device; None for transformers' own.

    They give the cache nearly all memory of the device, which a CPU shares with every other program.
    """
    return ContinuousBatchingConfig(max_memory_percent=0.1) if device.type == "cpu" else None


def _left_pad(sequences: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of shape (sequences, longest)."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
