"""What an evaluation run holds: the record of what was measured, and one item per question or pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from edit_trl.common.hub_ids import HubDataset
from edit_trl.data.answers import VERIFIER_VERSION, Verdict

FORMAT = 1
"""The format of the two files. Increase this when an older reader would misread them."""

RunKind = Literal["evaluate", "suite"]

Span = Annotated[list[int], 2]
"""[start, end) characters."""


class Sample(TypedDict):
    """One response to a prompt.

    `verdict` and `value` come from strict answer extraction, `lenient_*` from lenient extraction. `span` and
    `lenient_span` are the [start, end) characters of the answer in the response, or None. `tokens` is the
    number of generated tokens, EOS included; `cut_off` is true if there was no EOS before the limit.

    Where votes have weights, `weight` is that of the sample, None if it has none (see
    `edit_trl.evaluation.accuracy.votes`), and `weight_tokens` is the number of tokens that were run to find it.
    """

    response: str
    verdict: Verdict
    value: str | None
    span: Span | None
    lenient_verdict: Verdict
    lenient_value: str | None
    lenient_span: Span | None
    cut_off: bool
    tokens: int
    weight: NotRequired[float | None]
    weight_tokens: NotRequired[int]


class EvaluateItem(TypedDict):
    """A question and the responses of the model.

    `prompt` is the text or the messages without a chat template, so that models can be compared. `verdict`
    and `value` are those that the vote of the samples chose; `cut_off` is the number of samples cut off.

    Where votes have weights, `majority_verdict` and `majority_value` are those of the majority of the same samples, and
    `no_weight` is whether no sample with an answer has any weight, so that the majority decided.
    """

    task: str
    id: str
    prompt: str | list[dict[str, Any]]
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
    majority_verdict: NotRequired[Verdict]
    majority_value: NotRequired[str | None]
    no_weight: NotRequired[bool]


class Logps(TypedDict):
    """Mean log-probabilities per token, in nats, of each chain and of its key tokens (None without any)."""

    chosen: float
    rejected: float
    chosen_key: float | None
    rejected_key: float | None


class WrongTurn(TypedDict):
    """The first token of the correct chain that greedy decoding would not generate.

    [`start`, `end`) are its characters in the chain, `token` is its text, `instead` the text of the token that the
    model prefers, `logp` the log-probability of the chain's token, `at_key` whether it is a key token.
    """

    start: int
    end: int
    token: str
    instead: str
    logp: float
    at_key: bool


Branch = Literal["right", "wrong", "neither"]


class Continuation(TypedDict):
    """The greedy continuation of the shared beginning of both chains.

    `branch` tells with the next token of which chain it begins.
    """

    response: str
    branch: Branch
    verdict: Verdict
    value: str | None
    cut_off: bool


class TokenLogps(TypedDict):
    """[start, end, log-probability] of each token of a chain; tokens outside the text have an empty span."""

    chosen: list[Annotated[list[float], 3]]
    rejected: list[Annotated[list[float], 3]]


class SuiteItem(TypedDict):
    """A dual CoT and the scores of the model.

    `chosen` and `rejected` are the texts of the chains; spans are [start, end) characters in them. `margin` is
    `logps.chosen - logps.rejected`, and `preferred` is whether it is positive. `key_margin` and `key_preferred` are the
    same over key tokens, and None if one side has none. `greedy` is None if nothing was generated.
    """

    task: str
    id: str
    prompt: str | list[dict[str, Any]]
    chosen: str
    rejected: str
    answer: str | None
    mistake: list[str] | None
    source: str | None
    chosen_key_spans: list[Span]
    rejected_key_spans: list[Span]
    logps: Logps
    margin: float
    preferred: bool
    key_margin: float | None
    key_preferred: bool | None
    first_wrong: WrongTurn | None
    greedy: Continuation | None
    tokens: TokenLogps


Item = EvaluateItem | SuiteItem

ITEMS: dict[str, type] = {"evaluate": EvaluateItem, "suite": SuiteItem}
"""What an item is, by kind of run."""


@dataclass(frozen=True)
class RunRecord:
    """What was measured, on which data and with which settings.

    Attributes:
        kind: `evaluate` or `suite`.
        name: The name of the run in tables and charts.
        model: The model: a path, a Hub id or a name at an endpoint.
        model_hash: A hash of the weights, which tells models of the same path apart.
        settings: Everything else on which the items depend. A run is resumed only with the same settings.
        tasks: The version of each task.
        data_hash: A hash of the questions or pairs, prompts included.
        recipe_hash: A hash of the options.
        seed: The seed of sampling and of the choice of items.
        git_revision: The git revision of the working directory; None outside a repository.
        verifier: The version of the answer check.
        edit_trl: The version of the package.
        format: The format of the files.
        created: When the run started, UTC, ISO 8601.
        finished: When the run finished; None before.
        seconds: How long the run took, over all its starts.
        items: The number of items.
        scores: The scores by name, over all items; None where no item has the score.
        intervals: The 95% confidence interval [low, high] of some scores.
        groups: For `task`, `mistake` and `source`, the scores of each group and its number of `items`.
        hub_datasets: The dataset of each task whose questions are a whole split of a dataset on the Hub.
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
    intervals: dict[str, Annotated[list[float], 2]] = field(default_factory=dict)
    groups: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    hub_datasets: dict[str, HubDataset] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: Its folder.
        record: What was measured.
        items: The items, in the order of the data; see `EvaluateItem` and `SuiteItem`.
    """

    path: Path
    record: RunRecord
    items: list[Any]


def key_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return the task and the id of an item, which identify it."""
    return item["task"], item["id"]


def first_of_each_task(entries: Iterable[Any], limit: int | None) -> list[Any]:
    """Return the first entries of each `task`, at most `limit`; all of them if it is None."""
    counts: Counter[str] = Counter()
    first = []
    for entry in entries:
        counts[entry.task] += 1
        if limit is None or counts[entry.task] <= limit:
            first.append(entry)
    return first


def name_items(keys: Iterable[tuple[str | None, str]], most: int = 5) -> str:
    """Name the first items of some in a message, as "task/id, task/id and 3 more"; a task may be None."""
    names = [f"{task}/{name}" if task else name for task, name in keys]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
