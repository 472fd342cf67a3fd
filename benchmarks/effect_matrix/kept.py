"""Keeps the records of finished cells as small JSON files that can be committed, and takes them up on another machine.

A kept record has everything that the tables need and no model. Where a cell that is left needs the model or the pairs
of a kept one, that one runs again, and its kept record stays: the weights' hashes in the records tell which cells
started from the same warm-up.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.common.json_text import read_json_file
from effect_matrix.cells import Cell, changes_of, read_cell, write_cell

Record = dict[str, Any]


def portable(value: Any, paths: Mapping[str, str]) -> Any:
    """A value with the machine's paths replaced by their names in braces, as in the matrix file."""
    if isinstance(value, Mapping):
        return {key: portable(item, paths) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, paths) for item in value]
    if isinstance(value, str):
        for name, path in sorted(paths.items(), key=lambda item: -len(item[1])):
            value = value.replace(path, f"{{{name}}}")
    return value


def take_up(
    cells: Sequence[Cell], output: Path, kept: Path, paths: Mapping[str, str], redo: bool
) -> tuple[list[str], list[Path]]:
    """Write the kept records of cells to the folder of the matrix, where it has none.

    Args:
        cells: All cells of the matrix.
        output: The folder of the matrix.
        kept: The folder of the kept records.
        paths: The paths of the matrix file by name.
        redo: Whether records of another version of the matrix are kept aside; their cells run again.

    Returns:
        The names of the cells that were taken up, and the files that were kept aside.

    Raises:
        InputError: A record belongs to another version of the matrix and `redo` is off; lists the changes.
    """
    taken, changed = [], []
    for cell in cells:
        record = _read(kept, cell)
        if record is None:
            continue
        changes = changes_of(record["inputs"], portable(cell.inputs, paths))
        if changes:
            changed.append((cell, record, changes))
        elif read_cell(cell.folder(output)) is None:
            write_cell(cell.folder(output), record | {"inputs": cell.inputs})
            taken.append(cell.name)
    if changed and not redo:
        lines = [f"{_file(kept, cell)}: {'; '.join(changes)}" for cell, _, changes in changed]
        rest = [f"and {len(lines) - 5} other records"] if len(lines) > 5 else []
        advice = "with --redo they are kept aside and their cells run again; or name another folder with --keep"
        raise InputError([*lines[:5], *rest, advice], heading=f"{kept} holds records of another version of the matrix:")
    return taken, [_set_aside(kept, cell, record) for cell, record, _ in changed]


def keep(cell: Cell, output: Path, kept: Path, paths: Mapping[str, str]) -> None:
    """Keep the record of a cell that has run; one that is kept already stays, and is the record of the cell."""
    record = read_cell(cell.folder(output))
    if record is None or record["status"] != "done":
        return
    before = _read(kept, cell)
    if before is None:
        text = json.dumps(portable(record, paths), indent=1, default=str)
        write_whole(_file(kept, cell), f"{text}\n")
        return
    built = {key: record["result"][key] for key in ("model",) if key in record["result"]}
    write_cell(cell.folder(output), before | {"inputs": cell.inputs, "result": before["result"] | built})


def with_missing(left: Sequence[Cell], cells: Sequence[Cell], output: Path) -> list[Cell]:
    """The cells that are left, and those with records alone whose model or pairs they need, in the order of `cells`."""
    by_name = {cell.name: cell for cell in cells}
    names, waiting = {cell.name for cell in left}, list(left)
    while waiting:
        for need in waiting.pop().needs:
            if need not in names and not _has_made(by_name[need], output):
                names.add(need)
                waiting.append(by_name[need])
    return [cell for cell in cells if cell.name in names]


def _has_made(cell: Cell, output: Path) -> bool:
    """Whether what other cells need of a cell is there, beside its record."""
    folder = cell.folder(output)
    if cell.kind == "warm_up":
        return (folder / "model").is_dir()
    if cell.kind == "pairs":
        return (folder / "rows").is_dir()
    if cell.kind == "final":
        return (output / read_cell(folder)["result"]["model"]).is_dir()
    return True  # of a point of a grid, others need the record alone


def _file(kept: Path, cell: Cell) -> Path:
    return kept / f"{cell.name}.json"


def _read(kept: Path, cell: Cell) -> Record | None:
    file = _file(kept, cell)
    if not file.is_file():
        return None
    record = read_json_file(file)
    missing = [name for name in ("inputs", "status", "result") if not isinstance(record, dict) or name not in record]
    if missing:
        raise InputError(f"{file} is not the record of a finished cell: it has no `{missing[0]}`; remove it")
    return record


def _set_aside(kept: Path, cell: Cell, record: Record) -> Path:
    version = hashlib.sha256(json.dumps(record["inputs"], sort_keys=True).encode()).hexdigest()[:8]
    file = _file(kept, cell)
    aside = kept / "aside" / file.relative_to(kept).with_suffix(f".{version}.json")
    aside.parent.mkdir(parents=True, exist_ok=True)
    file.replace(aside)
    return aside
