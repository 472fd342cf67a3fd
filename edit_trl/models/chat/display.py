"""The progress of requests, stage by stage: outcomes, speed and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from edit_trl.common.progress import Progress
from edit_trl.models.chat.dispatch import Dispatcher


class Display(Progress):
    """A `Watcher` that shows the progress, speed, outcomes and cost of each stage; a context manager.

    Args:
        dispatchers: Dispatchers whose tokens and cost are shown.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher]):
        super().__init__()
        self._dispatchers = dispatchers
        self._steps = self._fresh = 0
        self._outcomes: Counter[str] = Counter()
        for dispatcher in dispatchers:
            dispatcher.tell = self._tell

    def stage(self, name: str, total: int) -> None:
        """See `Watcher.stage`."""
        self._steps = self._fresh = 0
        self._outcomes.clear()
        self.begin(name, total)

    def step(self, outcome: str, fresh: bool) -> None:
        """See `Watcher.step`."""
        self._steps += 1
        self._fresh += fresh
        self._outcomes[outcome] += 1
        old = self._steps - self._fresh
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._outcomes.items()))
        self.update(self._steps, [outcomes, f"{old} from the journal" if old else "", self._spent()])

    def _tell(self, text: str, is_state: bool) -> None:
        """Show what a dispatcher tells: a state in the line that updates, and anything else in a line that stays."""
        if is_state and not self._plain:
            self.note(text)
        else:
            self.say([f"{self._name}: {text}"])

    def _spent(self) -> str:
        stats = [dispatcher.stats for dispatcher in self._dispatchers]
        tokens = sum(counts.prompt_tokens + counts.completion_tokens for counts in stats)
        cost = sum(counts.cost for counts in stats)
        unreported = sum(counts.unreported for counts in stats)
        most = f" at most ({unreported} answers without `usage`)" if unreported else ""
        return f"{tokens:,} tokens" + (f", cost {cost:.2f}{most}" if cost else "")


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
