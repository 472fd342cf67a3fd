"""Shows dual CoTs in a terminal, in colour, and lets the user browse them with keys."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from edit_trl.cli.pair_text import HEADINGS, group_tables, overview, pair_tags, prompt_text
from edit_trl.common.terminal import visible

if TYPE_CHECKING:
    from edit_trl.data.pair_statistics import Pair

# From the palette of Okabe and Ito. Key steps are underlined too, so they are visible without colour.
_RIGHT, _WRONG = "#56b4e9", "#e69f00"
_SIDE_BY_SIDE = 100  # columns of the terminal

_NEXT = {"n", "\x1b[C", "\x1bOC", "l", "\r", "\n"}
_PREVIOUS = {"p", "\x1b[D", "\x1bOD", "b"}
_DOWN = {"j", "\x1b[B", "\x1bOB"}
_UP = {"k", "\x1b[A", "\x1bOA"}
_PAGE_DOWN, _PAGE_UP = {" ", "\x1b[6~"}, {"\x1b[5~"}
_FIRST, _LAST = {"g", "\x1b[H", "\x1bOH", "\x1b[1~"}, {"G", "\x1b[F", "\x1bOF", "\x1b[4~"}
_LEAVE = {"q", "Q", "\x1b", "\x04"}
_KEY = re.compile(r"\x1b\[[0-9;]*[~A-Za-z]|\x1bO.|.", re.DOTALL)


def statistics_view(source: str, pairs: Sequence[Pair], unit: str, method: str) -> RenderableType:
    """Return statistics of the pairs."""
    first, *others = overview(source, pairs, unit, method)
    parts: list[RenderableType] = [Text(visible(first), style="bold"), *map(Text, others)]
    for group, rows in group_tables(pairs).items():
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column(Text(f"by {group}"), overflow="fold")
        for heading in HEADINGS:
            table.add_column(Text(heading), justify="right")
        for row in rows:
            table.add_row(*map(Text, row))
        parts += [Text(), table]
    return Group(*parts)


def pair_view(pair: Pair, place: str, width: int) -> RenderableType:
    """Return a pair: its prompt, then both chains with their key steps underlined, side by side if there is room."""
    title = Text.assemble((visible(pair.id or f"row {pair.row}"), "bold"), f"  {place}")
    parts: list[RenderableType] = [Rule(title, align="left", style="dim")]
    parts.append(Text(visible(pair_tags(pair)), style="dim"))
    parts.append(Padding(Text(visible(prompt_text(pair.prompt))), (1, 2)))
    panels = [_panel("+ correct", pair.chosen, pair.chosen_spans, _RIGHT)]
    if pair.rejected is not None:
        panels.append(_panel("- wrong", pair.rejected, pair.rejected_spans, _WRONG))
    if width >= _SIDE_BY_SIDE and len(panels) == 2:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(*panels)
        parts.append(grid)
    else:
        parts += panels
    if pair.answer:
        parts.append(Text.assemble(("answer  ", "dim"), visible(pair.answer)))
    return Group(*parts)


def _panel(title: str, chain: str, spans: Sequence[Sequence[int]], colour: str) -> Panel:
    text = Text(visible(chain))
    for start, end in spans:
        text.stylize(f"bold underline {colour}", start, end)
    return Panel(text, title=Text(title, style=colour), title_align="left", border_style=colour)


def print_pairs(source: str, pairs: Sequence[Pair], selection: Sequence[Pair], unit: str, method: str) -> None:
    """Print the statistics, then the pairs, in colour."""
    console = Console(highlight=False)
    console.print(statistics_view(source, pairs, unit, method))
    for number, pair in enumerate(selection, 1):
        console.print()
        console.print(pair_view(pair, f"{number} of {len(selection)}", console.width))


def browse(source: str, pairs: Sequence[Pair], selection: Sequence[Pair], unit: str, method: str) -> None:
    """Let the user browse the pairs until they quit; the statistics are the first page."""
    console = Console(highlight=False)
    page = offset = 0
    with _keys() as keys, console.screen(hide_cursor=True) as screen:
        while True:
            size = console.size
            width, height = size.width, size.height - 1
            view = (
                statistics_view(source, pairs, unit, method)
                if page == 0
                else pair_view(selection[page - 1], f"{page} of {len(selection)}", width)
            )
            lines = console.render_lines(view, console.options.update(width=width, height=None), pad=False)
            lowest = max(len(lines) - height, 0)
            offset = min(max(offset, 0), lowest)
            scroll = "  \u2191 \u2193 scroll" if lowest else ""
            footer = f" {page}/{len(selection)}  \u2190 \u2192 or p n: pairs{scroll}  g G: first, last  q: leave"
            screen.update(_window(lines[offset : offset + height], height, footer))
            key = next(keys, "q")
            if key in _LEAVE:
                return
            goal = _page_after(key, page, len(selection))
            lines_down = (key in _DOWN) - (key in _UP)
            pages_down = (key in _PAGE_DOWN) - (key in _PAGE_UP)
            offset = 0 if goal != page else offset + lines_down + pages_down * max(height - 2, 1)
            page = goal


def _page_after(key: str, page: int, last: int) -> int:
    if key in _NEXT:
        return min(page + 1, last)
    if key in _PREVIOUS:
        return max(page - 1, 0)
    return 0 if key in _FIRST else last if key in _LAST else page


def _window(lines: list[list[Segment]], height: int, footer: str) -> Segments:
    segments: list[Segment] = []
    for line in [*lines, *[[]] * (height - len(lines))]:
        segments += [*line, Segment.line()]
    return Segments([*segments, Segment(footer)])


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Yield the keys that are pressed; an empty string when the size of the terminal has changed."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield _read_keys(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read_keys(terminal: int) -> Iterator[str]:
    size = _terminal_size()
    while True:
        if not select.select([terminal], [], [], 0.3)[0]:
            if _terminal_size() != size:
                size = _terminal_size()
                yield ""
            continue
        typed = os.read(terminal, 1024)
        if typed.endswith(b"\x1b") and select.select([terminal], [], [], 0.05)[0]:
            typed += os.read(terminal, 1024)  # the rest of an arrow key
        if not typed:
            return
        yield from _KEY.findall(typed.decode(errors="ignore"))


def _terminal_size() -> os.terminal_size:
    return os.get_terminal_size(sys.stdout.fileno())
