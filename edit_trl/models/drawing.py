"""The loop that draws responses token by token, for `generate` of transformers (its `custom_generate`).

It differs from transformers' own loop in four ways. A prompt of several responses is computed once, and its cache is
copied for each of them. Responses that have ended leave the batch. The cache has room for more tokens, so that a token
does not copy those before it. Each response draws from a stream of random numbers of its own, so that it does not
depend on its batch, except for rounding.

Read in transformers 5.23: `GenerationMixin._sample`, `_update_model_kwargs_for_generation`,
`_has_unfinished_sequences`, the two tests for weights that processes share, `Cache.reorder_cache` and
`DynamicLayer.update`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer
from transformers.generation.utils import is_deepspeed_zero3_enabled, is_fsdp_managed_module

from edit_trl.common.progress import within_batch
from edit_trl.models.responses import is_thinking

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    from edit_trl.models.decoding import Decoding

# The share of the batch that has to end before the rest goes on without it: leaving copies the cache once, about as
# much work as the cache's growth by one token.
_LEAVING = 0.1
# Tokens that a full cache grows by, copying what it has.
_ROOM = 64
# Responses whose tokens are drawn at once. Probabilities of a whole batch are large blocks of memory, and taking fresh
# ones at each step took longer than the arithmetic on a CPU.
_DRAWN_AT_ONCE = 16


class Draws:
    """Picks tokens: the most likely ones, or a sample with a stream of uniform numbers for each response.

    Args:
        decoding: Temperature and nucleus of all responses.
        seeds: The seed of each response; without effect in greedy decoding.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]):
        self._temperature = decoding.temperature or 0.0
        self._uniform: torch.Tensor | None = None
        self._nucleus: Any = None
        if self._temperature:
            # The warper sorts the vocabulary, also where nothing is to be left out.
            if decoding.top_p is not None and decoding.top_p < 1:
                self._nucleus = TopPLogitsWarper(decoding.top_p)
            size, double = decoding.max_new_tokens, torch.float64
            streams = [torch.Generator().manual_seed(seed) for seed in seeds]
            self._uniform = torch.stack([torch.rand(size, dtype=double, generator=stream) for stream in streams])

    def pick(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Return a token for each response of the batch.

        Args:
            logits: Shape (responses in the batch, vocabulary), float32.
            rows: The number of each response, among all seeds.
            step: How many tokens each response has.
        """
        if self._uniform is None:
            return logits.argmax(-1)
        uniform = self._uniform[rows.cpu(), step].to(logits.device)
        parts = zip(logits.split(_DRAWN_AT_ONCE), uniform.split(_DRAWN_AT_ONCE), strict=True)
        return torch.cat([self._draw(*part) for part in parts])

    def _draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        logits = logits / self._temperature
        if self._nucleus is not None:
            logits = self._nucleus(None, logits)
        shares = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        points = uniform * shares[:, -1]
        return torch.searchsorted(shares, points[:, None], right=True)[:, 0].clamp_(max=logits.size(-1) - 1)


@dataclass(frozen=True)
class Contrast:
    """Contrastive decoding (arXiv 2309.09117): tokens that another model likes too lose by it.

    With the probabilities p of the model and q of the other one, a token scores (1 + w) log p - w log q if p is at
    least `cutoff` times that of the most likely token, and is left out otherwise.

    Attributes:
        model: The other model, such as the student trained on wrong chains; of the same vocabulary.
        weight: w; 0 leaves the order of the tokens that remain as it is.
        cutoff: The plausibility cut-off, above 0 and at most 1.
    """

    model: PreTrainedModel
    weight: float = 0.5
    cutoff: float = 0.1

    def scores(self, logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the scores of tokens, from both models' logits of shape (responses, vocabulary)."""
        logps, other_logps = logits.log_softmax(-1), others.log_softmax(-1)
        scores = (1 + self.weight) * logps - self.weight * other_logps
        least = logps.max(-1, keepdim=True).values + math.log(self.cutoff)
        return scores.masked_fill(logps < least, -math.inf)


class _RoomyLayer(DynamicLayer):
    """The keys and values of a layer, in tensors with room for more tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._room: list[torch.Tensor] = []  # for keys and for values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens, and return all; see `DynamicLayer.update`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.get_seq_length(), (key_states, value_states)
        size = past + key_states.size(-2)
        if not self._room or size > self._room[0].size(-2):
            self._room = [states.new_empty(*states.shape[:-2], size + _ROOM, states.size(-1)) for states in new]
            for room, states in zip(self._room, (self.keys, self.values) if past else (), strict=False):
                assert states is not None  # there are tokens
                room[..., :past, :] = states
        for room, states in zip(self._room, new, strict=True):
            room[..., past:size, :] = states
        self.keys, self.values = (room[..., :size, :] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """See `DynamicLayer.reorder_cache`."""
        super().reorder_cache(beam_idx)
        self._room = []


class _Forward:
    """A model while it generates, with its cache and all else that it keeps for each row of the batch."""

    def __init__(self, model: PreTrainedModel, model_kwargs: dict[str, Any]):
        self._model: Any = model  # `GenerationMixin` too
        self._state = model_kwargs
        cache = model_kwargs.get("cache")
        if type(cache) is DynamicCache:  # its other layers, such as those of a window, do not grow
            cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]

    def first(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits after the prompts."""
        with _contiguous_head(self._model):
            return self._run(input_ids, is_first_iteration=True)

    def next(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits after the last tokens."""
        return self._run(input_ids, next_sequence_length=1)

    def take(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._state = _take(self._state, rows)

    def _run(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        inputs = self._model.prepare_inputs_for_generation(input_ids, **options, **self._state)
        outputs = self._model(**inputs, return_dict=True)
        self._state = self._model._update_model_kwargs_for_generation(outputs, self._state)
        return outputs.logits[:, -1].float()


class ResponseLoop:
    """Draws all responses of a batch; the `custom_generate` of one call of `generate`.

    Args:
        prompts: Token ids of each prompt of the batch, without padding.
        copies: For each response, the index of its prompt.
        draws: Picks the tokens.
        tokenizer: The tokenizer of the model.
        max_thinking_tokens: The number of tokens at which a response that still thinks ends, if any.
        streamer: Receives the tokens of a single response as they are drawn.
        contrast: Scores the tokens against another model, which runs beside the first.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        copies: Sequence[int],
        draws: Draws,
        tokenizer: PreTrainedTokenizerBase,
        max_thinking_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
        contrast: Contrast | None = None,
    ):
        self._prompts, self._copies, self._draws = prompts, copies, draws
        self._tokenizer, self._max_thinking_tokens = tokenizer, max_thinking_tokens
        self._streamer, self._contrast = streamer, contrast

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        *,
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> list[list[int]]:
        """Return the new token ids of each response, padded at its end if others of the batch went on."""
        generative: Any = model  # `GenerationMixin` too
        start, device = input_ids.size(1), input_ids.device
        pad = generation_config.pad_token_id
        copies = torch.tensor(self._copies, device=device)
        can_take, synced = _can_take_rows(model, model_kwargs), is_synced(model)
        models = [_Forward(model, model_kwargs)]
        if self._contrast is not None:
            models.append(_beside(self._contrast.model, model_kwargs))
            can_take = can_take and not _keeps_rows(self._contrast.model)

        def take(rows: torch.Tensor) -> None:
            for forward in models:
                forward.take(rows)

        if not can_take:
            input_ids = input_ids[copies]
            take(copies)
        logits = self._scores([forward.first(input_ids) for forward in models])
        rows = torch.arange(len(copies), device=device)  # of the responses that are in the batch
        if can_take and not torch.equal(copies, rows):
            input_ids, logits = input_ids[copies], logits[copies]
            take(copies)
        responses: list[list[int]] = [[] for _ in self._copies]
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        running, drawn = len(rows), 0
        for step in range(generation_config.max_new_tokens):
            tokens = self._draws.pick(logits, rows, step)
            tokens = torch.where(ended, pad, tokens)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            if self._streamer is not None:
                self._streamer.put(tokens.cpu())
            ended = ended | stopping_criteria(input_ids, None) | self._still_think(input_ids[:, start:], rows, step + 1)
            drawn, running = drawn + running, len(ended) - int(ended.sum())
            share = (step + 1) / generation_config.max_new_tokens
            within_batch(len(responses) - running, len(responses), drawn, share)
            if not generative._has_unfinished_sequences(not running, synced, device):
                break
            if can_take and running and len(ended) - running > _LEAVING * len(ended):
                self._store(responses, input_ids[ended, start:], rows[ended])
                staying = (~ended).nonzero()[:, 0]
                input_ids, rows, ended = input_ids[staying], rows[staying], ended[staying]
                take(staying)
            logits = self._scores([forward.next(input_ids) for forward in models])
        self._store(responses, input_ids[:, start:], rows)
        if self._streamer is not None:
            self._streamer.end()
        return responses

    def _scores(self, logits: list[torch.Tensor]) -> torch.Tensor:
        return logits[0] if self._contrast is None else self._contrast.scores(*logits)

    def _still_think(self, ids: torch.Tensor, rows: torch.Tensor, length: int) -> torch.Tensor:
        """Return which responses end because they still think after the most tokens of thoughts."""
        if length != self._max_thinking_tokens:
            return torch.zeros(len(rows), dtype=torch.bool, device=ids.device)
        prompts = [self._prompts[self._copies[row]] for row in rows.tolist()]
        thinking = [is_thinking(self._tokenizer, *pair) for pair in zip(prompts, ids.tolist(), strict=True)]
        return torch.tensor(thinking, device=ids.device)

    def _store(self, responses: list[list[int]], ids: torch.Tensor, rows: torch.Tensor) -> None:
        for row, response in zip(rows.tolist(), ids.tolist(), strict=True):
            responses[row] = response


@contextmanager
def _contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Give the output embeddings contiguous states.

    With the last states of each prompt as a view, a bfloat16 product on a CPU took 700 times as long (torch 2.13).
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, states: tuple(state.contiguous() for state in states))
    try:
        yield
    finally:
        hook.remove()


_BY_ROW = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
_SHARED = ("use_cache", "logits_to_keep")


def _can_take_rows(model: PreTrainedModel, model_kwargs: dict[str, Any]) -> bool:
    """Return whether rows of the batch can be copied and removed: all that the generation keeps by row is known."""
    if _keeps_rows(model):
        return False
    has_cache = any(hasattr(value, "reorder_cache") for value in model_kwargs.values())
    return has_cache and all(
        value is None or name in _SHARED or name in _BY_ROW or hasattr(value, "reorder_cache")
        for name, value in model_kwargs.items()
    )


def _keeps_rows(model: PreTrainedModel) -> bool:
    """Return whether a model itself keeps a position offset for each row of the batch, as some multimodal ones do."""
    return any(hasattr(module, "rope_deltas") for module in model.modules())


def _beside(model: PreTrainedModel, model_kwargs: Mapping[str, Any]) -> _Forward:
    """Return another model at the beginning of the same prompts, with a cache of its own."""
    state = {name: value for name, value in model_kwargs.items() if name in (*_BY_ROW, *_SHARED)}
    return _Forward(model, state | {"cache": DynamicCache(config=model.config)})


def _take(model_kwargs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Return the state of a generation with only these rows of the batch, in this order; the cache is changed."""
    taken = dict(model_kwargs)
    for name, value in model_kwargs.items():
        if name in _BY_ROW and value is not None:
            taken[name] = value.index_select(-2, rows)  # the batch is the last dimension but one, also of 3D positions
        elif hasattr(value, "reorder_cache"):
            value.reorder_cache(rows)
    return taken


def is_synced(model: PreTrainedModel) -> bool:
    """Return whether processes share the weights, so that each has to run the model until all have ended."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1 and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))
