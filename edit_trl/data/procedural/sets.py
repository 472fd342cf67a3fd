"""Sets of procedural problems in files: one set, or a training set and a test set that share no problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.data.dual_cots import save_dual_cots
from edit_trl.data.procedural.teacher import ProceduralTeacher, generate_dual_cots

if TYPE_CHECKING:
    from datasets import Dataset


def plan_sets(output: Path, rows: int, held_out: int | None = None, *, force: bool = False) -> dict[Path, int]:
    """Decide where each set is saved and how many rows it has, before any problem is made.

    `output` is the file or folder of the training set; with `held_out` rows for a test set, the folder of both.
    `force` allows it to be replaced.

    Raises:
        InputError: A size below 1, a file name for two sets, or an output that may not be replaced.
    """
    errors = [
        f"--{name} must be 1 or more, got {value}"
        for name, value in (("rows", rows), ("held_out", held_out))
        if value is not None and value < 1
    ]
    if held_out is not None and output.suffix[1:].isalpha():
        errors.append(f"--held_out writes two sets, so --output must be a folder (no suffix), got {output}")
    if errors:
        raise InputError(errors)
    _refuse_to_overwrite(output, two_sets=held_out is not None, force=force)
    return {output: rows} if held_out is None else {output / "train": rows, output / "test": held_out}


def save_sets(
    teacher: ProceduralTeacher, sizes: Mapping[Path, int], *, conversational: bool = True
) -> dict[Path, Dataset]:
    """Generate the sets of `plan_sets` and save them.

    The sets are consecutive slices of one sequence of problems. A problem occurs only once in a sequence, so
    the sets share none.

    Raises:
        InputError: The teacher has too few problems, or a set cannot be written.
    """
    dataset = generate_dual_cots(teacher, sum(sizes.values()), conversational=conversational)
    sets, start = {}, 0
    for path, size in sizes.items():
        sets[path] = dataset.select(range(start, start + size))
        save_dual_cots(sets[path], path)
        start += size
    return sets


def _refuse_to_overwrite(output: Path, two_sets: bool, force: bool) -> None:
    blocked = next((folder for folder in output.parents if folder.is_file()), None)
    if blocked:
        raise InputError(f"--output {output}: {blocked} is a file, not a folder")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise InputError(f"--output {output} exists; choose another or pass --force to replace it")
    if two_sets and (output.is_file() or (output / "state.json").exists()):
        raise InputError(f"--output {output} holds one set; choose another folder for --held_out")
