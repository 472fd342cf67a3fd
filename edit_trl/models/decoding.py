"""How responses are drawn, and what draws them (L3); needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from edit_trl.common.checks import at_least, not_negative, share
from edit_trl.common.errors import InputError
from edit_trl.common.options import nearest

Batching = Literal["auto", "padded", "continuous", "vllm"]


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn.

    Attributes:
        max_new_tokens: Where a response is cut off.
        temperature: 0 is greedy.
        top_p: Nucleus sampling.
        samples: Responses a prompt; more than one is for a majority vote (self-consistency).

    Raises:
        InputError: A value out of range, or several samples of greedy decoding, which are all the same.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    def __post_init__(self) -> None:
        problems = [
            *at_least(1, max_new_tokens=self.max_new_tokens, samples=self.samples),
            *not_negative(temperature=self.temperature),
            *share(top_p=self.top_p),
        ]
        if self.samples > 1 and self.temperature == 0:
            problems.append(
                f"`samples: {self.samples}` at temperature 0 are all the same; set `temperature: 0.7`, or one"
            )
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class Generated:
    """A response.

    Attributes:
        text: Without special tokens.
        tokens: How many were generated, EOS included.
        cut_off: Whether there was no EOS within `max_new_tokens`.
    """

    text: str
    tokens: int
    cut_off: bool


class Generator(Protocol):
    """Answers prompts in batches; a batch is answered as a whole, or again."""

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """The batches, as indexes of prompts; decided by the prompts' lengths in tokens alone."""
        ...

    def run(
        self, prompts: Sequence[Any], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """Some of the planned batches, each with the samples of its prompts.

        Args:
            prompts: All prompts: token ids, or messages for an endpoint.
            batches: Which of them, as `plan` put them together.
        """
        ...


def check_batching(batching: str, batch_size: int) -> None:
    """See that both are what they may be.

    Raises:
        InputError: They are not.
    """
    problems = []
    if batching not in get_args(Batching):
        problems.append(
            f"`batching` must be one of {', '.join(get_args(Batching))}, got {batching!r}"
            + nearest(str(batching), get_args(Batching))
        )
    problems += at_least(1, batch_size=batch_size)
    if problems:
        raise InputError(problems)
