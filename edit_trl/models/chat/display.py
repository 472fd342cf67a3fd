"""What a generation shows while it runs (L3): one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from edit_trl.models.chat.dispatch import Dispatcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows the stages of a generation: how far, how fast, with what outcome and at what cost.

    A context manager and a `Watcher`.

    Args:
        dispatchers: Whose numbers are shown.
        live: Whether to draw on the terminal; by what standard error is where None.
        write: What a plain line goes to.
    """

    def __init__(
        self,
        dispatchers: Sequence[Dispatcher],
        *,
        live: bool | None = None,
        write: Callable[[str], object] | None = None,
    ):
        self._dispatchers = dispatchers
        self._live = sys.stderr.isatty() if live is None else live
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._name = ""
        self._total = self._done = self._fresh = 0
        self._counts: Counter[str] = Counter()
        self._started = self._told = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._progress = _rich_progress()
            if self._progress is None:
                self._write("no live display: it needs `rich` (pip install 'edit_trl[generate]')")
            else:
                self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        elif kind is not None and self._total:
            self._write(self._line())

    def stage(self, name: str, total: int) -> None:
        """A stage of so many requests begins."""
        self._name, self._total, self._done, self._fresh = name, total, 0, 0
        self._counts.clear()
        self._started = self._told = time.monotonic()
        if self._progress is not None:
            self._task = self._progress.add_task(name, total=total, outcomes="", cost=self._spent())

    def step(self, outcome: str, fresh: bool) -> None:
        """A request of the stage is done."""
        self._done += 1
        self._fresh += fresh
        self._counts[outcome] += 1
        if self._progress is not None:
            self._progress.update(self._task, advance=1, outcomes=_outcomes(self._counts), cost=self._spent())
            return
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._told = now
            self._write(self._line())

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / seconds
        parts = [f"{self._name}: {self._done} of {self._total}", f"{rate:.1f}/s"]
        if self._done < self._total and rate:
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        parts.append(_outcomes(self._counts))
        if self._fresh < self._done:
            parts.append(f"{self._done - self._fresh} from the journal")
        if spent := self._spent():
            parts.append(spent)
        return "; ".join(part for part in parts if part)

    def _spent(self) -> str:
        stats = [dispatcher.stats for dispatcher in self._dispatchers]
        tokens = sum(one.prompt_tokens + one.completion_tokens for one in stats)
        cost = sum(one.cost for one in stats)
        return f"{tokens:,} tokens" + (f", cost {cost:.2f}" if cost else "")


def _rich_progress() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text
    except ImportError:
        return None

    class Rate(ProgressColumn):
        """Requests a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f}/s" if speed else "")

    return Progress(
        # No markup: names and outcomes are text.
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[outcomes]}", markup=False),
        TextColumn("{task.fields[cost]}", markup=False, style="dim"),
        console=Console(stderr=True),
    )


def _outcomes(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Watcher(Protocol):
    """Is told what happens."""

    def stage(self, name: str, total: int) -> None:
        """A stage of so many requests begins."""

    def step(self, outcome: str, fresh: bool) -> None:
        """A request of it is done."""
