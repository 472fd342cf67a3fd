"""How responses are drawn, and the protocol of a generator that draws them; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol, get_args

from edit_trl.common.checks import at_least, not_negative, share
from edit_trl.common.errors import InputError
from edit_trl.common.options import Options, nearest

# In bfloat16, the cache of a token takes 23 KB for a model of 135 M parameters, and 131 KB for one of 8 B. On a CPU,
# batches of 256 responses were a sixth faster than batches of 128. Most responses end long before a high limit.
_TOKENS_AT_ONCE, _FEWEST_AT_ONCE, _MOST_AT_ONCE = 32_768, 16, 256

Batching = Literal["auto", "padded", "continuous", "vllm"]
BATCHING: Mapping[str, str] = {
    "auto": "batched in the way that is fastest here",
    "padded": "batches of prompts of similar lengths (`batching: padded`)",
    "continuous": "the scheduler of transformers (`batching: continuous`)",
    "vllm": "vLLM (`batching: vllm`)",
}
"""How responses are drawn, in the words of what is shown."""

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Decoding(Options):
    """How responses are drawn.

    Attributes:
        max_new_tokens: The length in tokens at which a response is cut off.
        temperature: 0 is greedy decoding; None, as for `top_p`, leaves it to an endpoint.
        top_p: The probability mass of nucleus sampling.
        samples: Responses per prompt; several are for a majority vote (self-consistency, arXiv 2203.11171).
        max_thinking_tokens: The length in tokens at which a response that still thinks is cut off; None for no limit
            but `max_new_tokens`.

    Raises:
        InputError: A value is out of range or has no effect, or several samples are drawn greedily, which are all
            the same.
    """

    max_new_tokens: int = 256
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    samples: int = 1
    max_thinking_tokens: int | None = None

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        limit = self.max_thinking_tokens
        yield from at_least(1, max_new_tokens=self.max_new_tokens, samples=self.samples, max_thinking_tokens=limit)
        if limit is not None and limit >= self.max_new_tokens:
            yield (
                f"`max_thinking_tokens: {limit}` has no effect with `max_new_tokens: {self.max_new_tokens}`, which "
                "limits thoughts and answer together; set it lower"
            )
        yield from not_negative(temperature=self.temperature)
        yield from share(top_p=self.top_p)
        if self.samples > 1 and self.temperature == 0:
            yield f"`samples: {self.samples}` at temperature 0 are all the same; set `temperature: 0.7`, or one"


@dataclass(frozen=True)
class Generated:
    """A response.

    Attributes:
        text: The response without special tokens; its thoughts are in the form of `edit_trl.common.thoughts`.
        tokens: How many tokens were generated, EOS included.
        cut_off: Whether no EOS token came within `max_new_tokens`, or thoughts did not end within
            `max_thinking_tokens`.
        refused: Whether the model declined to answer, or a filter broke its answer off.
        ids: The generated token ids, EOS included; None where they are not known.
    """

    text: str
    tokens: int
    cut_off: bool
    refused: bool = False
    ids: Sequence[int] | None = field(default=None, compare=False, repr=False)


class Against(NamedTuple):
    """The model that is decoded against, as a path or Hub id, and how; see `edit_trl.models.drawing.Contrast`."""

    model: str
    weight: float
    cutoff: float


class Generator(Protocol):
    """Answers prompts in batches; a batch that was interrupted is answered again as a whole."""

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Put prompts into batches, by their lengths in tokens alone.

        Returns:
            The indexes of the prompts of each batch.
        """
        ...

    def run(
        self, prompts: Sequence[Any], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """Answer some of the planned batches.

        Args:
            prompts: All prompts: token ids, or messages for an endpoint.
            batches: The batches to answer, from `plan`.

        Yields:
            Each batch, with the samples of each of its prompts.
        """
        ...


def pack(
    lengths: Sequence[int], new_tokens: int, *, samples: int = 1, batch_size: int | None = None
) -> list[list[int]]:
    """Put prompts into batches by their lengths alone, so that a run which is resumed has the same batches.

    Prompts of similar lengths need little padding. The longest come first, so that a run that will run out of memory
    does so at once.

    Args:
        lengths: Number of tokens of each prompt.
        new_tokens: The most tokens of a response.
        samples: Responses per prompt.
        batch_size: Responses per batch. If None, 16 to 256: as many as have 32,768 tokens together with their prompts.

    Returns:
        The indexes of the prompts of each batch; of a single prompt where its samples alone are more than fit.
    """
    batches: list[list[int]] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or len(batches[-1]) == size:  # the first prompt of a batch is its longest one
            fitting = _TOKENS_AT_ONCE // max(1, lengths[index] + new_tokens)
            fitting = min(max(fitting, _FEWEST_AT_ONCE), _MOST_AT_ONCE)
            size = max(1, (fitting if batch_size is None else batch_size) // samples)
            batches.append([])
        batches[-1].append(index)
    return batches


def check_batching(batching: str, batch_size: int | None) -> None:
    """Check the options of batching.

    Raises:
        InputError: `batching` is unknown or not installed, or `batch_size` is below 1.
    """
    problems = at_least(1, batch_size=batch_size)
    choices = get_args(Batching)
    if batching not in choices:
        hint = nearest(str(batching), choices)
        problems.append(f"`batching` must be one of {', '.join(choices)}, got {batching!r}{hint}")
    elif batching == "vllm" and find_spec("vllm") is None:
        problems.append("`batching: vllm` needs vLLM: pip install vllm; or leave `batching` out")
    if problems:
        raise InputError(problems)
