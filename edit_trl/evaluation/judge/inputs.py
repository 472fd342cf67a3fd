"""The inputs of a judge: the chains of finished runs, matched by item, and correct chains as references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edit_trl.common.errors import InputError, collect_problems, raise_problems
from edit_trl.data.dual_cots import DatasetSource
from edit_trl.evaluation.judge.judging import ChainSet
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.runs.schema import Run, first_of_each_task, key_of, name_items

References = Mapping[tuple[str | None, str], tuple[str, str | None]]
"""Correct chains and known answers, by (task, id); the task is None for rows without a task."""

_MOST_NAMED = 10


def read_runs(paths: Sequence[str]) -> dict[str, Run]:
    """Read finished runs of `edit-trl evaluate`.

    Returns:
        The runs by name, or by folder if two names are the same.

    Raises:
        InputError: Names every path that is not such a run.
    """
    runs: list[Run] = []
    errors: list[str] = []
    for path in paths:
        with collect_problems(errors):
            run = read_run(path)
            runs.append(run)
            if run.record.kind != "evaluate":
                errors.append(f"{path} is a run of `edit-trl {run.record.kind}`: it holds no chains of a model")
    raise_problems(errors)
    names = [run.record.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return dict(zip(names, runs, strict=True))


def read_references(source: DatasetSource) -> References:
    """Read the correct chains of dual CoTs.

    Raises:
        InputError: See `load_dual_cots`.
    """
    from edit_trl.data.row import chain_text, rows_of

    return {
        # `edit-trl evaluate` also numbers rows without an id. It takes the task of others from the task file.
        (row.get("task"), row.get("id") or str(number)): (chain_text(row["chosen"]), row.get("answer"))
        for number, row in enumerate(rows_of(source.load()), 1)
    }


def align_runs(runs: Mapping[str, Run], limit: int | None = None) -> tuple[list[ChainSet], int]:
    """Collect the chains of each item from all runs.

    Args:
        runs: The runs by name.
        limit: The most items of each task, from its beginning.

    Returns:
        The chains of each item that all runs have, in the order of the first run; and the number of items
        that some run lacks.

    Raises:
        InputError: No item is in all runs, or an item has another question or answer in one of the runs.
    """
    by_key = {name: {key_of(item): item for item in run.items} for name, run in runs.items()}
    first, *others = by_key.values()
    keys = [key for key in first if all(key in other for other in others)]
    if not keys:
        tasks = "; ".join(
            f"{name} has {len(items)} items of {', '.join(sorted({task for task, _ in items})[:_MOST_NAMED])}"
            for name, items in by_key.items()
        )
        raise InputError(f"the runs have no item in common, by task and id: {tasks}")
    different = [
        key for key in keys for other in others for part in ("prompt", "answer") if first[key][part] != other[key][part]
    ]
    if different:
        named = name_items(dict.fromkeys(different), _MOST_NAMED)
        raise InputError(
            f"{len(set(different))} items have another prompt or known answer in one run than in another, so "
            f"their chains are of different questions: {named}. Evaluate the models with one task file"
        )
    sets = []
    for key in keys:
        chains = {run: items[key]["samples"][0]["response"] for run, items in by_key.items()}
        sets.append(ChainSet(*key, _question(first[key]["prompt"]), first[key]["answer"], chains))
    every_key = {key for items in by_key.values() for key in items}
    return first_of_each_task(sets, limit), len(every_key) - len(keys)


def with_references(sets: Sequence[ChainSet], references: References, source: str) -> list[ChainSet]:
    """Add the correct chain of each item, if there is one; messages call the references `source`.

    Raises:
        InputError: No item has a correct chain, or one has another known answer and so another question.
    """
    sets_with_references = []
    for chains in sets:
        found = references.get((chains.task, chains.id)) or references.get((None, chains.id))
        chain, answer = found or (None, None)
        if answer is not None and answer.strip() != chains.answer.strip():
            raise InputError(
                f"{source}: {chains.task}/{chains.id} has the answer {answer!r} there and "
                f"{chains.answer!r} in the runs, so it is another question; name the dataset that the models "
                "were evaluated on"
            )
        sets_with_references.append(replace(chains, reference=chain))
    if not any(chains.reference for chains in sets_with_references):
        raise InputError(
            f"{source} has a correct chain of none of the items, by task and id: it has "
            f"{name_items(references, 3)}, the runs have {name_items([(c.task, c.id) for c in sets], 3)}"
        )
    return sets_with_references


def _question(prompt: str | list[dict[str, Any]]) -> str:
    """Return the question; in a conversation the last message of the user, after the system prompt and examples."""
    if isinstance(prompt, str):
        return prompt.strip()
    asked = [message for message in prompt if message["role"] == "user"]
    return (asked or prompt)[-1]["content"].strip()
