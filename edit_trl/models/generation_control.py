"""What `generate` of transformers is given beside its settings: draws with a seed per prompt, a limit for thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, StoppingCriteria, TopPLogitsWarper

from edit_trl.models.decoding import Decoding
from edit_trl.models.responses import is_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SeededDraw(LogitsProcessor):
    """Turns greedy decoding into sampling, with a stream of random numbers for each prompt.

    The argmax of logits plus Gumbel noise is a sample of their softmax (Gumbel-max trick). A prompt draws
    from a stream of its own, so a resumed run, which fills its batches differently, draws the same.

    Args:
        decoding: Temperature and nucleus of all prompts.
        seeds: One for each prompt of the batch.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]):
        self._temperature = decoding.temperature
        self._nucleus = TopPLogitsWarper(decoding.top_p)
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = self._nucleus(input_ids, scores.float() / self._temperature)
        draws = [torch.empty(scores.size(1)).exponential_(generator=stream) for stream in self._streams]
        return scores - torch.stack(draws).to(scores.device).log()  # -log of an exponential is Gumbel


class ThinkingLimit(StoppingCriteria):
    """Ends the responses that still think after so many new tokens.

    Args:
        tokenizer: The tokenizer of the model.
        prompts: Token ids of each prompt, without padding.
        max_thinking_tokens: The limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_thinking_tokens: int):
        self._tokenizer, self._prompts = tokenizer, prompts
        self._start = max(map(len, prompts))
        self._end = self._start + max_thinking_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        ended = torch.zeros(input_ids.size(0), dtype=torch.bool)
        if input_ids.size(1) == self._end:
            responses = input_ids[:, self._start :].tolist()
            ended = torch.tensor(
                [is_thinking(self._tokenizer, *pair) for pair in zip(self._prompts, responses, strict=True)]
            )
        return ended.to(input_ids.device)
