"""The cells of a matrix: what each does, what it needs first, and whether it is done.

A cell is a folder `cells/NAME`; its `cell.json`, written last, has what the cell depends on (`inputs`), and
its results or its error.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edit_trl.common.errors import InputError
from effect_matrix.data import resolve
from effect_matrix.matrix import Matrix, Method

Kind = Literal["warm_up", "pairs", "tune", "final"]
CELL_FILE = "cell.json"
WARM_UP = "warm_up"
"""What tables call the student before its second stage."""


@dataclass(frozen=True)
class Cell:
    """A piece of work.

    Attributes:
        name: Its folder below `cells`.
        kind: `warm_up` trains a seed's first stage; `pairs` makes a seed's pairs; `tune` trains a method at
            a point of its grid and measures it on dev; `final` measures it on the tests.
        student: Whose.
        seed: Of the warm-up.
        needs: Cells that must be done first.
        inputs: All that decides its result.
        method: Which, of `tune` and `final`; `warm_up` for the student before its second stage.
    """

    name: str
    kind: Kind
    student: str
    seed: int
    needs: tuple[str, ...]
    inputs: dict[str, Any]
    method: str | None = None

    def folder(self, output: Path) -> Path:
        return output / "cells" / self.name


@dataclass
class _Maker:
    """Makes cells of a matrix, each once."""

    matrix: Matrix
    sets: dict[str, dict[str, Any]]
    cells: dict[str, Cell] = field(default_factory=dict)

    def add(self, cell: Cell) -> Cell:
        self.cells.setdefault(cell.name, cell)
        return cell

    def warm_up(self, student: str, seed: int) -> Cell:
        of = self.matrix.students[student]
        inputs = {
            "student": {key: value for key, value in vars(of).items() if value is not None},
            "warm_up": self.matrix.warm_up,
            "data": self.sets["warm_up"],
            "dev": self.sets["dev"],
            "evaluation": vars(self.matrix.evaluation),
            "seed": seed,
        }
        return self.add(Cell(f"{student}/warm_up/seed{seed}", "warm_up", student, seed, (), inputs))

    def pairs(self, student: str, seed: int, name: str) -> Cell | None:
        """The cell that makes a seed's pairs; None where they are the same for all."""
        source = self.matrix.data.pairs[name]
        if not source.by_student:
            return None
        start = self.warm_up(student, seed)
        inputs = {"pairs": self.sets[f"pairs_{name}"], "warm_up": start.inputs}
        if source.of:
            inputs["of"] = self.sets["warm_up" if source.of == "warm_up" else f"pairs_{source.of}"]
        needs = [start.name]
        if source.beside:
            other = self.pairs(student, seed, source.beside)
            inputs["beside"] = other.inputs if other else self.sets[f"pairs_{source.beside}"]
            needs += [other.name] if other else []
        made = f"{student}/pairs/{name}_seed{seed}"
        return self.add(Cell(made, "pairs", student, seed, tuple(needs), inputs))

    def training(self, student: str, seed: int, method: Method) -> tuple[tuple[str, ...], dict[str, Any]]:
        """What training a method needs, and what decides its result beside the point of the grid."""
        start, pairs = self.warm_up(student, seed), self.pairs(student, seed, method.pairs)
        inputs = {
            "stage_2": self.matrix.stage_2,
            "options": method.options,
            "recipe": recipe_text(method.recipe),
            "pairs_name": method.pairs,
            "pairs": pairs.inputs if pairs else self.sets[f"pairs_{method.pairs}"],
            "warm_up": start.inputs,
        }
        return (start.name, *([pairs.name] if pairs else [])), inputs

    def tune(self, student: str, name: str) -> list[Cell]:
        method, seed = self.matrix.methods[name], self.matrix.tuning_seed
        made = []
        for number, point in enumerate(method.points):
            needs, inputs = self.training(student, seed, method)
            inputs = {**inputs, "point": point}
            made.append(
                self.add(Cell(f"{student}/tune/{name}_{number}", "tune", student, seed, needs, inputs, name))
            )
        return made

    def measured(self, tests: Sequence[str]) -> dict[str, Any]:
        of = {f"test_{name}": self.sets[f"test_{name}"] for name in tests}
        return {"tests": of, "held_out": self.sets["held_out"]}

    def final(self, student: str, name: str, seed: int) -> Cell:
        tests = list(self.matrix.data.tests)
        if name == WARM_UP:
            start = self.warm_up(student, seed)
            inputs = {"warm_up": start.inputs, **self.measured(tests)}
            needs = (start.name,)
        else:
            tuned = self.tune(student, name)
            needs, inputs = self.training(student, seed, self.matrix.methods[name])
            needs = (*needs, *(cell.name for cell in tuned))
            inputs |= {"grid": self.matrix.methods[name].grid, **self.measured(tests)}
        cell = Cell(f"{student}/final/{name}_seed{seed}", "final", student, seed, needs, inputs, name)
        return self.add(cell)

    def collapse(self, student: str, variant: str, number: int) -> Cell:
        asked, matrix = self.matrix.collapse, self.matrix
        seed = matrix.seeds[number % len(matrix.seeds)]
        tuned = self.tune(student, asked.method)
        needs, inputs = self.training(student, seed, matrix.methods[asked.method])
        inputs |= {"grid": matrix.methods[asked.method].grid, "variant": asked.variants[variant]}
        inputs |= {"stage_2_seed": number, **self.measured(list(matrix.data.tests)[:1])}
        needs = (*needs, *(cell.name for cell in tuned))
        name = f"{student}/collapse/{variant}_{number}"
        return self.add(Cell(name, "final", student, seed, needs, inputs, asked.method))


def list_cells(matrix: Matrix) -> list[Cell]:
    """Every cell, in the order in which they are wanted: all methods with one seed, then with the next."""
    maker = _Maker(matrix, resolve(matrix.data))
    seeds = [matrix.tuning_seed, *(seed for seed in matrix.seeds if seed != matrix.tuning_seed)]
    for student in matrix.students:
        for seed in seeds:
            maker.warm_up(student, seed)
        for seed in seeds:
            for name in (WARM_UP, *matrix.methods):
                maker.final(student, name, seed)
        if matrix.collapse:
            for number in range(matrix.collapse.seeds):
                for variant in matrix.collapse.variants:
                    maker.collapse(student, variant, number)
    return list(maker.cells.values())


def read_cell(folder: Path) -> dict[str, Any] | None:
    """What a cell has written; None where it has not ended."""
    file = folder / CELL_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write_cell(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a cell's record, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{CELL_FILE}.draft"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / CELL_FILE)


def settle(cells: Sequence[Cell], output: Path, redo: bool) -> list[Cell]:
    """The cells that are left to do.

    Args:
        cells: All of them.
        output: The matrix' folder.
        redo: Do cells anew whose inputs have changed.

    Raises:
        InputError: Inputs have changed, and `redo` is off; says what.
    """
    changed, left = [], []
    for cell in cells:
        record = read_cell(cell.folder(output))
        if record and record["inputs"] != json.loads(json.dumps(cell.inputs, default=str)):
            changed.append((cell, record))
        elif not record or record["status"] != "done":
            left.append(cell)
    if changed and not redo:
        lines = [
            f"{cell.name}: {'; '.join(_changes(record['inputs'], cell.inputs))}" for cell, record in changed
        ]
        shown = [*lines[:5], *([f"and {len(lines) - 5} other cells"] if len(lines) > 5 else [])]
        raise InputError(
            [*shown, "do them anew with --redo, or choose another --output"],
            heading=f"{output} holds cells of another matrix:",
        )
    names = {cell.name for cell in [*left, *(cell for cell, _ in changed)]}
    return [cell for cell in cells if cell.name in names]


def clear(cells: Iterable[Cell], output: Path) -> None:
    """Remove what is left of cells that failed, were cut off, or are to be done anew."""
    for cell in cells:
        shutil.rmtree(cell.folder(output), ignore_errors=True)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), json.loads(json.dumps(now.get(key), default=str))
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{where}{key}.")
        elif old != new:
            found.append(f"`{where}{key}` was {str(old)[:60]}, is {str(new)[:60]}")
    return found


def recipe_text(recipe: str | None) -> str | None:
    """A recipe as it is now: what it says is part of a cell's inputs, not where it is."""
    return Path(recipe).read_text(encoding="utf-8") if recipe else None
