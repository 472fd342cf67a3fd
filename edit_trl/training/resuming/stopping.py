"""Stopping on a signal: Ctrl-C, SIGTERM from a spot instance or Slurm, and SIGUSR1 from `sbatch --signal`.

While a run trains, the signal is remembered and the trainer saves after the current step. Before that there
is nothing to save and the process ends at once. A second Ctrl-C interrupts at once.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import TrainerState, TrainingArguments

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h, try again later: the same command resumes the run."""

INTERRUPTED = 130
"""The exit code of a run that Ctrl-C has stopped, as in a shell. It has saved, too."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def exit_code_of(name: str | None) -> int:
    """Return the exit code of a run that was stopped by a signal."""
    return INTERRUPTED if name == "SIGINT" else EXIT_CODE


@contextmanager
def handled(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals in the main thread; elsewhere do nothing, since Python forbids signal handlers there."""
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
    """Raised when a signal has stopped a run, which can be resumed; a `SystemExit`, which no error handler catches.

    Args:
        message: One line about the progress of the run.
        received: The name of the signal; None for one to another process.
    """

    code: int

    def __init__(self, message: str, received: str | None = None):
        super().__init__(message)
        self.message = message
        self.code = exit_code_of(received)

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """The signals that a run has received; `with handled(signals.receive)` listens.

    Attributes:
        training: Whether the run trains: a signal is then remembered until the end of the step.
        received: The name of the first signal that was remembered.
    """

    def __init__(self) -> None:
        self.training = False
        self.received: str | None = None
        self._group: ProcessGroup | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Remember a signal while the run trains.

        Ctrl-C comes from the terminal and once more, as SIGTERM, from the launcher.

        Raises:
            TrainingStopped: The run does not train yet.
            KeyboardInterrupt: Ctrl-C was pressed again.
        """
        name = signal.Signals(number).name
        if self.received is not None:
            if name == self.received == "SIGINT":
                raise KeyboardInterrupt
            return
        self.received = name
        if not self.training:
            raise TrainingStopped(f"stopped by {name}, with nothing to save", name)
        if name == "SIGINT":
            print("\nsaving after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def stopped(self, args: "TrainingArguments", state: "TrainerState") -> TrainingStopped:
        """Return the exception to raise once the run has saved a checkpoint."""
        name = self.received or "a signal to another process"
        return TrainingStopped(
            f"stopped by {name} after step {state.global_step} of {state.max_steps}; "
            f"checkpoint-{state.global_step} is in {args.output_dir}",
            self.received,
        )

    def agreed(self) -> bool:
        """Return whether any process of the run has received a signal; every process calls this after every step.

        The processes communicate over gloo, so that nothing waits for a GPU.
        """
        import torch  # here, since the launcher imports this module and needs no torch
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self.received is not None
        if self._group is None:
            self._group = distributed.new_group(backend="gloo")
        received = torch.tensor(int(self.received is not None))
        distributed.all_reduce(received, group=self._group)
        return bool(received)
