"""Collects the results of the cells that are done: tables, a JSON file and an HTML page."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edit_trl.common.files import write_whole
from edit_trl.common.tables import aligned
from edit_trl.evaluation.statistics import holm
from effect_matrix.cells import WARM_UP, Cell, list_cells, read_cell
from effect_matrix.differences import accuracy_interval, difference
from effect_matrix.matrix import Matrix
from effect_matrix.page import write_page
from effect_matrix.tables import as_markdown, fill, tables_of

Record = dict[str, Any]


def report(matrix: Matrix, output: Path, markdown: Path | None) -> int:
    """Write `effect.json` and `effect.html`, print the tables and the JSON; returns 1 if a cell has failed.

    Args:
        matrix: The matrix.
        output: The folder of the matrix.
        markdown: A file in which the tables replace the part between the markers.
    """
    cells = list_cells(matrix)
    records = {cell.name: record for cell in cells if (record := read_cell(cell.folder(output)))}
    done = {name: record for name, record in records.items() if record["status"] == "done"}
    failed = {name: record["error"] for name, record in records.items() if record["status"] != "done"}
    results: Record = {
        "matrix": str(matrix.path),
        "baseline": matrix.baseline,
        "cells": {"asked": len(cells), "done": len(done), "failed": failed},
        "students": {},
        "settings": {"jobs_threads": 1, "python": platform.python_version()},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("edit_trl", "torch", "transformers", "trl")},
    }
    for student in matrix.students:
        results["students"][student] = _student(matrix, student, cells, done, output)
    tables = [(title, table) for student in matrix.students for title, table in tables_of(matrix, results, student)]
    if failed:
        tables.append(("Cells that failed", [["cell", "error"], *map(list, failed.items())]))
    text = "\n\n".join(f"{title}\n{aligned([table[:1], table[1:]])}" for title, table in tables)
    print(f"{text}\n\n{len(done)} of {len(cells)} cells are done, {len(failed)} failed")
    write_whole(output / "effect.json", json.dumps(results, indent=1, allow_nan=False))
    write_page(results, tables, output / "effect.html")
    if markdown is not None:
        fill(markdown, "\n\n".join(f"### {title}\n\n{as_markdown(table)}" for title, table in tables))
    print(f"{output / 'effect.html'}\n")
    print(
        json.dumps(
            {key: value for key, value in results.items() if key != "students"}
            | {"students": {name: _brief(student) for name, student in results["students"].items()}}
        )
    )
    return 1 if failed else 0


def _brief(student: Record) -> Record:
    """The methods of a student, without their curves."""
    methods = student["methods"].items()
    return {"methods": {name: {k: v for k, v in method.items() if k != "curves"} for name, method in methods}}


def _student(matrix: Matrix, student: str, cells: Sequence[Cell], done: Mapping[str, Record], output: Path) -> Record:
    done = dict(done)
    finals = [c for c in cells if c.student == student and c.kind == "final" and c.name in done]
    by_method: dict[str, dict[int, Cell]] = {}
    for cell in finals:
        if "variant" in cell.inputs:
            continue
        by_method.setdefault(cell.method, {})[cell.seed] = cell
        result = done[cell.name]["result"]
        if any("majority_marks" in test for test in result["tests"].values()):
            # Weighted votes are shown beside the majority of the same samples.
            beside = replace(cell, name=f"{cell.name}, majority", method=f"{cell.method}_majority")
            by_method.setdefault(beside.method, {})[cell.seed] = beside
            done[beside.name] = {"result": result | {"tests": _by_majority(result["tests"])}}
    started = {seed: done[c.name]["result"] for seed, c in by_method.get(WARM_UP, {}).items()}
    order = [name for method in (WARM_UP, *matrix.methods) for name in (method, f"{method}_majority")]
    methods = {
        name: _method(matrix, name, by_method[name], done, started, student) for name in order if name in by_method
    }
    marks = {
        name: {seed: _marks(done[cell.name]["result"]) for seed, cell in by_seed.items()}
        for name, by_seed in by_method.items()
    }
    _compare(matrix, methods, marks)
    for name, record in methods.items():
        for test in matrix.data.tests:
            interval = accuracy_interval([scores[test] for scores in marks[name].values()])
            record["tests"][test]["interval"] = interval
    variants: dict[str, list[Cell]] = {}
    for cell in finals:
        if "variant" in cell.inputs:
            variants.setdefault(cell.name.split("/")[-1].rpartition("_")[0], []).append(cell)
    warmed = next((done[c.name]["result"] for c in cells if c.name in done and c.kind == "warm_up"), {})
    return {
        "parameters": warmed.get("parameters"),
        "warm_up": {key: warmed.get(key) for key in ("steps", "tokens", "cpu_seconds")},
        "methods": methods,
        "collapse": {name: _collapse(matrix, runs, marks.get(WARM_UP, {}), done) for name, runs in variants.items()},
    }


def _method(
    matrix: Matrix,
    name: str,
    cells: Mapping[int, Cell],
    done: Mapping[str, Record],
    started: Mapping[int, Record],
    student: str,
) -> Record:
    """The means over a method's seeds, its grid and its curves."""
    results = {seed: done[cell.name]["result"] for seed, cell in cells.items()}
    tests = {
        test: {
            score: statistics.fmean(r["tests"][f"test_{test}"][score] for r in results.values())
            for score in ("accuracy", "unparsed", "cut_off")
        }
        | {"by_seed": {seed: r["tests"][f"test_{test}"]["accuracy"] for seed, r in results.items()}}
        | {"tasks": _mean_tasks([r["tests"][f"test_{test}"]["tasks"] for r in results.values()])}
        for test in matrix.data.tests
    }
    held_out = {
        score: statistics.fmean(r["held_out"][score] for r in results.values())
        for score in ("key_preference", "preference", "fork_confidence", "chosen_logp")
    }
    displacements = [
        r["held_out"]["chosen_logp"] - started[s]["held_out"]["chosen_logp"] for s, r in results.items() if s in started
    ]
    held_out["displacement"] = statistics.fmean(displacements) if displacements else None
    record: Record = {"seeds": list(cells), "tests": tests, "held_out": held_out, "grid": []}
    if name == WARM_UP:
        return record | {"label": "the warm-up alone", "pairs": ""}
    method, suffix = matrix.methods.get(name), ""
    if method is None:
        name, suffix = name.removesuffix("_majority"), ", majority"
        method = matrix.methods[name]
    for number in range(len(method.points)):
        tuned = done.get(f"{student}/tune/{name}_{number}")
        if tuned:
            point = tuned["result"]
            record["grid"].append({"point": point["point"], "dev": point["dev"]["accuracy"]})
    first = next(iter(results.values()))
    record |= {key: first[key] for key in ("point", "steps", "curves")}
    for key in ("tokens", "train_seconds", "cpu_seconds"):
        values = [r[key] for r in results.values() if r[key] is not None]
        record[key] = statistics.fmean(values) if values else None
    pairs = matrix.methods[method.measures].pairs if method.measures else method.pairs
    return record | {"label": f"{method.label or name}{suffix}", "pairs": pairs}


def _by_majority(tests: Mapping[str, Record]) -> dict[str, Record]:
    """The results on the tests with the majority's answers in place of those of the weighted vote."""
    return {
        name: scores | {"marks": scores["majority_marks"], "accuracy": scores["majority_accuracy"]}
        for name, scores in tests.items()
    }


def _mean_tasks(tasks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(scores[name] for scores in tasks) for name in tasks[0]}


def _marks(result: Record) -> dict[str, str]:
    """The marks of a cell's items by test, and those of its held-out pairs."""
    tests = {name.removeprefix("test_"): scores["marks"] for name, scores in result["tests"].items()}
    return tests | {"key_preference": result["held_out"]["marks"]}


MarksBySeed = Mapping[int, Mapping[str, str]]


def _compare(matrix: Matrix, methods: dict[str, Record], marks: Mapping[str, MarksBySeed]) -> None:
    """Add to each method's record its differences to the baseline and to its control."""
    pairs = {name: matrix.baseline for name in methods if name != matrix.baseline}
    _differences("differences", pairs, matrix, methods, marks)
    controls = {name: matrix.methods[name].control for name in methods if name in matrix.methods}
    # The control of a weighted vote is the majority of the same samples.
    controls |= {name.removesuffix("_majority"): name for name in methods if name not in (WARM_UP, *matrix.methods)}
    pairs = {name: control for name, control in controls.items() if control in marks}
    _differences("control_differences", pairs, matrix, methods, marks)


def _differences(
    key: str,
    pairs: Mapping[str, str],
    matrix: Matrix,
    methods: dict[str, Record],
    marks: Mapping[str, MarksBySeed],
) -> None:
    """The differences of some methods to others, on every test, p-values corrected over the methods."""
    for name in (*matrix.data.tests, "key_preference"):
        p_values = {}
        for method, other in pairs.items():
            seeds = [seed for seed in marks[method] if seed in marks.get(other, {})]
            if not seeds:
                continue
            before, after = ([marks[run][seed][name] for seed in seeds] for run in (other, method))
            change = difference(before, after)
            methods[method].setdefault(key, {})[name] = change
            if key == "control_differences":
                methods[method]["control"] = other
            p_values[method] = change["p_value"]
        corrected = {} if WARM_UP not in p_values else {WARM_UP: p_values.pop(WARM_UP)}  # the warm-up is not a method
        for method, p_value in (corrected | holm(p_values)).items():
            methods[method][key][name]["holm_p_value"] = p_value


def _collapse(matrix: Matrix, cells: Sequence[Cell], started: MarksBySeed, done: Mapping[str, Record]) -> Record:
    """The runs of a variant, each compared with the warm-up that it started from."""
    test = next(iter(matrix.data.tests))
    runs = []
    for cell in cells:
        if cell.seed not in started:
            continue
        after = done[cell.name]["result"]["tests"][f"test_{test}"]["marks"]
        change = difference([started[cell.seed][test]], [after])
        runs.append({"seed": cell.inputs["stage_2_seed"], **change})
    worse = [run for run in runs if run["difference"] < 0 and run["p_value"] < 0.05]
    return {"options": cells[0].inputs["variant"], "runs": runs, "significantly_worse": len(worse)}
