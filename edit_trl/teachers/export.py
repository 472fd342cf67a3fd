"""Writes a generation to files for training, with a dataset card, and pushes them to the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.data.dual_cots import save_dual_cots
from edit_trl.data.row import REQUIRED_COLUMNS, SPAN_COLUMNS, column_types
from edit_trl.hub.repository import open_repository, upload
from edit_trl.teachers.card import Provenance, generation_card
from edit_trl.teachers.chain_text import ThoughtsForm, message_of
from edit_trl.teachers.filters import ChainPair
from edit_trl.teachers.generation import DUAL, WARM_UP, Chain, Generation

if TYPE_CHECKING:
    from datasets import Dataset


# The order of the columns in the files; `mistake_text` is the labeller's whole answer.
_COLUMNS = (*REQUIRED_COLUMNS, "answer", "task", "mistake", "mistake_text", "critique", "source", "id", *SPAN_COLUMNS)


def dual_rows(
    pairs: Sequence[ChainPair], conversational: bool, thoughts_as: ThoughtsForm = "text"
) -> list[dict[str, Any]]:
    """Return the rows of pairs; they have columns for spans and critiques if those of any pair are known."""
    more = [*SPAN_COLUMNS] if any(pair.rejected_key_spans is not None for pair in pairs) else []
    more += ["critique"] if any(pair.critique is not None for pair in pairs) else []
    rows = []
    for pair in pairs:
        row = _row(pair, pair.chosen, pair.rejected, conversational, thoughts_as)
        row |= {"mistake": pair.mistake, "mistake_text": pair.mistake_text}
        rows.append(row | {column: getattr(pair, column) for column in more})
    return rows


def warm_up_rows(
    generation: Generation, conversational: bool, thoughts_as: ThoughtsForm = "text"
) -> list[dict[str, Any]]:
    """Return the rows for the warm-up: correct chains of the teacher (or student), and rectified ones.

    `rejected` is the list of the question's wrong chains among the pairs; it may be empty.
    """
    wrong: dict[str, dict[str, None]] = {}
    for pair in generation.pairs:
        wrong.setdefault(pair.question.id, {})[pair.rejected] = None
    chains: dict[tuple[str, str], Chain] = {}
    for chain in (*generation.correct, *generation.rectified):
        chains.setdefault((chain.question.id, chain.text), chain)
    return [
        _row(chain, text, [other for other in wrong.get(question, ()) if other != text], conversational, thoughts_as)
        for (question, text), chain in chains.items()
    ]


def save_generation(
    generation: Generation,
    folder: str | Path,
    provenance: Provenance,
    *,
    conversational: bool = True,
    thoughts_as: ThoughtsForm = "text",
) -> dict[str, int]:
    """Write `dual.parquet`, `warm_up.parquet`, `report.json` and the card `README.md` to a folder.

    The same generation gives the same bytes. For `conversational` and `thoughts_as` see `GenerateArguments`.

    Returns:
        The number of rows by file name.

    Raises:
        InputError: There is no pair to write.
    """
    if not generation.pairs:
        raise InputError(
            f"no pair is left of {len(generation.correct)} correct and {len(generation.rectified)} rectified "
            f"chains; {_why(generation)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        DUAL: dual_rows(generation.pairs, conversational, thoughts_as),
        WARM_UP: warm_up_rows(generation, conversational, thoughts_as),
    }
    for name, file_rows in rows.items():
        save_dual_cots(_dataset(file_rows, conversational, thoughts_as), folder / name)
    report = {
        "counts": {stage: dict(sorted(counts.items())) for stage, counts in generation.counts.items()},
        "dropped": {reason: sorted(ids) for reason, ids in sorted(generation.dropped.items())},
        "failures": [
            {"question": question, "stage": stage, "reason": reason} for question, stage, reason in generation.failures
        ],
    }
    if "student" in provenance.stats:  # what its own chains cost, beside training on them
        report["completion_tokens"] = {role: stats.completion_tokens for role, stats in provenance.stats.items()}
    if provenance.batch_discount is not None:
        report["batch"] = {"discount": provenance.batch_discount, "cost": provenance.stats["teacher"].cost}
    if generation.with_thoughts:
        report["thoughts"] = {"option": generation.thoughts, "answers_with_thoughts": generation.with_thoughts}
    if generation.pivots is not None:
        report["pivots"] = [asdict(pivot) for pivot in generation.pivots]
    write_whole(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / "README.md", generation_card(generation, provenance, rows))
    return {name: len(file_rows) for name, file_rows in rows.items()}


def push_generation(folder: str | Path, repo_id: str, *, private: bool | None = None) -> None:
    """Push both files of a folder, and the card that describes them, to a dataset repository on the Hub.

    Args:
        folder: The folder of `save_generation`.
        repo_id: The repository; created if it does not exist.
        private: Whether a new repository is private; it is unless this is False.

    Raises:
        InputError: No login, no permission to write, or no network.
    """
    folder = Path(folder)
    files = {name: folder / name for name in (DUAL, WARM_UP, "README.md")}  # not the journal
    try:
        open_repository(repo_id, repo_type="dataset", private=private)
        upload(files, repo_id, message=f"Push {folder.name} with edit-trl", repo_type="dataset")
    except InputError as error:
        raise InputError(f"could not push to {repo_id}: {error}. The files are in {folder}") from error


def _row(
    item: ChainPair | Chain, chosen: str, rejected: str | list[str], conversational: bool, thoughts_as: ThoughtsForm
) -> dict[str, Any]:
    question = item.question

    def turn(text: str) -> str | list[dict[str, str]]:
        return [message_of(text, thoughts_as)] if conversational else text

    return {
        "prompt": [{"role": "user", "content": question.question}] if conversational else f"{question.question}\n",
        "chosen": turn(chosen),
        "rejected": list(map(turn, rejected)) if isinstance(rejected, list) else turn(rejected),
        "answer": question.answer,
        "task": question.task,
        "source": item.source,
        "id": item.id,
    }


def _dataset(rows: list[dict[str, Any]], conversational: bool, thoughts_as: ThoughtsForm) -> Dataset:
    from datasets import Dataset, Features, List, Value

    types = column_types(conversational, None if thoughts_as == "text" else thoughts_as) | {
        **dict.fromkeys(("mistake_text", "critique"), Value("string"))
    }
    if "mistake" not in rows[0]:  # the warm-up: a list of chains
        types["rejected"] = List(types["chosen"])
    columns = {name: [row[name] for row in rows] for name in _COLUMNS if name in rows[0]}
    return Dataset.from_dict(columns, features=Features({name: types[name] for name in columns}))


def _why(generation: Generation) -> str:
    counts = "; ".join(
        f"{stage}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        for stage, outcomes in generation.counts.items()
        if outcomes
    )
    dropped = ", ".join(f"{len(ids)} {reason}" for reason, ids in generation.dropped.items())
    why = counts + (f"; dropped: {dropped}" if dropped else "")
    if generation.failures:
        question, stage, reason = generation.failures[0]
        why += f". {len(generation.failures)} requests got no answer, the first in {stage} of {question}: {reason}"
    return why
