"""What the cells that are done show: tables, one JSON file and one page."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from effect_matrix.cells import WARM_UP, Cell, list_cells, read_cell
from effect_matrix.config import Matrix

from edit_trl.errors import InputError
from edit_trl.evaluation.tables import aligned

Record = dict[str, Any]
Row = list[str]

BEGIN, END = "<!-- begin: effect.py -->", "<!-- end: effect.py -->"
MEANS = {
    "unparsed": "unparsed",
    "cut_off": "never-ending",
    "key_preference": "key steps preferred",
    "preference": "chains preferred",
    "fork_confidence": "p at the fork",
    "displacement": "log p, correct, since warm-up",
}


def report(matrix: Matrix, output: Path, markdown: Path | None) -> int:
    """Write `effect.json` and `effect.html`, print the tables and the JSON; 1 where a cell has failed.

    Args:
        matrix: What was asked.
        output: The matrix' folder.
        markdown: A file whose part between the markers is replaced by the tables.
    """
    from effect_matrix.page import write_page

    cells = list_cells(matrix)
    records = {cell.name: record for cell in cells if (record := read_cell(cell.folder(output)))}
    done = {name: record for name, record in records.items() if record["status"] == "done"}
    failed = {name: record["error"] for name, record in records.items() if record["status"] != "done"}
    results: Record = {
        "matrix": str(matrix.path),
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
    _write(output / "effect.json", json.dumps(results, indent=1, allow_nan=False))
    write_page(results, tables, output / "effect.html")
    if markdown is not None:
        fill(markdown, "\n\n".join(f"### {title}\n\n{as_markdown(table)}" for title, table in tables))
    print(f"{output / 'effect.html'}\n")
    print(json.dumps({key: value for key, value in results.items() if key != "students"} | {
        "students": {name: _brief(of) for name, of in results["students"].items()}
    }))
    return 1 if failed else 0


def _brief(student: Record) -> Record:
    return {"methods": {name: _without_curves(of) for name, of in student["methods"].items()}}


def _without_curves(method: Record) -> Record:
    return {key: value for key, value in method.items() if key != "curves"}


def _student(
    matrix: Matrix, student: str, cells: Sequence[Cell], done: Mapping[str, Record], output: Path
) -> Record:
    finals = [c for c in cells if c.student == student and c.kind == "final" and c.name in done]
    by_method: dict[str, dict[int, Cell]] = {}
    for cell in finals:
        if "variant" not in cell.inputs:
            by_method.setdefault(cell.method, {})[cell.seed] = cell
    started = {seed: done[c.name]["result"] for seed, c in by_method.get(WARM_UP, {}).items()}
    methods = {
        name: _method(matrix, name, by_method[name], done, started, student)
        for name in (WARM_UP, *matrix.methods)
        if name in by_method
    }
    _compare(matrix, methods, by_method, output)
    variants: dict[str, list[Cell]] = {}
    for cell in finals:
        if "variant" in cell.inputs:
            variants.setdefault(cell.name.split("/")[-1].rpartition("_")[0], []).append(cell)
    warmed = next((done[c.name]["result"] for c in cells if c.name in done and c.kind == "warm_up"), {})
    return {
        "parameters": warmed.get("parameters"),
        "warm_up": {key: warmed.get(key) for key in ("steps", "tokens", "cpu_seconds")},
        "methods": methods,
        "collapse": {
            name: _collapse(matrix, of, by_method.get(WARM_UP, {}), output) for name, of in variants.items()
        },
    }


def _method(
    matrix: Matrix,
    name: str,
    cells: Mapping[int, Cell],
    done: Mapping[str, Record],
    started: Mapping[int, Record],
    student: str,
) -> Record:
    """Means over a method's seeds, its grid and its curves."""
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
    moved = [r["held_out"]["chosen_logp"] - started[s]["held_out"]["chosen_logp"] for s, r in results.items() if s in started]
    held_out["displacement"] = statistics.fmean(moved) if moved else None
    made: Record = {"seeds": list(cells), "tests": tests, "held_out": held_out, "grid": []}
    if name == WARM_UP:
        return made | {"label": "the warm-up alone", "pairs": ""}
    method = matrix.methods[name]
    for number in range(len(method.points)):
        tuned = done.get(f"{student}/tune/{name}_{number}")
        if tuned:
            point = tuned["result"]
            made["grid"].append({"point": point["point"], "dev": point["dev"]["accuracy"]})
    first = next(iter(results.values()))
    made |= {key: first[key] for key in ("point", "steps", "curves")}
    made |= {
        key: statistics.fmean(r[key] for r in results.values())
        for key in ("tokens", "train_seconds", "cpu_seconds")
    }
    return made | {"label": method.label or name, "pairs": method.pairs}


def _mean_tasks(tasks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(of[name] for of in tasks) for name in tasks[0]}


def _compare(
    matrix: Matrix, methods: dict[str, Record], cells: Mapping[str, Mapping[int, Cell]], output: Path
) -> None:
    """Put each method's differences to the baseline into its record, p-values corrected over methods."""
    from edit_trl.evaluation.statistics import holm

    base = cells.get(matrix.baseline, {})
    measured = [(f"test_{test}", test, "accuracy") for test in matrix.data.tests]
    measured.append(("held_out", "key_preference", "key_preference"))
    for folder, name, score in measured:
        p_values = {}
        for method, record in methods.items():
            seeds = [seed for seed in cells[method] if seed in base]
            if method == matrix.baseline or not seeds:
                continue
            found = _difference(
                [base[seed].folder(output) / folder for seed in seeds],
                [cells[method][seed].folder(output) / folder for seed in seeds],
                score,
            )
            record.setdefault("differences", {})[name] = found
            p_values[method] = found["p_value"]
        corrected = {} if WARM_UP not in p_values else {WARM_UP: p_values.pop(WARM_UP)}  # no contender
        for method, p_value in (corrected | holm(p_values)).items():
            methods[method]["differences"][name]["holm_p_value"] = p_value


def _difference(before: Sequence[Path], after: Sequence[Path], score: str) -> Record:
    from edit_trl import compare_runs

    overall = compare_runs(before, after, score=score).systems[0].overall
    return {
        "seeds": len(before),
        "difference": overall.difference.value,
        "low": overall.difference.low,
        "high": overall.difference.high,
        "p_value": overall.p_value,
        "minimum_detectable_effect": overall.minimum_detectable_effect,
    }


def _collapse(
    matrix: Matrix, cells: Sequence[Cell], started: Mapping[int, Cell], output: Path
) -> Record:
    """A variant's seeds, each beside the warm-up that it started from."""
    test = next(iter(matrix.data.tests))
    runs = []
    for cell in cells:
        if cell.seed not in started:
            continue
        before = started[cell.seed].folder(output) / f"test_{test}"
        found = _difference([before], [cell.folder(output) / f"test_{test}"], "accuracy")
        runs.append({"seed": cell.inputs["stage_2_seed"], **found})
    worse = [run for run in runs if run["difference"] < 0 and run["p_value"] < 0.05]
    return {"options": cells[0].inputs["variant"], "runs": runs, "significantly_worse": len(worse)}


def tables_of(matrix: Matrix, results: Record, student: str) -> list[tuple[str, list[Row]]]:
    """The tables of a student: title and rows, the first of which is the head."""
    of = results["students"][student]
    size = f", {of['parameters'] / 1e6:.1f} M parameters" if of["parameters"] else ""
    methods, tests = of["methods"], list(matrix.data.tests)
    if not methods:
        return []
    accuracy = [["method", "pairs", "seeds", *tests, "chosen on dev"]]
    watched = [["method", *MEANS.values(), "tokens", "CPU s"]]
    for name, record in methods.items():
        shares = [f"{record['tests'][test]['accuracy']:.1%}" for test in tests]
        point = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in record.get("point", {}).items())
        label = record["label"] + (" (baseline)" if name == matrix.baseline else "")
        accuracy.append([label, record["pairs"], str(len(record["seeds"])), *shares, point])
        watched.append([label, *_watched(record, tests[0])])
    found = [(f"Accuracy: {student}{size}", accuracy)]
    for name in (*tests, "key_preference"):
        rows = [_difference_row(record, name) for record in methods.values() if name in record.get("differences", {})]
        if rows:
            head = ["method", "seeds", "difference", "95% interval", "p", "p (Holm)", "detectable"]
            found.append((f"Difference to {methods[matrix.baseline]['label']}, {name}: {student}", [head, *rows]))
    found.append((f"What else changed ({tests[0]} and held-out pairs): {student}", watched))
    if of["collapse"]:
        found.append((f"Other strengths and seeds ({tests[0]}, beside the warm-up): {student}", _collapse_table(of)))
    return found


def _watched(record: Record, test: str) -> Row:
    values = record["tests"][test] | record["held_out"]
    shown = []
    for name in MEANS:
        value = values[name]
        shown.append("" if value is None else f"{value:+.3f}" if name == "displacement" else f"{value:.1%}")
    if "tokens" not in record:
        return [*shown, "", ""]
    return [*shown, f"{record['tokens']:,.0f}", f"{record['cpu_seconds']:.0f}"]


def _difference_row(record: Record, name: str) -> Row:
    found = record["differences"][name]
    low, high = (f"{100 * found[side]:+.1f}" for side in ("low", "high"))
    effect = found["minimum_detectable_effect"]
    return [
        record["label"],
        str(found["seeds"]),
        f"{100 * found['difference']:+.1f}",
        f"{low} to {high}",
        f"{found['p_value']:.3f}",
        f"{found['holm_p_value']:.3f}",
        f"{100 * effect:.1f}",
    ]


def _collapse_table(of: Record) -> list[Row]:
    rows = [["variant", "options", "seeds", "mean difference", "worst", "significantly worse"]]
    for name, record in of["collapse"].items():
        differences = [100 * run["difference"] for run in record["runs"]]
        if differences:
            options = ", ".join(f"{key} {value}" for key, value in record["options"].items())
            mean, worst = f"{statistics.fmean(differences):+.1f}", f"{min(differences):+.1f}"
            rows.append([name, options, str(len(differences)), mean, worst, str(record["significantly_worse"])])
    return rows


def as_markdown(table: Sequence[Row]) -> str:
    """A table as Markdown; what would end a cell is escaped."""
    head, *rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def fill(path: Path, text: str) -> None:
    """Put a text between the markers of a file.

    Raises:
        InputError: The file has no markers.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise InputError(f"{path} must have one line `{BEGIN}` and one `{END}`; the tables go between them")
    head, _, rest = before.partition(BEGIN)
    _write(path, f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
