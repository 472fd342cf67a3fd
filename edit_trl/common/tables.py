"""Rows of text as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from edit_trl.common.markdown import clean


def aligned(blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    """Rows of cells in columns, a rule between blocks; the first column to the left, numbers to the right."""
    cleaned = [[[clean(cell) for cell in row] for row in block] for block in blocks]
    widths = [
        max(map(len, column)) for column in zip(*(row for block in cleaned for row in block), strict=True)
    ]
    lines: list[str] = []
    for block in cleaned:
        if lines:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        for first, *cells in block:
            numbers = (cell.rjust(size) for cell, size in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Columns, the first few of text to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
