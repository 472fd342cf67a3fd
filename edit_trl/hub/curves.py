"""Training curves as an SVG picture, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edit_trl.common.markdown import text

PANELS = {"loss": "loss", "key_accuracy": "key accuracy"}
"""Title of each panel by the name of its metric in the logs. The metric with the prefix `eval_` is drawn dashed."""

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # distinguishable for most colour-blind readers
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 380, 250, 52, 34, 46
_MOST_POINTS = 200

Points = list[tuple[float, float]]


def curves_svg(stages: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str | None:
    """Draw the curves of all stages, one after another on the axis of steps.

    Args:
        stages: Name and logs of each stage; the logs as in `TrainerState.log_history`.

    Returns:
        An SVG document; None if nothing was logged.
    """
    panels = {name: lines for name in PANELS if (lines := _lines(stages, name))}
    if not panels:
        return None
    width = _WIDTH * len(panels)
    drawn = [_panel(index, PANELS[name], lines) for index, (name, lines) in enumerate(panels.items())]
    summary = "; ".join(_summary(name, lines) for name, lines in panels.items())
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT + 22}" width="{width}" '
            'role="img" aria-labelledby="title desc" font-family="sans-serif" font-size="11">',
            '<title id="title">Training curves</title>',
            f'<desc id="desc">{text(summary)}</desc>',
            f'<rect width="{width}" height="{_HEIGHT + 22}" fill="#ffffff"/>',
            *drawn,
            *_legend(stages),
            "</svg>",
            "",
        ]
    )


def _lines(stages: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], name: str) -> list[tuple[int, bool, Points]]:
    """Return the number of the stage, whether it is an evaluation, and the points of every line with points."""
    lines, offset = [], 0
    for number, (_, log) in enumerate(stages):
        for key in (name, f"eval_{name}"):
            points = [(offset + entry["step"], float(entry[key])) for entry in log if key in entry]
            points = [point for point in points if math.isfinite(point[1])]
            if points:
                lines.append((number, key != name, _thinned(points)))
        offset += max((entry["step"] for entry in log if "step" in entry), default=0)
    return lines


def _thinned(points: Points) -> Points:
    step = math.ceil(len(points) / _MOST_POINTS)
    sparse = points[::step]
    return sparse if sparse[-1] == points[-1] else [*sparse, points[-1]]


def _panel(index: int, title: str, lines: list[tuple[int, bool, Points]]) -> str:
    steps = [x for _, _, points in lines for x, _ in points]
    values = [y for _, _, points in lines for _, y in points]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    last = max(steps)
    left = index * _WIDTH + _LEFT
    right, bottom = (index + 1) * _WIDTH - 16, _HEIGHT - _BOTTOM

    def x(step: float) -> float:
        return left + (right - left) * step / last

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    parts = [f'<text x="{left}" y="20" font-size="13" font-weight="bold">{title}</text>']
    for value in (low, (low + high) / 2, high):
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#dddddd"/>'
            f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for step, anchor in ((0, "start"), (last, "end")):
        parts.append(f'<text x="{x(step):.1f}" y="{bottom + 16}" text-anchor="{anchor}">{step:g}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 16}" text-anchor="middle">step</text>')
    for number, is_evaluation, points in lines:
        style = f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="1.6" fill="none"'
        style += ' stroke-dasharray="5 3"' if is_evaluation else ""
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        if len(points) == 1:
            path += f" {x(points[0][0]) + 2:.1f},{y(points[0][1]):.1f}"
        parts.append(f'<polyline points="{path}" {style}/>')
    return "\n".join(parts)


def _legend(stages: Sequence[tuple[str, Any]]) -> list[str]:
    parts, left = [], _LEFT
    for number, (name, _) in enumerate(stages):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(
            f'<rect x="{left}" y="{_HEIGHT - 8}" width="18" height="3" fill="{colour}"/>'
            f'<text x="{left + 24}" y="{_HEIGHT - 2}">{text(name)}</text>'
        )
        left += 40 + 7 * len(name)
    return [*parts, f'<text x="{left}" y="{_HEIGHT - 2}" fill="#555555">dashed: evaluation</text>']


def _summary(name: str, lines: list[tuple[int, bool, Points]]) -> str:
    trained = [points for _, is_evaluation, points in lines if not is_evaluation] or [lines[0][2]]
    return f"{PANELS[name]} from {trained[0][0][1]:.3g} to {trained[-1][-1][1]:.3g}"
