"""Makes tables of the results, and writes tables to a Markdown file."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from effect_matrix.matrix import Matrix

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


def tables_of(matrix: Matrix, results: Record, student: str) -> list[tuple[str, list[Row]]]:
    """The tables of a student, each a title and its rows; the first row is the head."""
    outcome = results["students"][student]
    size = f", {outcome['parameters'] / 1e6:.1f} M parameters" if outcome["parameters"] else ""
    methods, tests = outcome["methods"], list(matrix.data.tests)
    if not methods:
        return []
    accuracy = [["method", "pairs", "seeds", *tests, "chosen on dev"]]
    others = [["method", *MEANS.values(), "tokens", "s", "CPU s"]]
    for name, record in methods.items():
        shares = [f"{record['tests'][test]['accuracy']:.1%}" for test in tests]
        point = ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in record.get("point", {}).items()
        )
        label = record["label"] + (" (baseline)" if name == matrix.baseline else "")
        accuracy.append([label, record["pairs"], str(len(record["seeds"])), *shares, point])
        others.append([label, *_other_cells(record, tests[0])])
    tables = [(f"Accuracy: {student}{size}", accuracy)]
    label = f"Difference to {methods[matrix.baseline]['label']}" if matrix.baseline in methods else ""
    for name in (*tests, "key_preference"):
        changes = {r["label"]: r["differences"][name] for r in methods.values() if name in r.get("differences", {})}
        if changes:
            rows = [[method, *_difference_cells(change)] for method, change in changes.items()]
            tables.append((f"{label}, {name}: {student}", [["method", *_DIFFERENCE_HEAD], *rows]))
    tables.append((f"What else changed ({tests[0]} and held-out pairs): {student}", others))
    rows = [
        [record["label"], methods[record["control"]]["label"], test, *_difference_cells(change)]
        for name, record in methods.items()
        for test, change in record.get("control_differences", {}).items()
    ]
    if rows:
        head = ["method", "beside", "test", *_DIFFERENCE_HEAD]
        tables.append((f"Difference to a control on the same pairs: {student}", [head, *rows]))
    if outcome["collapse"]:
        title = f"Other strengths and seeds ({tests[0]}, beside the warm-up): {student}"
        tables.append((title, _collapse_table(outcome)))
    return tables


def _other_cells(record: Record, test: str) -> Row:
    values = record["tests"][test] | record["held_out"]
    cells = []
    for name in MEANS:
        value = values[name]
        cells.append("" if value is None else f"{value:+.3f}" if name == "displacement" else f"{value:.1%}")
    if "tokens" not in record:
        return [*cells, "", "", ""]
    cost = (f"{record[name]:.0f}" for name in ("train_seconds", "cpu_seconds"))
    tokens = "not counted" if record["tokens"] is None else f"{record['tokens']:,.0f}"
    return [*cells, tokens, *cost]


_DIFFERENCE_HEAD = ["seeds", "difference", "95% interval", "p", "p (Holm)", "detectable"]


def _difference_cells(change: Record) -> Row:
    low, high = (f"{100 * change[side]:+.1f}" for side in ("low", "high"))
    effect = change["minimum_detectable_effect"]
    return [
        str(change["seeds"]),
        f"{100 * change['difference']:+.1f}",
        f"{low} to {high}",
        f"{change['p_value']:.3f}",
        f"{change['holm_p_value']:.3f}",
        "" if effect is None else f"{100 * effect:.1f}",
    ]


def _collapse_table(outcome: Record) -> list[Row]:
    rows = [["variant", "options", "seeds", "mean difference", "worst", "significantly worse"]]
    for name, record in outcome["collapse"].items():
        differences = [100 * run["difference"] for run in record["runs"]]
        if differences:
            options = ", ".join(f"{key} {value}" for key, value in record["options"].items())
            mean, worst = f"{statistics.fmean(differences):+.1f}", f"{min(differences):+.1f}"
            rows.append([name, options, str(len(differences)), mean, worst, str(record["significantly_worse"])])
    return rows


def as_markdown(table: Sequence[Row]) -> str:
    """A table as Markdown; characters that would end a cell are escaped."""
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
    write_whole(path, f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
