"""The inputs of a judge: the chains of finished runs, matched by item, and correct chains as references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from edit_trl.common.errors import InputError
from edit_trl.evaluation.judge.judging import ChainSet
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.runs.schema import Run, key_of

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
    runs, errors = [], []
    for path in paths:
        try:
            run = read_run(path)
        except InputError as error:
            errors += error.problems
            continue
        runs.append(run)
        if run.record.kind != "evaluate":
            errors.append(f"{path} is a run of `edit-trl {run.record.kind}`: it holds no chains of a model")
    if errors:
        raise InputError(errors)
    names = [run.record.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return dict(zip(names, runs, strict=True))


def read_references(source: str, config: str | None = None, split: str | None = None) -> References:
    """Read the correct chains of dual CoTs.

    Args:
        source: A file, a folder saved by `datasets`, or a Hub id.
        config: Configuration of a Hub dataset.
        split: Split of the dataset; "train" if there are several.

    Raises:
        InputError: See `load_dual_cots`.
    """
    from edit_trl.data.dual_cots import load_dual_cots
    from edit_trl.data.row import chain_text, rows_of

    return {
        # `edit-trl evaluate` also numbers rows without an id. It takes the task of others from the task file.
        (row.get("task"), row.get("id") or str(number)): (chain_text(row["chosen"]), row.get("answer"))
        for number, row in enumerate(rows_of(load_dual_cots(source, name=config, split=split)), 1)
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
        named = ", ".join(f"{task}/{name}" for task, name in list(dict.fromkeys(different))[:_MOST_NAMED])
        raise InputError(
            f"{len(set(different))} items have another prompt or known answer in one run than in another, so "
            f"their chains are of different questions: {named}. Evaluate the models with one task file"
        )
    dropped = len({key for items in by_key.values() for key in items}) - len(keys)
    counts: Counter[str] = Counter()
    sets = []
    for task, name in keys:
        counts[task] += 1
        if limit is None or counts[task] <= limit:
            item = first[task, name]
            chains = {run: items[task, name]["samples"][0]["response"] for run, items in by_key.items()}
            sets.append(ChainSet(task, name, _question(item["prompt"]), item["answer"], chains))
    return sets, dropped


def with_references(sets: Sequence[ChainSet], references: References, source: str) -> list[ChainSet]:
    """Add the correct chain of each item, if there is one.

    Args:
        sets: The items.
        references: See `read_references`.
        source: What messages call the references.

    Raises:
        InputError: No item has a correct chain, or one has another known answer and so another question.
    """
    referenced = []
    for chains in sets:
        chain, answer = references.get((chains.task, chains.id)) or references.get((None, chains.id), (None, None))
        if answer is not None and answer.strip() != chains.answer.strip():
            raise InputError(
                f"{source}: {chains.task}/{chains.id} has the answer {answer!r} there and "
                f"{chains.answer!r} in the runs, so it is another question; name the dataset that the models "
                "were evaluated on"
            )
        referenced.append(replace(chains, reference=chain))
    if not any(chains.reference for chains in referenced):
        raise InputError(
            f"{source} has a correct chain of none of the items, by task and id: it has "
            f"{_some(references)}, the runs have {_some([(c.task, c.id) for c in sets])}"
        )
    return referenced


def _question(prompt: str | list[dict[str, str]]) -> str:
    """The question; in a conversation the last message, after the system prompt and examples."""
    return (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip()


def _some(keys: Collection[tuple[str | None, str]]) -> str:
    names = [f"{task}/{name}" if task else name for task, name in list(keys)[:3]]
    return ", ".join(names) + (", ..." if len(keys) > 3 else "")
