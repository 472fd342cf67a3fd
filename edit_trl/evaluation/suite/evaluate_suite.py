"""Paired suites (L3): what a model thinks of a correct and a wrong chain of the same question.

case -> one forward for both chains (tree layout) -> log-probabilities, the first wrong turn
     -> the greedy continuation of what both begin with -> an item
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tqdm.auto import tqdm

from edit_trl.data.row import rows_of
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.schema import Run, SuiteItem, key_of
from edit_trl.evaluation.runs.scores import run_scores
from edit_trl.evaluation.suite.cases import SuiteCase, cases_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.key_steps import KeyStepMethod
    from edit_trl.models.pairs.scoring import Layout

SUITE_VERSION = "1"
"""One more whenever the numbers of a case would come out otherwise."""


@dataclass(frozen=True)
class SuiteResult:
    """What a model thinks of a suite's pairs; the scores are those of `edit_trl.evaluation.runs.scores`.

    Attributes:
        items: One a pair, in the order of the dataset; see `SuiteItem`.
        scores: By name, over all pairs; None where no pair has the score.
        intervals: Their 95% bootstrap intervals.
        groups: `task`, `mistake` and `source`: name -> scores, with `items`.
        left_out: Rows that are correct chains alone.
        seconds: Wall-clock time.
    """

    items: list[SuiteItem]
    scores: dict[str, float | None]
    intervals: dict[str, list[float]]
    groups: dict[str, dict[str, dict[str, float | None]]]
    left_out: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def evaluate_suite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | Sequence[Mapping[str, Any]],
    *,
    key_step_method: KeyStepMethod = "words",
    batch_size: int = 8,
    layout: Layout = "auto",
    greedy: bool = True,
    max_new_tokens: int = 256,
    limit: int | None = None,
    progress: bool = True,
) -> SuiteResult:
    """See whether a model prefers correct chains to wrong ones, and where it would go wrong itself.

    The model's mode, its settings and the random state are left as they were found.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer, a fast one.
        dataset: Dual CoTs; a row with several wrong chains makes several cases.
        key_step_method: How key steps are found.
        batch_size: Pairs a forward.
        layout: `tree`, `padded`, or `auto`: the tree where the model can take one.
        greedy: Also let the model go on from what both chains begin with.
        max_new_tokens: Where it is cut off.
        limit: Only the first so many pairs.
        progress: Show a progress bar.

    Returns:
        Items and their scores, overall and by group.

    Raises:
        InputError: See `cases_of`; or an option out of range.
        FloatingPointError: A log-probability that is not finite; names the row.
    """
    from edit_trl.evaluation.suite.model_scorer import ModelScorer, positions_of

    started = time.perf_counter()
    rows = list(rows_of(dataset)) if hasattr(dataset, "column_names") else dataset
    cases, left_out = cases_of(
        rows,
        tokenizer,
        key_step_method=key_step_method,
        positions=positions_of(model.config),
        max_new_tokens=max_new_tokens if greedy else 0,
        limit=limit,
    )
    scorer = ModelScorer(
        model,
        tokenizer,
        cases,
        batch_size=batch_size,
        layout=layout,
        max_new_tokens=max_new_tokens if greedy else 0,
    )
    items = score_cases(cases, scorer, progress=progress)
    return SuiteResult(items, *run_scores(items, "suite"), left_out, time.perf_counter() - started)


class CaseScorer(Protocol):
    """Makes items of cases, a batch at a time."""

    def plan(self) -> list[list[int]]:
        """The batches, as indexes of cases; the same however often a run is taken up."""
        ...

    def run(self, batches: Sequence[list[int]]) -> Iterator[list[SuiteItem]]:
        """The items of some of the planned batches."""
        ...


def score_cases(
    cases: Sequence[SuiteCase],
    scorer: CaseScorer,
    *,
    folder: RunFolder | None = None,
    progress: bool = True,
) -> list[SuiteItem]:
    """Make the items of a suite.

    Args:
        cases: The suite.
        scorer: Who makes them.
        folder: Where items are kept as they come, and finished ones are taken from.
        progress: Show a progress bar.

    Returns:
        Items in the order of the cases.
    """
    done = dict(folder.done) if folder else {}
    keys = [(case.task, case.id) for case in cases]
    # A batch is run as a whole: in another batch, a number may differ in its last digits.
    left = [batch for batch in scorer.plan() if any(keys[index] not in done for index in batch)]
    count = sum(map(len, left))
    bar = tqdm(
        total=len(cases),
        initial=len(cases) - count,
        desc="Scoring",
        unit="pair",
        disable=not progress or not count,
    )
    if folder:
        folder.start()
    with bar:
        for items in scorer.run(left):
            done |= {key_of(item): item for item in items}
            if folder:
                folder.append(items)
            bar.update(len(items))
    return [done[key] for key in keys]


def finish_suite(folder: RunFolder, cases: Sequence[SuiteCase]) -> Run:
    """Write the scores of a run whose items are all there."""
    order = [(case.task, case.id) for case in cases]
    return folder.finish(order, *run_scores([folder.done[key] for key in order], "suite"))
