"""Being told to stop (L1): SIGTERM, from a spot instance or Slurm, and SIGUSR1, from `sbatch --signal`.

While a run trains, the signal is remembered and the trainer saves at the next step boundary; before that
there is nothing to save and the process ends.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: try again later. The run can be gone on from with the same command."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


@contextmanager
def handled(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have the signals call a function; nothing where Python allows it not, outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TrainingStopped(SystemExit):
    """A run was told to stop, and can be gone on from; nothing on the way takes it for an error.

    Args:
        message: How far it came, in a line.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message
        self.code = EXIT_CODE

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """What a run was told; `with handled(signals.receive)` listens.

    Attributes:
        training: Whether the run trains, so that a signal is to be remembered for the next step.
        received: The name of the signal that was remembered.
    """

    def __init__(self):
        self.training = False
        self.received: str | None = None
        self._group: ProcessGroup | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            TrainingStopped: The run does not train yet.
        """
        name = signal.Signals(number).name
        if not self.training:
            raise TrainingStopped(f"stopped by {name}, with nothing to save")
        self.received = self.received or name

    def agreed(self) -> bool:
        """Whether any process of the run was told to stop; each asks after every step.

        Asked over the network of the hosts, so that nothing waits for a device.
        """
        import torch  # not at the top: the launcher needs the rest of this module, and no torch
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self.received is not None
        if self._group is None:
            self._group = distributed.new_group(backend="gloo")
        told = torch.tensor(int(self.received is not None))
        distributed.all_reduce(told, group=self._group)
        return bool(told)
