"""Progress that people read: lines that update on a terminal, plain lines elsewhere; always on standard error.

Texts of models, endpoints and files are shown as plain text: control characters are made visible, and no markup is
read.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from edit_trl.common.terminal import visible_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

# Between plain lines: seconds, or a share of the time so far, which keeps the log of a long task short.
_LEAST_WAIT, _SHARE_OF_TIME = 10.0, 0.01

_open: list[Progress] = []
"""The displays of this process that are not closed; the last one is told what happens within a batch."""


class Progress:
    """Shows how far one task after the other is; a context manager.

    On a terminal the last two lines update, and each task leaves a line. Elsewhere a task prints a line from time to
    time, and one when it is done.

    Args:
        plain: Print plain lines on a terminal too.
        hidden: Show nothing, such as in all processes but the first.
    """

    def __init__(self, *, plain: bool = False, hidden: bool = False):
        self._hidden = hidden
        self._plain = plain or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown")
        self._live: Live | None = None
        self._handlers: list[logging.StreamHandler[Any]] = []
        self._reset("", 0, 0, "", None, False)
        self._running = self._changed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reset(self, name: str, total: int, done: int, unit: str, batch: int | None, paced: bool) -> None:
        self._name, self._total, self._unit, self._paced = name, total, unit, paced
        self._done, self._before, self.batch = float(done), done, batch
        self._ended = self._within = 0.0
        self._note = ""
        self._parts: Sequence[str] = ()
        self._rate: str | None = None
        self._started = self._last_line = time.monotonic()

    def begin(
        self, name: str, total: int, done: int = 0, *, unit: str = "", batch: int | None = None, paced: bool = True
    ) -> None:
        """Begin a task; the one before is over.

        Args:
            name: What is done.
            total: How much there is to do.
            done: How much was done before, such as by an interrupted run; it does not count for the speed.
            unit: What is counted.
            batch: How many of the task the responses of a batch are, together; None if they are one each. May be set
                later (the attribute).
            paced: Whether plain lines are printed from time to time; else only where `update` asks for one.
        """
        self.end()
        self._reset(name, total, done, f" {unit}" if unit else "", batch, paced)
        self._running, self._changed = True, False
        if not self._hidden:
            _open[:] = [one for one in _open if one is not self] + [self]
            if not self._plain:
                self._start_live()

    def update(
        self, done: float, parts: Sequence[str] | None = None, *, rate: str | None = None, line: bool = False
    ) -> None:
        """Show how much of the task is done.

        Args:
            done: How much, with what was done before.
            parts: What else there is to know, in short; None to leave it as it is.
            rate: The speed; None for how much is done in a second.
            line: Print a plain line now.
        """
        self._done, self._ended, self._within = done, 0.0, 0.0
        self._note, self._changed = "", True
        self._parts = self._parts if parts is None else parts
        self._rate = rate or self._rate
        self._show(line or (self._paced and done >= self._total))

    def note(self, text: str) -> None:
        """Add what happens at the moment; the next update removes it."""
        self._note = text
        self._show(False)

    def say(self, parts: Sequence[str]) -> None:
        """Print a line that stays, made of short parts."""
        if not self._hidden:
            self._print([visible_line(part) for part in parts if part])

    def end(self, *, leaves_line: bool = True) -> None:
        """End the task, and leave its last line or none."""
        if not self._running:
            return
        self._running = False
        self._stop_live()
        if leaves_line and self._changed and not self._hidden:
            self._print(self._line())
        self._changed = False

    def close(self) -> None:
        """End the task, and show nothing more."""
        self.end()
        _open[:] = [one for one in _open if one is not self]

    def _tick(self, ended: int, responses: int, tokens: int, share: float) -> None:
        batch = responses if self.batch is None else self.batch
        self._ended = max(self._ended, batch * ended / responses)
        self._within = max(self._within, batch * max(share, ended / responses))
        self._changed = True
        self.note(f"{tokens:,} tokens in this batch")

    def _show(self, now: bool) -> None:
        """Print a plain line if it is time for one; lines that update do so by themselves."""
        if self._hidden or not self._plain or not self._running:
            return
        time_now = time.monotonic()
        wait = max(_LEAST_WAIT, _SHARE_OF_TIME * (time_now - self._started))
        if now or (self._paced and time_now - self._last_line >= wait):
            self._last_line, self._changed = time_now, False
            self._print(self._line())

    # What is shown

    @property
    def _shown(self) -> float:
        """How much is done, with the part of the running batch by which the bar moves and the time is estimated."""
        return min(self._done + self._within, self._total)

    def _count(self) -> str:
        return f"{int(self._done + self._ended):,}/{self._total:,}{self._unit}"

    def _speed(self) -> str:
        new, seconds = self._shown - self._before, time.monotonic() - self._started
        if self._rate is not None or new <= 0 or not seconds:
            return self._rate or ""
        return f"{new / seconds:,.1f}/s" if new >= seconds else f"{seconds / new:.1f} s each"

    def _time(self) -> str:
        new, seconds = self._shown - self._before, time.monotonic() - self._started
        if self._shown >= self._total or not self._running:
            return f"in {clock(seconds)}"
        return f"{clock((self._total - self._shown) / new * seconds)} left" if new > 0 else f"{clock(seconds)} so far"

    def _line(self) -> list[str]:
        parts = (f"{self._name} {self._count()}", *self._parts, self._note, self._speed(), self._time())
        return [visible_line(part) for part in parts if part]

    def _print(self, parts: Sequence[str]) -> None:
        if self._plain:
            print("  ".join(parts), file=sys.stderr, flush=True)
            return
        from rich.text import Text

        console = self._console() if self._live is None else self._live.console
        # Text, which has no markup.
        console.print(Text(folded(parts, console.width)), soft_wrap=True)

    def _console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, markup=False, highlight=False, emoji=False)

    def _start_live(self) -> None:
        from rich.live import Live

        stream = sys.stderr
        self._live = Live(
            console=self._console(),
            get_renderable=self._renderable,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start(refresh=True)
        # What is logged stands above, as all that is printed.
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
        self._handlers = [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream is stream]
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            for handler in self._handlers:
                handler.setStream(sys.stderr)

    def _renderable(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def text(content: str) -> Text:
            return Text(visible_line(content), no_wrap=True, overflow="ellipsis")

        first = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=self._total, completed=self._shown, width=20)
        first.add_row(text(self._name), bar, text(self._count()), text(self._speed()), text(self._time()))
        second = "  ".join(part for part in (*self._parts, self._note) if part)
        return Group(first, text(second)) if second else Group(first)


def within_batch(ended: int, responses: int, tokens: int, share: float) -> None:
    """Tell the display of this process, if there is one, how far a batch of responses is.

    Args:
        ended: How many of its responses have ended.
        responses: How many it has.
        tokens: How many tokens were drawn, all responses together.
        share: The share of the most steps that the batch can take, between 0 and 1.
    """
    if _open:
        _open[-1]._tick(ended, responses, tokens, share)


def folded(parts: Sequence[str], width: int) -> str:
    """Join the parts of a line; what does not fit into a width, in characters, comes on indented lines."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
