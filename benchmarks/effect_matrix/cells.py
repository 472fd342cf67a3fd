"""The cells of a matrix: the work of each, the cells that it needs, and whether it is done.

A cell is a folder `cells/NAME`. Its `cell.json`, which is written last, has everything that the cell depends
on (`inputs`), and its result or error.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.common.json_text import read_json_file
from effect_matrix.data import resolve
from effect_matrix.matrix import Matrix, Method

Kind = Literal["warm_up", "pairs", "tune", "final"]
CELL_FILE = "cell.json"
WARM_UP = "warm_up"
"""The name in tables of the student before its second stage."""


@dataclass(frozen=True)
class Cell:
    """A unit of work.

    Attributes:
        name: The cell's folder below `cells`.
        kind: `warm_up` trains the first stage of a seed; `pairs` makes the pairs of a seed; `tune` trains a
            method at a point of its grid and measures it on the dev set; `final` measures it on the tests.
        student: The student.
        seed: The seed of the warm-up.
        needs: Names of the cells that must be done first.
        inputs: Everything that decides the cell's result.
        method: The method of `tune` and `final`; `warm_up` for the student before its second stage.
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
    """Makes the cells of a matrix, each once."""

    matrix: Matrix
    sets: dict[str, dict[str, Any]]
    cells: dict[str, Cell] = field(default_factory=dict)

    def add(self, cell: Cell) -> Cell:
        self.cells.setdefault(cell.name, cell)
        return cell

    def warm_up(self, student: str, seed: int) -> Cell:
        options = vars(self.matrix.students[student])
        inputs = {
            "student": {key: value for key, value in options.items() if value is not None},
            "warm_up": self.matrix.warm_up,
            "data": self.sets["warm_up"],
            "dev": self.sets["dev"],
            "evaluation": vars(self.matrix.evaluation),
            "seed": seed,
        }
        return self.add(Cell(f"{student}/warm_up/seed{seed}", "warm_up", student, seed, (), inputs))

    def pairs(self, student: str, seed: int, name: str) -> Cell | None:
        """The cell that makes the pairs of a seed; None where all seeds have the same pairs."""
        source = self.matrix.data.pairs[name]
        if not source.by_student:
            return None
        start = self.warm_up(student, seed)
        inputs = {"pairs": self.sets[f"pairs_{name}"], "warm_up": start.inputs}
        needs = [start.name]
        if source.student_of:
            before = self.final(student, source.student_of, seed)
            inputs["student_of"] = before.inputs
            needs.append(before.name)
        if source.of:
            inputs["of"] = self.sets["warm_up" if source.of == "warm_up" else f"pairs_{source.of}"]
        if source.beside:
            other = self.pairs(student, seed, source.beside)
            inputs["beside"] = other.inputs if other else self.sets[f"pairs_{source.beside}"]
            needs += [other.name] if other else []
        cell_name = f"{student}/pairs/{name}_seed{seed}"
        return self.add(Cell(cell_name, "pairs", student, seed, tuple(needs), inputs))

    def training(self, student: str, seed: int, method: Method) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The cells that the training of a method needs, and its inputs apart from the point of the grid."""
        start, pairs = self.warm_up(student, seed), self.pairs(student, seed, method.pairs)
        inputs = {
            "stage_2": self.matrix.stage_2,
            "options": method.options,
            "recipe": recipe_text(method.recipe),
            "pairs_name": method.pairs,
            "pairs": pairs.inputs if pairs else self.sets[f"pairs_{method.pairs}"],
            "warm_up": start.inputs,
        }
        needs = [start.name, *([pairs.name] if pairs else [])]
        if method.start:
            before = self.final(student, method.start, seed)
            inputs["start"] = before.inputs
            needs.append(before.name)
        return tuple(needs), inputs

    def tune(self, student: str, name: str) -> list[Cell]:
        method, seed = self.matrix.methods[name], self.matrix.tuning_seed
        needs, inputs = self.training(student, seed, method)
        cells = []
        for number, point in enumerate(method.points):
            cell_name = f"{student}/tune/{name}_{number}"
            inputs = inputs | {"point": point}
            cells.append(self.add(Cell(cell_name, "tune", student, seed, needs, inputs, name)))
        return cells

    def measurements(self, tests: Sequence[str]) -> dict[str, Any]:
        """The sets that a final cell is measured on."""
        sets = {f"test_{name}": self.sets[f"test_{name}"] for name in tests}
        return {"tests": sets, "held_out": self.sets["held_out"]}

    def final(self, student: str, name: str, seed: int) -> Cell:
        tests = list(self.matrix.data.tests)
        if name == WARM_UP:
            start = self.warm_up(student, seed)
            inputs = {"warm_up": start.inputs, **self.measurements(tests)}
            needs = (start.name,)
        elif of := self.matrix.methods[name].measures:
            before = self.final(student, of, seed)
            inputs = {"measures": before.inputs, "evaluation": self.matrix.methods[name].evaluation}
            inputs |= self.measurements(tests)
            needs = (before.name,)
        else:
            grid = self.tune(student, name)
            needs, inputs = self.training(student, seed, self.matrix.methods[name])
            needs = (*needs, *(cell.name for cell in grid))
            inputs |= {"grid": self.matrix.methods[name].grid, **self.measurements(tests)}
            if self.matrix.methods[name].evaluation:
                inputs["evaluation"] = self.matrix.methods[name].evaluation
        cell = Cell(f"{student}/final/{name}_seed{seed}", "final", student, seed, needs, inputs, name)
        return self.add(cell)

    def collapse(self, student: str, variant: str, number: int) -> Cell:
        collapse, matrix = self.matrix.collapse, self.matrix
        method = matrix.methods[collapse.method]
        seed = matrix.seeds[number % len(matrix.seeds)]
        grid = self.tune(student, collapse.method)
        needs, inputs = self.training(student, seed, method)
        inputs |= {"grid": method.grid, "variant": collapse.variants[variant]}
        inputs |= {"stage_2_seed": number, **self.measurements(list(matrix.data.tests)[:1])}
        needs = (*needs, *(cell.name for cell in grid))
        name = f"{student}/collapse/{variant}_{number}"
        return self.add(Cell(name, "final", student, seed, needs, inputs, collapse.method))


def list_cells(matrix: Matrix) -> list[Cell]:
    """All cells, in the order in which they should run: all methods with one seed, then with the next."""
    maker = _Maker(matrix, resolve(matrix.data))
    seeds = [matrix.tuning_seed, *(seed for seed in matrix.seeds if seed != matrix.tuning_seed)]
    for student in matrix.students:
        for seed in seeds:
            for name in (WARM_UP, *matrix.methods):
                maker.final(student, name, seed)
        if matrix.collapse:
            for number in range(matrix.collapse.seeds):
                for variant in matrix.collapse.variants:
                    maker.collapse(student, variant, number)
    return list(maker.cells.values())


def read_cell(folder: Path) -> dict[str, Any] | None:
    """The record of a cell; None if it has not ended."""
    file = folder / CELL_FILE
    if not file.is_file():
        return None
    record = read_json_file(file)
    for name in ("inputs", "status"):
        if not isinstance(record, dict) or name not in record:
            raise InputError(f"{file} is not the record of a cell: it has no `{name}`; remove {folder}")
    return record


def write_cell(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a cell's record, whole or not at all."""
    write_whole(folder / CELL_FILE, json.dumps(record, indent=1, default=str))


def settle(cells: Sequence[Cell], output: Path, redo: bool) -> list[Cell]:
    """The cells that have to run.

    Args:
        cells: All cells.
        output: The folder of the matrix.
        redo: Whether to run cells again whose inputs have changed.

    Raises:
        InputError: Inputs have changed and `redo` is off; lists the changes.
    """
    changed, left = [], []
    for cell in cells:
        record = read_cell(cell.folder(output))
        if record and record["inputs"] != json.loads(json.dumps(cell.inputs, default=str)):
            changed.append((cell, record))
        elif not record or record["status"] != "done":
            left.append(cell)
    if changed and not redo:
        lines = [f"{cell.name}: {'; '.join(changes_of(record['inputs'], cell.inputs))}" for cell, record in changed]
        rest = [f"and {len(lines) - 5} other cells"] if len(lines) > 5 else []
        raise InputError(
            [*lines[:5], *rest, "run them again with --redo, or choose another --output"],
            heading=f"{output} holds cells of another matrix:",
        )
    names = {cell.name for cell in [*left, *(cell for cell, _ in changed)]}
    return [cell for cell in cells if cell.name in names]


def clear(cells: Iterable[Cell], output: Path) -> None:
    """Remove the remains of cells that failed, were interrupted or will run again."""
    for cell in cells:
        shutil.rmtree(cell.folder(output), ignore_errors=True)


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between a cell's recorded inputs and those of now, one text per option."""
    changes = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), json.loads(json.dumps(now.get(key), default=str))
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changes_of(old, new, f"{where}{key}.")
        elif old != new:
            changes.append(f"`{where}{key}` was {str(old)[:60]}, is {str(new)[:60]}")
    return changes


def recipe_text(recipe: str | None) -> str | None:
    """The text of a recipe. The text, not the path, is part of a cell's inputs."""
    return Path(recipe).read_text(encoding="utf-8") if recipe else None
