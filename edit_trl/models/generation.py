"""The engine that draws responses from a model in memory, for evaluation, suites, chat and local teachers.

Prompts are batched in one of two ways. Padded batching calls `generate` with prompts of similar lengths.
Continuous batching uses transformers' scheduler, which gives the place of a finished response to the next prompt;
it is faster on a GPU, and slower on a CPU (`python benchmarks/evaluate_speed.py`).

Read in transformers 5.23: `ContinuousMixin.generate_batch`, `init_continuous_batching`,
`ContinuousBatchingManager.add_request` and `register_result_handler`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteriaList, StopStringCriteria

from edit_trl.common.errors import InputError
from edit_trl.models.decoding import Batching, Decoding, Generated, check_batching
from edit_trl.models.drawing import Contrast, Draws, ResponseLoop
from edit_trl.models.loading import positions_of
from edit_trl.models.responses import cut_thoughts, response_text
from edit_trl.models.vocabulary import check_vocabulary, embeddings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


# Padded batches per call of the scheduler, which fills its places from them; a killed run loses at most one call.
_SUPPLY = 8


class Engine:
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
        self.model: Any = model  # also a `GenerationMixin`
        self.tokenizer, self._contrast = tokenizer, contrast
        if contrast is not None:
            _check_vocabularies(model, contrast.model)
        self.eos_ids = _eos_ids(model, tokenizer)
        self.positions = positions_of(model.config)
        # The scheduler knows these attentions only; a model just trained has that of the tree layout.
        attention = model.config._attn_implementation or ""
        supported = attention in ("sdpa", "eager") or attention.startswith("flash")
        self.can_schedule = supported and not is_peft_model(model) and contrast is None

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
        """
        check_vocabulary(self.model, self.tokenizer, prompts)
        if seeds is None:
            seeds = [batch_seed(seed, [number, *prompt]) for number, prompt in enumerate(prompts)]
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
                continuous_batching_config=_scheduling(self.model.device),
                warmup=False,
            )
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) < len(prompts):
            raise RuntimeError(
                f"continuous batching answered {len(outputs) - len(failed)} of {len(prompts)} prompts "
                f"({failed[:1]}); use `batching: padded`"
            )
        return [output.generated_tokens for output in outputs.values()]

    def split_at_eos(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Return the ids of a response before its first EOS token, and whether there is one."""
        end = next((place for place, token in enumerate(ids) if token in self.eos_ids), None)
        return list(ids[:end]), end is not None

    def response_of(self, prompt: Sequence[int], ids: Sequence[int], decoding: Decoding) -> tuple[list[int], bool]:
        """Return the ids of a response, and whether it was finished.

        Args:
            prompt: Token ids of the prompt.
            ids: The new token ids, from `generate`, `schedule` or `Stream.generate`.
            decoding: How they were drawn. A response that still thinks after `max_thinking_tokens` is cut there.

        Returns:
            The ids before the first EOS token, and whether there is one after a response that was not cut.
        """
        response, ended = self.split_at_eos(ids)
        cut = cut_thoughts(self.tokenizer, prompt, response, decoding.max_thinking_tokens)
        return (response, ended) if cut is None else (cut, False)

    def text_of(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """Return a response as text; see `edit_trl.models.responses.response_text`."""
        return response_text(self.tokenizer, prompt, response)

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


class Stream:
    """Continuous batching for prompts that arrive one at a time and are all decoded in the same way.

    Takes most of the GPU memory that is left, so only one can be open at a time.

    Args:
        engine: The model. It must stay in eval mode until the stream is closed.
        decoding: How responses are drawn, from the global random state.
        stop: Texts that end a response.
    """

    def __init__(self, engine: Engine, decoding: Decoding, stop: Sequence[str] = ()):
        settings = engine.settings(decoding, stop)
        self._max_new_tokens = decoding.max_new_tokens
        self._manager = engine.model.init_continuous_batching(
            generation_config=settings, continuous_batching_config=_scheduling(engine.model.device)
        )
        self._manager.start()

    async def generate(self, prompt: list[int]) -> list[int]:
        """Draw a response; see `Engine.generate`.

        Raises:
            RuntimeError: The scheduler failed.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = str(id(done))
        self._manager.register_result_handler(name, done.set_result)
        self._manager.add_request(prompt, request_id=name, max_new_tokens=self._max_new_tokens)
        output = await done
        if output.error:
            raise RuntimeError(f"continuous batching failed: {output.error}")
        return list(output.generated_tokens)

    def close(self) -> None:
        """Wait for the scheduler to end, and release its memory."""
        self._manager.stop(block=True)


class ModelGenerator:
    """The `Generator` of a model in memory; see `Engine` for what is left as it was.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        decoding: How responses are drawn.
        batch_size: Responses at once.
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
        batch_size: int = 16,
        batching: Batching = "auto",
        seed: int = 0,
        contrast: Contrast | None = None,
    ):
        check_batching(batching, batch_size)
        self.engine = Engine(model, tokenizer, contrast)
        if batching == "auto":
            on_gpu = model.device.type == "cuda"
            batching = "continuous" if on_gpu and self.engine.can_schedule else "padded"
        if batching == "continuous" and not self.engine.can_schedule:
            attention = model.config._attn_implementation or ""
            raise InputError(
                f"`batching: continuous` cannot run {type(model).__name__} with attention {attention!r}; use "
                "`batching: padded`"
            )
        self.batching = batching
        self._decoding, self._seed = decoding, seed
        self._size = max(1, batch_size // decoding.samples) * (_SUPPLY if batching == "continuous" else 1)

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        # Prompts of similar lengths need little padding. The longest come first, so that a run that will run
        # out of memory does so at once.
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        return [order[start : start + self._size] for start in range(0, len(order), self._size)]

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`."""
        size = self._decoding.samples
        for batch in batches:
            # The seeds depend on the batch at most: a resumed run draws what an uninterrupted one draws.
            drawn_for = [prompts[index] for index in batch for _ in range(size)]
            if self.batching == "continuous":
                seed = batch_seed(self._seed, prompts[batch[0]])
                outputs = self.engine.schedule(drawn_for, self._decoding, seed=seed)
            else:
                seeds = [batch_seed(self._seed, [sample, *prompts[i]]) for i in batch for sample in range(size)]
                outputs = self.engine.generate(drawn_for, self._decoding, seeds=seeds)
            samples = [self._read(prompt, ids) for prompt, ids in zip(drawn_for, outputs, strict=True)]
            yield batch, [samples[start : start + size] for start in range(0, len(samples), size)]

    def _read(self, prompt: list[int], ids: list[int]) -> Generated:
        response, ended = self.engine.response_of(prompt, ids, self._decoding)
        count = len(response) + ended
        return Generated(self.engine.text_of(prompt, response), count, not ended, ids=ids[:count])


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


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    own = model.generation_config.eos_token_id
    ids = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    if not all(isinstance(token, int) for token in ids):
        raise InputError(f"`eos_token_id: {own}` in the model's generation_config.json is no token id")
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError("neither the model nor the tokenizer has an EOS token, so no response would end")
    return ids


def _scheduling(device: torch.device) -> ContinuousBatchingConfig | None:
    """The options of continuous batching on a device; None for transformers' own.

    They give the cache nearly all memory of the device, which a CPU shares with every other program.
    """
    return ContinuousBatchingConfig(max_memory_percent=0.1) if device.type == "cpu" else None


def _left_pad(sequences: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of shape (sequences, longest)."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
