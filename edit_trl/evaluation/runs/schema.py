"""What an evaluation run holds: the record of what was measured, and one item per question or pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

from edit_trl.data.answers import VERIFIER_VERSION, Verdict

FORMAT = 1
"""Of the two files. One more whenever an older reader would misread them."""

RunKind = Literal["evaluate", "suite"]


class Sample(TypedDict):
    """One response to a prompt.

    `verdict` and `value` are of strict extraction, `lenient_*` of lenient; `span` and `lenient_span` are the
    [start, end) characters of the answer in the response, or None. `tokens` counts the generated ones, EOS
    included; `cut_off` says that there was no EOS before the limit.
    """

    response: str
    verdict: Verdict
    value: str | None
    span: list[int] | None
    lenient_verdict: Verdict
    lenient_value: str | None
    lenient_span: list[int] | None
    cut_off: bool
    tokens: int


class EvaluateItem(TypedDict):
    """A question and what the model made of it.

    `prompt` is what was asked before any chat template (text, or messages), so that models can be compared;
    `verdict` and `value` are the majority's over the samples; `cut_off` counts samples.
    """

    task: str
    id: str
    prompt: str | list[dict[str, str]]
    answer: str
    answer_type: str
    mistake: list[str] | None
    source: str | None
    verdict: Verdict
    value: str | None
    lenient_verdict: Verdict
    lenient_value: str | None
    cut_off: int
    samples: list[Sample]


class Logps(TypedDict):
    """Log-probabilities a token, in nats, of whole chains and of their key tokens (None without any)."""

    chosen: float
    rejected: float
    chosen_key: float | None
    rejected_key: float | None


class WrongTurn(TypedDict):
    """The first token of the correct chain that greedy decoding would not have written.

    `start` and `end` are its characters in the chain, `token` its text, `instead` what the model prefers,
    `logp` the log-probability of the chain's token, `at_key` whether it is a key token.
    """

    start: int
    end: int
    token: str
    instead: str
    logp: float
    at_key: bool


class Continuation(TypedDict):
    """What the model writes after the prefix that both chains share.

    `branch` says which of the two chains' next token it takes first.
    """

    response: str
    branch: Literal["right", "wrong", "neither"]
    verdict: Verdict
    value: str | None
    cut_off: bool


class TokenLogps(TypedDict):
    """[start, end, log-probability] of each token of a chain; an empty span is outside the text (EOS)."""

    chosen: list[list[float]]
    rejected: list[list[float]]


class SuiteItem(TypedDict):
    """A dual CoT and what the model thinks of it.

    `chosen` and `rejected` are the chains' texts; spans are [start, end) characters in them. `margin` is
    `logps.chosen - logps.rejected`, `preferred` whether it is positive, and likewise on key tokens, None
    where one side has none. `greedy` is None where nothing was generated.
    """

    task: str
    id: str
    prompt: str | list[dict[str, str]]
    chosen: str
    rejected: str
    answer: str | None
    mistake: list[str] | None
    source: str | None
    chosen_key_spans: list[list[int]]
    rejected_key_spans: list[list[int]]
    logps: Logps
    margin: float
    preferred: bool
    key_margin: float | None
    key_preferred: bool | None
    first_wrong: WrongTurn | None
    greedy: Continuation | None
    tokens: TokenLogps


Item = EvaluateItem | SuiteItem

_ITEM_KEYS = {"evaluate": EvaluateItem.__annotations__.keys(), "suite": SuiteItem.__annotations__.keys()}


@dataclass(frozen=True)
class RunRecord:
    """What was measured, and with what.

    Attributes:
        kind: `evaluate` or `suite`.
        name: What tables and charts call the run.
        model: Path, Hub id or name at an endpoint.
        model_hash: Tells the weights from others of the same path.
        settings: Everything else that decides what an item holds. A run is gone on with only if it is the
            same.
        tasks: Each task and its version.
        data_hash: Of the questions or pairs, prompts included.
        recipe_hash: Of the options.
        seed: Of sampling, and of the choice of items.
        git_revision: Of the folder it ran in; None outside a repository.
        verifier: Version of the answer check.
        edit_trl: Version of the package.
        format: Of the files.
        created: When it began, UTC, ISO 8601.
        finished: When it ended; None while it has not.
        seconds: How long it took, over all its starts.
        items: How many.
        scores: By name, over all items; None where no item has the score.
        intervals: The 95% confidence interval [low, high] of some scores.
        groups: `task`, `mistake` and `source`: name -> scores, with `items`.
    """

    kind: RunKind
    name: str
    model: str
    model_hash: str
    settings: dict[str, Any]
    tasks: dict[str, str]
    data_hash: str
    recipe_hash: str = ""
    seed: int = 0
    git_revision: str | None = None
    verifier: str = VERIFIER_VERSION
    edit_trl: str = version("edit_trl")
    format: int = FORMAT
    created: str = ""
    finished: str | None = None
    seconds: float = 0.0
    items: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A finished run, read.

    Attributes:
        path: Its folder.
        record: What was measured.
        items: In the order of the data; see `EvaluateItem` and `SuiteItem`.
    """

    path: Path
    record: RunRecord
    items: list[Any]


def key_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """What an item is known by: its task and id."""
    return item["task"], item["id"]
