"""The progress of a generation: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edit_trl.models.chat.dispatch import Dispatcher

_SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows the progress, speed, outcomes and cost of each stage on standard error; a context manager and a `Watcher`.

    Args:
        dispatchers: Dispatchers whose tokens and cost are shown.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher]):
        self._dispatchers = dispatchers
        self._progress = _progress() if sys.stderr.isatty() else None
        self._task: TaskID | None = None
        self._name = ""
        self._total = self._done = self._fresh = 0
        self._counts: Counter[str] = Counter()
        self._started = self._last_line = 0.0
        for dispatcher in dispatchers:
            dispatcher.tell = self._tell

    def __enter__(self) -> Display:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        elif kind is not None and self._total:
            self._print_line()

    def stage(self, name: str, total: int) -> None:
        """See `Watcher.stage`."""
        self._name, self._total, self._done, self._fresh = name, total, 0, 0
        self._counts.clear()
        self._started = self._last_line = time.monotonic()
        if self._progress is not None:
            self._task = self._progress.add_task(name, total=total, outcomes="", cost=self._spent())

    def step(self, outcome: str, fresh: bool) -> None:
        """See `Watcher.step`."""
        self._done += 1
        self._fresh += fresh
        self._counts[outcome] += 1
        if self._progress is not None:
            self._progress.update(self._task, advance=1, outcomes=_outcomes(self._counts), cost=self._spent())
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = now
            self._print_line()

    def _tell(self, text: str, is_state: bool) -> None:
        """Show what a dispatcher tells: a state in place of the outcomes, which the next step shows again."""
        if self._progress is None:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
        elif is_state:
            self._progress.update(self._task, outcomes=text)
        else:
            self._progress.console.print(Text(f"{self._name}: {text}"))

    def _print_line(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / seconds
        parts = [f"{self._name}: {self._done} of {self._total}", f"{rate:.1f}/s"]
        if self._done < self._total and rate:
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        parts.append(_outcomes(self._counts))
        if self._fresh < self._done:
            parts.append(f"{self._done - self._fresh} from the journal")
        parts.append(self._spent())
        print("; ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def _spent(self) -> str:
        stats = [dispatcher.stats for dispatcher in self._dispatchers]
        tokens = sum(counts.prompt_tokens + counts.completion_tokens for counts in stats)
        cost = sum(counts.cost for counts in stats)
        unreported = sum(counts.unreported for counts in stats)
        most = f" at most ({unreported} answers without `usage`)" if unreported else ""
        return f"{tokens:,} tokens" + (f", cost {cost:.2f}{most}" if cost else "")


class _Rate(ProgressColumn):
    """Requests per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


def _progress() -> Progress:
    return Progress(
        # Without markup, since names and outcomes are plain text.
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _Rate(),
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
    """Receives the events of a generation."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` requests begins."""

    def step(self, outcome: str, fresh: bool) -> None:
        """A request of the stage is done.

        Args:
            outcome: The outcome, such as "unparsed".
            fresh: Whether it was asked now, rather than answered from the journal.
        """
