"""Matching of runs by their items, and a check that they asked the same questions.

Items are identified by task and id. Only the model may differ between runs. A different prompt under the same
id, a different version of a task or of the answer check, or a different decoding would look like a change of
the model, so these are refused.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edit_trl.common.errors import InputError, collect_problems, raise_problems
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.runs.schema import Run, key_of, name_items
from edit_trl.evaluation.runs.scores import SCORES

Key = tuple[str, str]
Runs = Run | str | Path | Sequence[Run | str | Path]

# The fields that make up the question of an item, by kind of run; and those that scores of key tokens need.
_QUESTION = {"evaluate": ("prompt", "answer", "answer_type"), "suite": ("prompt", "chosen", "rejected", "answer")}
_KEY_STEPS = ("chosen_key_spans", "rejected_key_spans")
# Settings of these names, at any depth, change how responses are generated, and which answer they vote for.
_DECODING = frozenset({"max_new_tokens", "temperature", "top_p", "samples", "max_thinking_tokens", "votes"})


@dataclass(frozen=True)
class System:
    """A system in a comparison: the runs of one model, which differ in their seeds.

    Attributes:
        name: Name of its runs.
        runs: One run per seed.
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Aligned:
    """The items that two systems share.

    Attributes:
        items: The items of the baseline, in its order.
        before: Scores of the baseline, shape (items, seeds).
        after: Scores of the other system, shape (items, seeds).
        missing: For each run, the items that it lacks and another run has.
        unscored: Shared items that do not have the score in every run.
    """

    items: list[Mapping[str, Any]]
    before: np.ndarray
    after: np.ndarray
    missing: dict[str, list[Key]]
    unscored: list[Key]


def read_systems(given: Sequence[Runs]) -> list[System]:
    """Read the runs of each system and give each system a unique name.

    Raises:
        InputError: Names every run that cannot be read, and every folder that is given twice in a system.
    """
    errors: list[str] = []
    systems = []
    for one in given:
        several = [one] if isinstance(one, Run | str | Path) else list(one)
        runs = []
        for run in several:
            with collect_problems(errors):
                runs.append(run if isinstance(run, Run) else read_run(run, stored_tokens=True))
        folders = Counter(Path(run.path).resolve() for run in runs)
        errors += [
            f"{path} is given {count} times as seeds of one system" for path, count in folders.items() if count > 1
        ]
        if not several:
            errors.append("a system without runs; give at least one")
        systems.append(tuple(runs))
    raise_problems(errors)
    names = [runs[0].record.name for runs in systems]
    # Two runs of one name are told apart by their folders.
    return [
        System(name if names.count(name) == 1 else f"{name} ({runs[0].path})", runs)
        for name, runs in zip(names, systems, strict=True)
    ]


def match_folders(text: str) -> list[str]:
    """Find the run folders of one system.

    Args:
        text: A folder, or folders and glob patterns separated by commas.

    Raises:
        InputError: A pattern matches no folder.
    """
    if Path(text).exists():
        return [text]
    folders: list[str] = []
    for part in filter(None, text.split(",")):
        if Path(part).exists() or not glob.has_magic(part):
            folders.append(part)
            continue
        matches = sorted(path for path in glob.glob(part) if Path(path).is_dir())
        if not matches:
            raise InputError(f"no folder matches {part!r}")
        folders += matches
    return folders


def check_comparable(systems: Sequence[System], score: str, any_decoding: bool = False) -> None:
    """Check that all runs asked their models the same questions, and by the same decoding unless `any_decoding`.

    Raises:
        InputError: Names everything that makes the runs incomparable.
    """
    first, *others = [run for system in systems for run in system.runs]
    errors = []
    for run in (first, *others):
        repeated = [key for key, count in Counter(map(key_of, run.items)).items() if count > 1]
        if repeated:
            errors.append(f"{run.path}: items that occur more than once: {name_items(repeated)}")
    for run in others:
        if run.record.kind != first.record.kind:
            errors.append(
                f"{run.path} is a run of `{run.record.kind}`, {first.path} of `{first.record.kind}`; compare "
                "runs of one kind"
            )
            continue
        errors += _versions(first, run)
        if not any_decoding:
            errors += _decoding(first, run)
        errors += _questions(first, run, score)
    if errors:
        raise InputError(errors, heading="these runs cannot be compared:")


def align(baseline: System, other: System, score: str) -> Aligned:
    """Align the items of two systems, with their values of a score.

    Raises:
        InputError: They share no item, or no item that has the score.
    """
    runs = (*baseline.runs, *other.runs)
    tables = [{key_of(item): item for item in run.items} for run in runs]
    every = dict.fromkeys(key for table in tables for key in table)
    shared = [key for key in every if all(key in table for table in tables)]
    if not shared:
        examples = "; ".join(f"{run.path} has {name_items(table)}" for run, table in zip(runs, tables, strict=True))
        raise InputError(f"the runs have no item in common: {examples}. Items are identified by task and id")
    score_of = SCORES[baseline.runs[0].record.kind][score]
    scores = {key: [score_of(table[key]) for table in tables] for key in shared}
    scored = [key for key in shared if None not in scores[key]]
    if not scored:
        raise InputError(
            f"none of the {len(shared)} items in common has the score `{score}` in every run; name another"
        )
    table = np.array([scores[key] for key in scored], dtype=float)
    missing = {
        str(run.path): keys
        for run, items in zip(runs, tables, strict=True)
        if (keys := [key for key in every if key not in items])
    }
    return Aligned(
        items=[tables[0][key] for key in scored],
        before=table[:, : len(baseline.runs)],
        after=table[:, len(baseline.runs) :],
        missing=missing,
        unscored=[key for key in shared if None in scores[key]],
    )


def setting_differences(systems: Sequence[System]) -> list[str]:
    """Describe the settings in which runs differ from the first run of the baseline."""
    first, *others = [run for system in systems for run in system.runs]
    expected = _flat(first.record.settings)
    differences: dict[str, dict[str, None]] = {}
    for run in others:
        settings = _flat(run.record.settings)
        for name in sorted({*expected, *settings}):
            if expected.get(name) != settings.get(name):
                differences.setdefault(name, {})[repr(settings.get(name))] = None
    return [f"{name}: {expected.get(name)!r} and {', '.join(values)}" for name, values in differences.items()]


def _versions(first: Run, run: Run) -> Iterator[str]:
    before, now = first.record, run.record
    if before.verifier != now.verifier:
        yield (
            f"{run.path} was checked by version {now.verifier!r} of the answer check, {first.path} by "
            f"{before.verifier!r}; measure both with one version of edit_trl"
        )
    for task, version in before.tasks.items():
        if version != now.tasks.get(task, version):
            yield f"task {task!r} has version {now.tasks[task]!r} in {run.path}, {version!r} in {first.path}"


def _decoding(first: Run, run: Run) -> Iterator[str]:
    before, now = (
        {name: value for name, value in _flat(one.record.settings).items() if name.split(".")[-1] in _DECODING}
        for one in (first, run)
    )
    different = [
        f"{name}: {now.get(name, 'not set')!r} there, {before.get(name, 'not set')!r} in {first.path}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if different:
        yield f"{run.path} has another decoding ({'; '.join(different)}); --any-decoding compares them anyway"


def _questions(first: Run, run: Run, score: str) -> Iterator[str]:
    """Yield errors about items that have the same id and another question."""
    expected = {key_of(item): item for item in first.items}
    for name in _QUESTION[run.record.kind] + (_KEY_STEPS if score.startswith("key_") else ()):
        changed = [key for item in run.items if item[name] != expected.get(key := key_of(item), item)[name]]
        if changed:
            count = f"{len(changed)} item{'s have' if len(changed) > 1 else ' has'}"
            yield f"{count} another `{name}` in {run.path} than in {first.path} ({name_items(changed)})"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
