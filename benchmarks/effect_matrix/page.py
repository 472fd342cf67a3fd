"""Writes the results as one HTML page: SVG charts and all tables, without scripts or network access."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edit_trl.common.files import write_whole

Record = dict[str, Any]

WIDTH, LEFT, RIGHT, LINE = 860, 300, 60, 26
COLOURS = ("#3b6fb6", "#c2571a", "#2d8a57", "#8a4fb0", "#b03a5b", "#6b7a1f", "#1f8a99", "#86603c")
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --quiet: #667; --line: #d5d8de; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --quiet: #9aa3ad; --line: #3a4048; --back: #16191d; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
.quiet, svg .quiet { color: var(--quiet); fill: var(--quiet); }
h2 { margin-top: 2.5rem; } .failed { color: #c0392b; }
"""


def write_page(results: Record, tables: Sequence[tuple[str, Sequence[Sequence[str]]]], path: Path) -> None:
    """Write the page.

    Args:
        results: The content of `effect.json`.
        tables: Titles and rows; the first row of each table is its head.
        path: The file to write.
    """
    cells = results["cells"]
    parts = [f"<p>{cells['done']} of {cells['asked']} cells are done, {len(cells['failed'])} failed.</p>"]
    for name, student in results["students"].items():
        parts.append(f"<h2>{escape(name)}</h2>")
        parts += _charts(student, results["baseline"])
    parts.append("<h2>Tables</h2><p class='quiet'>All that the charts show, and more.</p>")
    parts += [_table(title, rows) for title, rows in tables]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Effect</title><style>{STYLE}</style></head><body><h1>What each method is worth</h1>"
        f"{''.join(parts)}</body></html>\n"
    )
    write_whole(path, page)


def _charts(student: Record, baseline: str) -> list[str]:
    methods, parts = student["methods"], []
    if not methods:
        return ["<p>No method is measured yet.</p>"]
    for test in next(iter(methods.values()))["tests"]:
        parts.append(f"<h3>{escape(test)}: accuracy</h3>")
        parts.append("<p class='quiet'>The mean over seeds, with its 95% interval; a dot each seed.</p>")
        parts.append(_accuracy_chart(methods, test))
        if any(test in record.get("differences", {}) for record in methods.values()):
            label = escape(methods[baseline]["label"])
            parts.append(f"<h3>{escape(test)}: difference to {label}</h3>")
            parts.append("<p class='quiet'>Points of accuracy, 95% intervals over items and seeds; p after Holm.</p>")
            parts.append(_difference_chart(methods, test))
    parts.append("<h3>Log-probability of correct chains while training</h3>")
    parts.append(_curves({r["label"]: r["curves"] for r in methods.values() if r.get("curves")}))
    parts.append("<h3>Grids on dev</h3>" + _table("", _grid_rows(methods)))
    return parts


def _accuracy_chart(methods: Mapping[str, Record], test: str) -> str:
    rows = []
    for record in methods.values():
        scores = record["tests"][test]
        by_seed = list(scores["by_seed"].values())
        rows.append((record["label"], scores["accuracy"], *scores["interval"], by_seed, ""))
    return _points(rows, percent=True)


def _difference_chart(methods: Mapping[str, Record], test: str) -> str:
    rows = []
    for record in methods.values():
        change = record.get("differences", {}).get(test)
        if change:
            note = f"p {change['holm_p_value']:.2g}"
            rows.append((record["label"], change["difference"], change["low"], change["high"], [], note))
    return _points(rows, zero=True)


def _points(rows: Sequence[tuple], *, percent: bool = False, zero: bool = False) -> str:
    """A chart with one line per row: label, value, low, high, dots and a note at the end."""
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    pad = 0.05 * ((high - low) or 1)
    low, high = low - pad, high + pad
    height = LINE * (len(rows) + 1)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    shapes = []
    bottom = height - 20
    for step in range(5):
        value = low + pad + (high - low - 2 * pad) * step / 4
        text = f"{100 * value:.0f}%" if percent else f"{100 * value:+.1f}"
        shapes.append(_line(x(value), x(value), 0, bottom, "var(--line)"))
        shapes.append(_text(x(value), height - 6, text, "middle", quiet=True))
    if zero:
        shapes.append(_line(x(0), x(0), 0, bottom, "currentColor"))
    for number, (label, value, start, end, dots, note) in enumerate(rows):
        y = LINE * number + LINE / 2
        shapes.append(_text(LEFT - 12, y + 4, label, "end"))
        shapes.append(_line(x(start), x(end), y, y, COLOURS[0]))
        shapes += [f'<circle cx="{x(dot):.1f}" cy="{y}" r="2.5" fill="{COLOURS[1]}"/>' for dot in dots]
        shapes.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="4.5" fill="{COLOURS[0]}"/>')
        shapes.append(_text(WIDTH - RIGHT + 6, y + 4, note, quiet=True))
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(shapes)}</svg>'


def _curves(curves: Mapping[str, Sequence[Mapping[str, float]]], name: str = "logps/chosen") -> str:
    """A chart with one curve per method; methods that never logged the value are left out."""
    series = {label: [(entry["step"], entry[name]) for entry in log if name in entry] for label, log in curves.items()}
    series = {label: points for label, points in series.items() if points}
    if not series:
        return "<p class='quiet'>Nothing was logged.</p>"
    steps, values = zip(*(point for points in series.values() for point in points), strict=True)
    low, high, last = min(values), max(values), max(steps)
    width, height = WIDTH - 40, 300

    def place(step: float, value: float) -> str:
        return f"{50 + (width - 50) * step / last:.1f},{20 + 250 * (high - value) / ((high - low) or 1):.1f}"

    shapes = [_text(44, 24 + 62.5 * i, f"{high - (high - low) * i / 4:.2f}", "end", quiet=True) for i in range(5)]
    shapes.append(_text(width, height - 6, f"step {last}", "end", quiet=True))
    legend = []
    for number, (label, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"')[number // len(COLOURS) % 3]
        line = " ".join(place(*point) for point in points)
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        x, y = 10 + (number % 3) * 280, height + 16 + number // 3 * 18
        legend.append(_line(x, x + 26, y - 4, y - 4, colour, dash))
        legend.append(_text(x + 32, y, label))
    bottom = height + 24 + (len(series) + 2) // 3 * 18
    return f'<svg viewBox="0 0 {WIDTH} {bottom}" role="img">{"".join(shapes + legend)}</svg>'


def _line(x1: float, x2: float, y1: float, y2: float, colour: str, dash: str = "") -> str:
    places = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"'
    return f'<line {places} stroke="{colour}" stroke-width="1.5"{dash}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", quiet: bool = False) -> str:
    kind = ' class="quiet"' if quiet else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid_rows(methods: Mapping[str, Record]) -> list[list[str]]:
    rows = [["method", "point", "dev accuracy"]]
    for record in methods.values():
        for tried in record["grid"]:
            point = ", ".join(f"{name} {value}" for name, value in tried["point"].items())
            rows.append([record["label"], point, f"{tried['dev']:.1%}"])
    return rows


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[escape(str(cell)) for cell in row] for row in rows]
    lines = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    top = f"<thead><tr><th>{'</th><th>'.join(head)}</th></tr></thead>"
    return f'{heading}<div class="wide"><table>{top}<tbody>{lines}</tbody></table></div>'
