"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence

from edit_trl.common.terminal import visible_line


def aligned(blocks: Sequence[Sequence[Sequence[str]]], left: int = 1) -> str:
    """Align blocks of rows, with a rule between blocks; the first `left` columns to the left, the others to the right.

    All rows have the same number of cells.
    """
    blocks = [[[visible_line(cell) for cell in row] for row in block] for block in blocks]
    widths = [max(map(len, column)) for column in zip(*(row for block in blocks for row in block), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return f"\n{rule}\n".join("\n".join(_line(row, widths, left) for row in block) for block in blocks)


def _line(row: Sequence[str], widths: Sequence[int], left: int) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
    cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
    return "  ".join(cells).rstrip()
