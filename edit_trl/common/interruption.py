"""Ctrl-C in work that is saved batch by batch: the batch at hand is finished first."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether Ctrl-C was pressed.

    Attributes:
        requested: Whether it was.
    """

    def __init__(self):
        self.requested = False

    def receive(self, _number: int, _frame: FrameType | None) -> None:
        """Remember a first Ctrl-C.

        Raises:
            KeyboardInterrupt: It is the second one.
        """
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this batch; Ctrl-C again stops at once", file=sys.stderr, flush=True)


@contextmanager
def after_the_batch() -> Iterator[Interruption]:
    """Let a first Ctrl-C be remembered; a second one interrupts as usual.

    Outside the main thread, where Python forbids signal handlers, nothing is changed.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = signal.signal(signal.SIGINT, interruption.receive)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
