r"""Data views: the same dual CoTs as the rows that each system of the paper trains on (L1).

A view is a pure function from rows to rows. With a configuration of the trainer it is a system: EDIT, what
it is compared with, and its ablations (arXiv 2405.19737; `recipes/baselines/`). What the paper leaves open is
as in the authors' code (github.com/C-W-D/CasCoD, commit 452b26d, `src/datasets/bbh_dataset.py` and
`src/utils/method_utils.py`), with two differences: a task's label is the chain's whole answer statement
("Therefore, the answer is 3."), so that a student's answers are read as all others are, and the end of a text
is trained.

| view             | rows                                                                              |
|------------------|-----------------------------------------------------------------------------------|
| `pairs`          | the pairs as they are                                                             |
| `rectified`      | D⁻: pairs of a wrong chain and what it was mended to                              |
| `corrupted`      | D⁺: pairs of a correct chain and what it was corrupted to                         |
| `chosen`         | each correct chain once, alone: Std-CoT with rectified chains (RWC)               |
| `unrectified`    | those that were correct from the start: Std-CoT                                   |
| `repeat_sampling`| those over and over, until they are as many as all chains, wrong ones included    |
| `dual_cot_sft`   | correct chains, and wrong ones after a prompt marked `[Counterfactual]`            |
| `mt_cot`         | MT-CoT: two tasks, told apart by markers, the chain and the answer                |
| `sbs`            | Distilling step-by-step: two tasks, the rationale and the answer                  |
| `scott`          | SCOTT: correct chains marked `[Factual]`, and the answers of `[Counterfactual]` ones |

Rows of a chain alone have `rejected: []`, and what a view weighs otherwise in `chosen_key_spans`, so that
with `key_step_method: spans` the option `chosen_key_weight` is its weight and `chosen_context_weight` that of
the rest.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.options import nearest
from edit_trl.common.steps import step_start
from edit_trl.data.answers import extract_answer, infer_answer_type
from edit_trl.data.row import (
    SPAN_COLUMNS,
    chain_text,
    has_several_rejected,
    is_chosen_alone,
    pairs_of,
    rows_of,
)

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

View = Literal[
    "pairs",
    "rectified",
    "corrupted",
    "chosen",
    "unrectified",
    "repeat_sampling",
    "dual_cot_sft",
    "mt_cot",
    "sbs",
    "scott",
]

PAIR_VIEWS: tuple[View, ...] = ("pairs", "rectified", "corrupted")
"""The views whose rows are pairs; the others are of chains alone."""
WEIGHTED_VIEWS: tuple[View, ...] = ("mt_cot", "sbs", "scott")
"""The views that give spans, which `key_step_method: spans` weighs."""

RECTIFIED_SOURCES = ("rectified", "rectified_minimal", "on_policy")
"""`source` of what began as a wrong chain, which the teacher mended (see `edit_trl.teachers`)."""
CORRUPTED_SOURCES = ("corrupted", "procedural")
"""`source` of pairs that began as a correct chain, in which a mistake was made."""

FACTUAL, COUNTERFACTUAL = "[Factual]", "[Counterfactual]"
EXPLANATION, PREDICTION = "[Explanation Generation]:", "[Answer Prediction]:"
RATIONALE, ANSWER = "Rationale:", "Answer:"

Row = dict[str, Any]


def select_rows(
    dataset: Dataset,
    view: View = "pairs",
    *,
    mistake: Sequence[str] | None = None,
    rows: int | None = None,
    seed: int = 0,
    source: str = "dataset",
) -> Dataset:
    """The rows that a run trains on.

    Args:
        dataset: Validated dual CoTs.
        view: As what they are seen.
        mistake: Only pairs with one of these kinds of mistake (the paper's table 7). Views of chains alone
            are left as they are.
        rows: So many of the view's rows, drawn; None for all.
        seed: Of the draw.
        source: What messages call the dataset.

    Raises:
        InputError: A kind of mistake that no pair has, a view without rows, or fewer rows than asked for.
    """
    if mistake and view in PAIR_VIEWS:
        dataset = _with_mistake(dataset, mistake, source)
    if view != "pairs":
        dataset = _dataset(apply_view(rows_of(dataset), view, source), dataset)
    if rows is None:
        return dataset
    if not 1 <= rows <= len(dataset):
        raise InputError(
            f"`rows: {rows}`, but {source} has {len(dataset)} rows here (view {view}"
            + (f", mistake {', '.join(mistake)}" if mistake and view in PAIR_VIEWS else "")
            + "); ask for at least 1 and at most so many"
        )
    return dataset.select(sorted(random.Random(f"rows {seed}").sample(range(len(dataset)), rows)))


def apply_view(rows: Iterable[Mapping[str, Any]], view: View, source: str = "dataset") -> list[Row]:
    """The rows of a view.

    Args:
        rows: Validated dual CoTs.
        view: Its name.
        source: What messages call the rows.

    Raises:
        InputError: No such view, or none of the rows is in it.
    """
    if view not in _VIEWS:
        raise InputError(f"unknown view {view!r}{nearest(view, _VIEWS)}; choose one of {', '.join(_VIEWS)}")
    rows = [dict(row) for row in rows]
    seen = list(_VIEWS[view](rows))
    if not seen:
        counts = Counter(row.get("source") or "no source" for row in rows)
        found = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        raise InputError(
            f"{source}: the view {view!r} leaves none of {len(rows)} rows ({_NEEDS[view]}; by `source`: "
            f"{found})"
        )
    if view in WEIGHTED_VIEWS:
        _tell_unanswered(_wrong_chains(rows) if view == "scott" else _chosen(rows), view, source)
    return seen


def answer_statement(row: Mapping[str, Any], chain: str) -> tuple[int, int] | None:
    """Where a chain states its final answer.

    Args:
        row: The dual CoT; its `answer` tells the type of what is looked for.
        chain: One of its chains.

    Returns:
        The characters at which the statement ("Therefore, the answer is 3.") and the answer in it begin; None
        where no answer is found.
    """
    known = row.get("answer")
    found = extract_answer(chain, infer_answer_type(known) if known else "text")
    return None if found is None else (step_start(chain, found.start), found.start)


# --- Views -----------------------------------------------------------------------------------------


def _pairs(rows: list[Row]) -> Iterator[Row]:
    yield from rows


def _rectified(rows: list[Row]) -> Iterator[Row]:
    """D⁻ of the paper's table 2: what the teacher got wrong, and its rectification."""
    return (row for row in rows if not is_chosen_alone(row) and row.get("source") in RECTIFIED_SOURCES)


def _corrupted(rows: list[Row]) -> Iterator[Row]:
    """D⁺ of the paper's table 2: what the teacher got right, and its corruption."""
    return (row for row in rows if not is_chosen_alone(row) and row.get("source") in CORRUPTED_SOURCES)


def _chosen(rows: list[Row]) -> Iterator[Row]:
    """Std-CoT (Magister et al. 2023, arXiv 2212.08410) on the correct chains, original and rectified."""
    seen = set()
    for row in rows:
        key = _text(row["prompt"]), chain_text(row["chosen"])
        if key not in seen:
            seen.add(key)
            yield _alone(row)


def _unrectified(rows: list[Row]) -> Iterator[Row]:
    """Std-CoT on what the teacher got right by itself: EDIT without RWC."""
    return _chosen([row for row in rows if row.get("source") not in RECTIFIED_SOURCES])


def _repeat_sampling(rows: list[Row]) -> Iterator[Row]:
    """Std-CoT with as many chains as EDIT sees, all the teacher's own.

    Several samples of a question are several rows; where they are fewer than the volume they come again.
    """
    samples = list(_unrectified(rows))
    volume = sum(1 for _ in _chosen(rows)) + sum(1 for _ in _wrong_chains(rows))
    for number in range(volume if samples else 0):
        row = samples[number % len(samples)]
        again = number // len(samples)
        yield _named(row, f"again {again}") if again else row


def _dual_cot_sft(rows: list[Row]) -> Iterator[Row]:
    """SFT on both chains of a pair, the wrong one after a marked prompt."""
    yield from _chosen(rows)
    for row in _wrong_chains(rows):
        yield _named(row, "counterfactual") | {"prompt": _before(row["prompt"], COUNTERFACTUAL)}


def _mt_cot(rows: list[Row]) -> Iterator[Row]:
    """MT-CoT (Li et al. 2022, arXiv 2210.06726): the whole chain, and the answer.

    `LLMMTCoTDataset`: L = (1 - a) L_explanation + a L_answer, a = 0.5; here `chosen_key_weight` is the
    answer's and `chosen_context_weight` the explanation's.
    """
    for row in _chosen(rows):
        if (task := _answer_task(row, PREDICTION)) is not None:
            yield _task(row, EXPLANATION, chain_text(row["chosen"]))
            yield task


def _sbs(rows: list[Row]) -> Iterator[Row]:
    """Distilling step-by-step (Hsieh et al. 2023, arXiv 2305.02301, section 3.2): two tasks.

    `LLMMTReDataset` and Google's `TaskPrefixTrainer`: L = a L_label + (1 - a) L_rationale, a = 0.5; here
    `chosen_key_weight` is the label's and `chosen_context_weight` the rationale's.
    """
    for row in _chosen(rows):
        chain, task = chain_text(row["chosen"]), _answer_task(row, ANSWER)
        if task is not None and (rationale := chain[: answer_statement(row, chain)[0]].rstrip()):
            yield _task(row, RATIONALE, rationale)
            yield task


def _scott(rows: list[Row]) -> Iterator[Row]:
    """SCOTT (Wang et al. 2023, arXiv 2305.01879, section 3.2).

    Correct chains after `[Factual]` as a whole; of wrong ones after `[Counterfactual]` the answer alone, with
    the chain before it as context (`LLMSCOTTDataset`). Both are key, so with `chosen_context_weight: 0` and
    `normalization: key_tokens` both losses are means over what is trained, added as in the authors' code.
    """
    for row in _chosen(rows):
        chain = chain_text(row["chosen"])
        yield row | {"prompt": _before(row["prompt"], FACTUAL), "chosen_key_spans": [[0, len(chain)]]}
    for row in _wrong_chains(rows):
        chain = chain_text(row["chosen"])
        if (statement := answer_statement(row, chain)) is not None:
            yield _named(row, "counterfactual") | {
                "prompt": _before(row["prompt"], COUNTERFACTUAL),
                "chosen_key_spans": [[statement[1], len(chain)]],
            }


_VIEWS = {
    "pairs": _pairs,
    "rectified": _rectified,
    "corrupted": _corrupted,
    "chosen": _chosen,
    "unrectified": _unrectified,
    "repeat_sampling": _repeat_sampling,
    "dual_cot_sft": _dual_cot_sft,
    "mt_cot": _mt_cot,
    "sbs": _sbs,
    "scott": _scott,
}
_NEEDS = dict.fromkeys(_VIEWS, "it takes correct chains") | {
    "rectified": f"it takes pairs whose `source` is {', '.join(RECTIFIED_SOURCES)}",
    "corrupted": f"it takes pairs whose `source` is {', '.join(CORRUPTED_SOURCES)}",
    "unrectified": f"it takes chains whose `source` is none of {', '.join(RECTIFIED_SOURCES)}",
    "repeat_sampling": f"it takes chains whose `source` is none of {', '.join(RECTIFIED_SOURCES)}",
    "mt_cot": "it takes chains that state their answer",
    "sbs": "it takes chains that state their answer",
}


# --- Rows ------------------------------------------------------------------------------------------


def _wrong_chains(rows: list[Row]) -> Iterator[Row]:
    """Each wrong chain of a question once, in the place of the correct one."""
    seen = set()
    for row in rows:
        if is_chosen_alone(row):
            continue
        for pair in pairs_of(row):
            key = _text(row["prompt"]), chain_text(pair["rejected"])
            if key not in seen:
                seen.add(key)
                several = has_several_rejected(row)
                alone = _alone(row) | {"chosen": pair["rejected"]}
                yield _named(alone, f"wrong {len(seen)}") if several else alone


def _alone(row: Row) -> Row:
    """The correct chain without its wrong ones."""
    return {**row, "rejected": []} | dict.fromkeys(SPAN_COLUMNS)


def _answer_task(row: Row, marker: str) -> Row | None:
    """The row that asks for the answer at once: as a whole it is key."""
    chain = chain_text(row["chosen"])
    statement = answer_statement(row, chain)
    if statement is None:
        return None
    label = chain[statement[0] :].strip()
    return _named(_task(row, marker, label), "answer") | {"chosen_key_spans": [[0, len(label)]]}


def _task(row: Row, marker: str, chain: str) -> Row:
    said = chain if isinstance(row["chosen"], str) else [{**row["chosen"][-1], "content": chain}]
    return row | {"prompt": _after(row["prompt"], marker), "chosen": said}


def _named(row: Row, suffix: str) -> Row:
    """Ids are unique in a dataset."""
    return row if row.get("id") is None else row | {"id": f"{row['id']}/{suffix}"}


def _before(prompt: Any, marker: str) -> Any:
    return _with_question(prompt, lambda text: f"{marker} {text}")


def _after(prompt: Any, marker: str) -> Any:
    def marked(text: str) -> str:
        question = text.rstrip()
        return (
            f"{question}\n{marker}{text[len(question) :]}"  # what divides prompt and chain stays at the end
        )

    return _with_question(prompt, marked)


def _with_question(prompt: Any, change: Any) -> Any:
    if isinstance(prompt, str):
        return change(prompt)
    return [*prompt[:-1], {**prompt[-1], "content": change(prompt[-1]["content"])}]


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\0".join(turn["content"] for turn in prompt)


def _tell_unanswered(rows: Iterator[Row], view: View, source: str) -> None:
    found = [answer_statement(row, chain_text(row["chosen"])) is not None for row in rows]
    if not all(found):
        logger.warning(
            f"{source}: {found.count(False)} of {len(found)} chains state no answer that could be found; the "
            f"view {view!r} leaves them out"
        )


# --- Datasets --------------------------------------------------------------------------------------


def _with_mistake(dataset: Dataset, wanted: Sequence[str], source: str) -> Dataset:
    kinds = [row or [] for row in dataset["mistake"]] if "mistake" in dataset.column_names else []
    counts = Counter(kind for of_row in kinds for kind in of_row)
    unknown = [kind for kind in wanted if kind not in counts]
    if unknown:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
        raise InputError(
            f"{source}: no pair has the mistake {', '.join(map(repr, unknown))}"
            f"{nearest(unknown[0], counts)}; there are: {listed or 'none, `mistake` is empty or missing'}"
        )
    return dataset.select([i for i, of_row in enumerate(kinds) if set(of_row) & set(wanted)])


def _dataset(rows: list[Row], dataset: Dataset) -> Dataset:
    """The rows with the columns of the dataset that they came from."""
    from datasets import Dataset, Features, List, Value

    features = dict(dataset.features)
    if all(is_chosen_alone(row) for row in rows):
        features["rejected"] = List(features["chosen"])
        features["chosen_key_spans"] = List(List(Value("int64")))
        features.pop("rejected_key_spans", None)
    return Dataset.from_list([{name: row.get(name) for name in features} for row in rows], Features(features))
