"""Views of dual CoTs: the rows that each system of the paper trains on.

A view is a pure function from rows to rows. A view and a configuration of the trainer make a system: EDIT, a
baseline or an ablation (arXiv 2405.19737; `recipes/baselines/`). Where the paper is silent, a view follows the authors'
code (github.com/C-W-D/CasCoD, commit 452b26d, `src/datasets/bbh_dataset.py` and `src/utils/method_utils.py`), with two
differences: the label of a task is the chain's whole answer statement ("Therefore, the answer is 3."), so that all
students' answers are read alike, and the end of a text is trained.

| view             | rows                                                                              |
|------------------|-----------------------------------------------------------------------------------|
| `pairs`          | the pairs as they are                                                             |
| `rectified`      | D⁻: pairs of a wrong chain and its rectification                                  |
| `corrupted`      | D⁺: pairs of a correct chain and its corruption                                   |
| `chosen`         | each correct chain once, alone: Std-CoT with rectified chains (RWC)               |
| `rejected`       | each wrong chain once, alone: for a model to decode against (arXiv 2309.09117)    |
| `unrectified`    | the chains that were correct from the start: Std-CoT                              |
| `repeat_sampling`| the unrectified chains, repeated to the number of all correct and wrong chains    |
| `dual_cot_sft`   | correct chains, and wrong ones after a prompt marked `[Counterfactual]`           |
| `mt_cot`         | MT-CoT: two tasks with a marker each, the whole chain and the answer              |
| `sbs`            | Distilling step-by-step: two tasks, the rationale and the answer                  |
| `scott`          | SCOTT: correct chains marked `[Factual]`, and answers marked `[Counterfactual]`   |
| `critique`       | a wrong chain in the prompt -> what is wrong with it, then the correct chain      |
| `lema`           | correct chains, and the rows of `critique`                                        |
| `check`          | a chain in the prompt -> "Yes" or "No", for both chains of each pair              |

Rows of a chain alone have `rejected: []`. Their `chosen_key_spans` are the part with a weight of its own:
with `key_step_method: spans` it is weighted by `chosen_key_weight`, and the rest by `chosen_context_weight`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.options import nearest
from edit_trl.data.mistake_views import checks, critiques, lema
from edit_trl.data.row import (
    SPAN_COLUMNS,
    chain_text,
    has_several_rejected,
    is_chosen_alone,
    refuse_splits,
    rows_of,
    with_prompts,
)
from edit_trl.data.row_rewriting import (
    Row,
    answer_statement,
    answer_task,
    chosen_alone,
    marked,
    refuse_several_turns,
    rejected_alone,
    renamed,
    task,
)
from edit_trl.data.view_mixture import mixed, weight_problems, weighted_rows

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

View = Literal[
    "pairs",
    "rectified",
    "corrupted",
    "chosen",
    "rejected",
    "unrectified",
    "repeat_sampling",
    "dual_cot_sft",
    "mt_cot",
    "sbs",
    "scott",
    "critique",
    "lema",
    "check",
]

PAIR_VIEWS: tuple[View, ...] = ("pairs", "rectified", "corrupted")
"""The views whose rows are pairs; those of the others are single chains."""
WEIGHTED_VIEWS: tuple[View, ...] = ("mt_cot", "sbs", "scott")
"""The views that set spans, for `key_step_method: spans`."""

RECTIFIED_SOURCES = ("rectified", "rectified_minimal", "on_policy")
"""`source` of pairs that began as a wrong chain, which the teacher rectified (see `edit_trl.teachers`)."""
CORRUPTED_SOURCES = ("corrupted", "procedural")
"""`source` of pairs that began as a correct chain, into which a mistake was put."""

FACTUAL, COUNTERFACTUAL = "[Factual]", "[Counterfactual]"
EXPLANATION, PREDICTION = "[Explanation Generation]:", "[Answer Prediction]:"
RATIONALE, ANSWER = "Rationale:", "Answer:"


def select_rows(
    dataset: Dataset,
    view: View = "pairs",
    *,
    views: Mapping[str, float] | None = None,
    mistake: Sequence[str] | None = None,
    rows: int | None = None,
    seed: int = 0,
    source: str = "dataset",
) -> Dataset:
    """Select the rows that a run trains on.

    Args:
        dataset: Validated dual CoTs.
        view: The view of them.
        views: Instead of one view, a mixture: the weight of each by its name. A weight of 0.5 draws half of the view's
            rows, one of 2 repeats each once. Rows of pairs and of a chain alone can be mixed.
        mistake: Keep only pairs with one of these kinds of mistake (the paper's table 7). Views of single
            chains ignore it.
        rows: Size of a random sample of the view's rows; None for all rows.
        seed: Seed of the sample.
        source: Name of the dataset in messages.

    Raises:
        InputError: No pair has a kind of mistake, or the view has no rows or too few; a view or a weight is none, or
            the views cannot be mixed.
    """
    refuse_splits(dataset)
    dataset = with_prompts(dataset.with_format(None))  # a format is a way to look at the rows
    names = list(views or [view])
    if views is not None and view != "pairs":
        raise InputError(f"`view` ({view!r}) and `views` both say which rows to select; leave one out")
    if views is not None:
        dataset = _mixture(dataset, views, mistake, seed, source)
    else:
        dataset = _viewed(dataset, view, mistake, source)
    if rows is None:
        return dataset
    if not 1 <= rows <= len(dataset):
        filtered = mistake and set(names) & {*PAIR_VIEWS}
        selection = f"view {', '.join(names)}" + (f", mistake {', '.join(mistake)}" if filtered else "")
        raise InputError(
            f"`rows: {rows}`, but {source} has {len(dataset)} rows here ({selection}); ask for 1 to {len(dataset)}"
        )
    return dataset.select(sorted(random.Random(f"rows {seed}").sample(range(len(dataset)), rows)))


def apply_view(rows: Iterable[Mapping[str, Any]], view: View, source: str = "dataset") -> list[Row]:
    """Return the rows of a view of validated dual CoTs; messages name the rows by their `source`.

    Raises:
        InputError: An unknown view, or one that leaves no row.
    """
    if view not in _VIEWS:
        raise InputError(f"unknown view {view!r}{nearest(view, _VIEWS)}; choose one of {', '.join(_VIEWS)}")
    rows = [dict(row) for row in rows]
    selected = list(_VIEWS[view](rows))
    if not selected:
        counts = Counter(row.get("source") or "no source" for row in rows)
        by_source = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        raise InputError(
            f"{source}: the view {view!r} leaves none of {len(rows)} rows ({_NEEDS[view]}; by `source`: {by_source})"
        )
    if view in WEIGHTED_VIEWS:
        _warn_of_unanswered(rejected_alone(rows) if view == "scott" else chosen_alone(rows), view, source)
    return selected


# --- Views -----------------------------------------------------------------------------------------


def _pairs_from(sources: Sequence[str]) -> Callable[[list[Row]], Iterator[Row]]:
    """Return a view of the pairs whose `source` is one of these."""
    return lambda rows: (row for row in rows if not is_chosen_alone(row) and row.get("source") in sources)


def _unrectified(rows: list[Row]) -> Iterator[Row]:
    """Std-CoT on what the teacher got right by itself: EDIT without RWC."""
    return chosen_alone(row for row in rows if row.get("source") not in RECTIFIED_SOURCES)


def _repeat_sampling(rows: list[Row]) -> Iterator[Row]:
    """Std-CoT with as many chains as EDIT sees, all of them the teacher's own correct ones.

    Several samples of a question are several rows; where there are fewer than needed, they are repeated.
    """
    samples = list(_unrectified(rows))
    count = sum(1 for _ in chosen_alone(rows)) + sum(1 for _ in rejected_alone(rows))
    for number in range(count if samples else 0):
        row = samples[number % len(samples)]
        repetition = number // len(samples)
        yield renamed(row, f"again {repetition}") if repetition else row


def _dual_cot_sft(rows: list[Row]) -> Iterator[Row]:
    """SFT on both chains of a pair, the wrong one after a marked prompt."""
    yield from chosen_alone(rows)
    for row in rejected_alone(rows):
        yield renamed(marked(row, COUNTERFACTUAL), "counterfactual")


def _mt_cot(rows: list[Row]) -> Iterator[Row]:
    """MT-CoT (Li et al. 2022, arXiv 2210.06726): two tasks, the whole chain and the answer.

    `LLMMTCoTDataset`: L = (1 - a) L_explanation + a L_answer with a = 0.5. Here `chosen_key_weight` is the
    weight of the answer and `chosen_context_weight` that of the explanation.
    """
    for row in chosen_alone(rows):
        if (prediction := answer_task(row, PREDICTION)) is not None:
            yield task(row, EXPLANATION)
            yield prediction


def _sbs(rows: list[Row]) -> Iterator[Row]:
    """Distilling step-by-step (Hsieh et al. 2023, arXiv 2305.02301, section 3.2): rationale and label.

    `LLMMTReDataset` and Google's `TaskPrefixTrainer`: L = a L_label + (1 - a) L_rationale with a = 0.5. Here
    `chosen_key_weight` is the weight of the label and `chosen_context_weight` that of the rationale.

    Raises:
        InputError: A chain has several turns.
    """
    for row in chosen_alone(rows):
        refuse_several_turns(row, "sbs")
        chain, label = chain_text(row["chosen"]), answer_task(row, ANSWER)
        if label is not None and (rationale := chain[: answer_statement(row, chain)[0]].rstrip()):
            yield task(row, RATIONALE, rationale)
            yield label


def _scott(rows: list[Row]) -> Iterator[Row]:
    """SCOTT (Wang et al. 2023, arXiv 2305.01879, section 3.2).

    Correct chains after `[Factual]` are trained as a whole. Of wrong chains after `[Counterfactual]` only the
    answer is trained, with the chain before it as context (`LLMSCOTTDataset`). Both are key, so with
    `chosen_context_weight: 0` and `normalization: key_tokens` both losses are means over the trained tokens,
    added as in the authors' code.
    """
    for row in chosen_alone(rows):
        yield marked(row, FACTUAL) | {"chosen_key_spans": [[0, len(chain_text(row["chosen"]))]]}
    for row in rejected_alone(rows):
        chain = chain_text(row["chosen"])
        if (statement := answer_statement(row, chain)) is not None:
            spans = {"chosen_key_spans": [[statement[1], len(chain)]]}
            yield renamed(marked(row, COUNTERFACTUAL), "counterfactual") | spans


_VIEWS = {
    "pairs": iter,
    # D⁻ and D⁺ of the paper's table 2: the teacher's wrong chains rectified, and its correct chains corrupted.
    "rectified": _pairs_from(RECTIFIED_SOURCES),
    "corrupted": _pairs_from(CORRUPTED_SOURCES),
    # Std-CoT (Magister et al. 2023, arXiv 2212.08410) on the correct chains, original and rectified.
    "chosen": chosen_alone,
    "rejected": rejected_alone,
    "unrectified": _unrectified,
    "repeat_sampling": _repeat_sampling,
    "dual_cot_sft": _dual_cot_sft,
    "mt_cot": _mt_cot,
    "sbs": _sbs,
    "scott": _scott,
    "critique": critiques,
    "lema": lema,
    "check": checks,
}
_NEEDS = dict.fromkeys(_VIEWS, "it takes correct chains") | {
    "rectified": f"it takes pairs whose `source` is {', '.join(RECTIFIED_SOURCES)}",
    "corrupted": f"it takes pairs whose `source` is {', '.join(CORRUPTED_SOURCES)}",
    "unrectified": f"it takes chains whose `source` is none of {', '.join(RECTIFIED_SOURCES)}",
    "repeat_sampling": f"it takes chains whose `source` is none of {', '.join(RECTIFIED_SOURCES)}",
    "mt_cot": "it takes chains that state their answer",
    "sbs": "it takes chains that state their answer",
    "rejected": "it takes pairs",
    "critique": "it takes pairs",
    "check": "it takes pairs",
}


def _warn_of_unanswered(rows: Iterator[Row], view: View, source: str) -> None:
    answered = [answer_statement(row, chain_text(row["chosen"])) is not None for row in rows]
    if not all(answered):
        logger.warning(
            f"{source}: {answered.count(False)} of {len(answered)} chains state no answer that could "
            f"be found; the view {view!r} leaves them out"
        )


def check_views(views: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a mixture of views: see `select_rows`."""
    for name in views:
        if name not in _VIEWS:
            yield f"`views`: unknown view {name!r}{nearest(str(name), _VIEWS)}; choose of {', '.join(_VIEWS)}"
    yield from weight_problems(views)
    pairs, weighted = ([name for name in views if name in kinds] for kinds in (PAIR_VIEWS, WEIGHTED_VIEWS))
    if pairs and weighted:
        yield f"`views`: {weighted[0]!r} weights parts of single chains, which pairs ({pairs[0]!r}) have no place for"


# --- Datasets --------------------------------------------------------------------------------------


def _with_mistake(dataset: Dataset, wanted: Sequence[str], source: str) -> Dataset:
    kinds = [row or [] for row in dataset["mistake"]] if "mistake" in dataset.column_names else []
    counts = Counter(kind for row_kinds in kinds for kind in row_kinds)
    unknown = [kind for kind in wanted if kind not in counts]
    if unknown:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
        raise InputError(
            f"{source}: no pair has the mistake {', '.join(map(repr, unknown))}"
            f"{nearest(unknown[0], counts)}; there are: {listed or 'none, `mistake` is empty or missing'}"
        )
    return dataset.select([i for i, row_kinds in enumerate(kinds) if set(row_kinds) & set(wanted)])


def _viewed(dataset: Dataset, view: View, mistake: Sequence[str] | None, source: str) -> Dataset:
    if mistake and view in PAIR_VIEWS:
        dataset = _with_mistake(dataset, mistake, source)
    return dataset if view == "pairs" else _dataset(apply_view(rows_of(dataset), view, source), dataset)


def _mixture(
    dataset: Dataset, views: Mapping[str, float], mistake: Sequence[str] | None, seed: int, source: str
) -> Dataset:
    raise_problems(check_views(views), source)
    rows = {
        view: weighted_rows(list(rows_of(_viewed(dataset, view, mistake, source))), view, weight, seed)
        for view, weight in views.items()
    }
    counts = ", ".join(f"{len(members)} of {view} (weight {views[view]:g})" for view, members in rows.items())
    logger.warning(f"{source}: rows by view: {counts}")
    return _dataset(mixed(rows), dataset)


def _dataset(rows: list[Row], dataset: Dataset) -> Dataset:
    """Return a dataset of the rows, with the columns of the dataset that they come from."""
    from datasets import Dataset, Features, List, Value

    features = dict(dataset.features)
    if any(map(has_several_rejected, rows)) and features["rejected"] != List(features["chosen"]):
        features["rejected"] = List(features["rejected"])
        features |= {name: List(features[name]) for name in SPAN_COLUMNS if name in features}
    elif all(is_chosen_alone(row) for row in rows):
        features["rejected"] = List(features["chosen"])
        features["chosen_key_spans"] = List(List(Value("int64")))
        features.pop("rejected_key_spans", None)
    return Dataset.from_list([{name: row.get(name) for name in features} for row in rows], Features(features))
