"""Votes on the answer to a question: each of several responses votes for its own answer, with a weight.

| votes        | weight of a response                                                                            |
|--------------|-------------------------------------------------------------------------------------------------|
| `majority`   | 1 (self-consistency, arXiv 2203.11171)                                                          |
| `likelihood` | exp of its mean log-probability per token: the normalized weighted sum of that paper (eq. 1, table 1) |
| `checked`    | P("Yes") / (P("Yes") + P("No")), when the student is asked whether it is right (arXiv 2408.15240) |

The answer with the largest sum of weights wins, the earliest of equals. A response without an answer has no vote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from edit_trl.common.options import nearest
from edit_trl.data.answers import Verdict

Votes = Literal["majority", "likelihood", "checked"]

Vote = tuple[Verdict, str | None]
"""The verdict on an answer, and the answer; None for none."""

_NEEDS = {
    "likelihood": "the log-probability of every token of a response",
    "checked": "the log-probabilities of both verdicts as the answer to another prompt",
}


class Weight(NamedTuple):
    """The weight of a response, or None for a response without a vote, and the tokens that were run to find it."""

    value: float | None = None
    tokens: int = 0


def count_votes(votes: Sequence[Vote], weights: Sequence[float | None]) -> tuple[Vote, bool]:
    """Return the vote with the largest sum of weights, the earliest of equals.

    Where no answer has any weight, each has one vote, so that the majority decides.

    Args:
        votes: The vote of each response.
        weights: Their weights; None counts as 0.

    Returns:
        The winner, which is "unparsed" where no response has an answer; and whether no answer had any weight.
    """
    weights_of: dict[Vote, list[float]] = {}
    for vote, weight in zip(votes, weights, strict=True):
        if vote[1] is not None:
            weights_of.setdefault(vote, []).append(weight or 0.0)
    if not weights_of:
        return ("unparsed", None), False
    no_weight = not any(map(any, weights_of.values()))
    # An exact sum does not depend on the order of the responses.
    total = len if no_weight else math.fsum
    return max(weights_of, key=lambda vote: total(weights_of[vote])), no_weight


def votes_problems(
    votes: Votes, samples: int, *, batching: str = "auto", engine: str = "local", at_endpoint: bool = False
) -> Iterator[str]:
    """Yield why votes have no effect, or their weights cannot be found where the model runs."""
    if votes == "majority":
        return
    choices = get_args(Votes)
    if votes not in choices:
        yield f"`votes` must be one of {', '.join(choices)}, got {votes!r}{nearest(str(votes), choices)}"
        return
    if samples == 1:
        yield f"`votes: {votes}` has no effect with `samples: 1`; set `samples: 8` and `temperature: 0.7`"
    needs = f"`votes: {votes}` needs {_NEEDS[votes]}"
    if at_endpoint:
        yield (
            f"{needs}: an endpoint would have to give them for prompts of token ids (`/completions` with `echo` and "
            "`logprobs`, as in vLLM), and `evaluate` asks `/chat/completions`. Load the model on this machine: `model` "
            "as a path or Hub id, without `base_urls`"
        )
    if batching == "vllm":
        yield f"{needs}, and vLLM keeps the model to itself; use `batching: continuous`"
    if engine == "ray":
        yield f"{needs}, which the machines of a Ray cluster do not send; leave out `engine: ray`"
