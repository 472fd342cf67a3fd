"""Paired suites: whether a model prefers the correct to the wrong chain of the same question.

case -> one forward for both chains (tree layout) -> log-probabilities and the first wrong turn
     -> the greedy continuation of their shared beginning -> an item
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edit_trl.data.row import rows_of
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import complete_items
from edit_trl.evaluation.runs.schema import SuiteItem
from edit_trl.evaluation.runs.scores import run_scores
from edit_trl.evaluation.suite.cases import SuiteCase, cases_of
from edit_trl.evaluation.suite.items import graded_again

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.key_steps import KeyStepMethod
    from edit_trl.models.pairs.scoring import Layout

SUITE_VERSION = "1"
"""Increase this when the scores of a case change."""


@dataclass(frozen=True)
class SuiteResult:
    """The scores of a model on a suite; `edit_trl.evaluation.runs.scores` defines them.

    Attributes:
        items: One item per pair, in the order of the dataset; see `SuiteItem`.
        scores: The scores by name, over all pairs; None where no pair has the score.
        intervals: The 95% bootstrap interval [low, high] of each score.
        groups: For `task`, `mistake` and `source`, the scores of each group and its number of `items`.
        left_out: Number of rows that have only a correct chain.
        seconds: Wall-clock time.
    """

    items: list[SuiteItem]
    scores: dict[str, float | None]
    intervals: dict[str, list[float]]
    groups: dict[str, dict[str, dict[str, float | None]]]
    left_out: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as values that JSON can hold."""
        return asdict(self)


def evaluate_suite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | Sequence[Mapping[str, Any]],
    *,
    key_step_method: KeyStepMethod = "words",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    layout: Layout = "auto",
    greedy: bool = True,
    max_new_tokens: int = 256,
    limit: int | None = None,
    progress: bool = True,
) -> SuiteResult:
    """Measure whether a model prefers correct chains to wrong ones, and where it would go wrong itself.

    The mode and the settings of the model and the random state are restored afterwards.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer, which must be a fast one.
        dataset: Dual CoTs; a row with several wrong chains makes several cases.
        key_step_method: How key steps are found.
        chat_template_kwargs: Values of the chat template's variables, such as {"enable_thinking": False}. Those of
            a row win.
        batch_size: Number of pairs per forward.
        layout: `tree`, `padded`, or `auto`: the tree if the model supports it.
        greedy: Whether the model also continues the shared beginning of both chains.
        max_new_tokens: Maximum number of tokens of this continuation.
        limit: The most pairs to score, from the beginning of the dataset.
        progress: Whether to show a progress bar.

    Returns:
        The items and their scores, overall and by group.

    Raises:
        InputError: See `cases_of`; or an option is out of range.
        FloatingPointError: A log-probability is not finite; names the row.
    """
    from edit_trl.evaluation.suite.model_scorer import ModelScorer
    from edit_trl.models.loading import positions_of

    started = time.perf_counter()
    rows = list(rows_of(dataset)) if hasattr(dataset, "column_names") else dataset
    length = max_new_tokens if greedy else 0
    cases, left_out = cases_of(
        rows,
        tokenizer,
        key_step_method=key_step_method,
        chat_template_kwargs=chat_template_kwargs,
        positions=positions_of(model.config),
        max_new_tokens=length,
        limit=limit,
    )
    scorer = ModelScorer(model, tokenizer, cases, batch_size=batch_size, layout=layout, max_new_tokens=length)
    items = score_cases(cases, scorer, progress=progress)
    return SuiteResult(items, *run_scores(items, "suite"), left_out, time.perf_counter() - started)


class CaseScorer(Protocol):
    """Scores cases in batches."""

    def plan(self) -> list[list[int]]:
        """Plan the batches, as indexes of cases; a resumed run plans the same batches."""
        ...

    def run(self, batches: Sequence[list[int]]) -> Iterator[list[SuiteItem]]:
        """Score some of the planned batches."""
        ...


def score_cases(
    cases: Sequence[SuiteCase], scorer: CaseScorer, *, folder: RunFolder | None = None, progress: bool = True
) -> list[SuiteItem]:
    """Score the cases of a suite, except for those whose items the folder already holds; see `complete_items`."""
    return complete_items(cases, scorer.plan(), scorer.run, graded_again, "scoring", "pairs", folder, progress)
