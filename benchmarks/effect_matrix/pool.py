"""Runs cells in worker processes, each as soon as the cells that it needs are done."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from effect_matrix.cells import Cell, write_cell


class Ended(NamedTuple):
    """A cell that has ended, with its status and its duration."""

    cell: Cell
    status: str
    seconds: float


class Worker:
    """A process that runs one cell after another and imports only once; restarted if it has died."""

    def __init__(self, output: Path):
        self._output = output
        self._process: subprocess.Popen[str] | None = None

    def run(self, cell: Cell) -> str:
        """Run a cell; it has failed if its process dies."""
        process = self._alive()
        try:
            process.stdin.write(json.dumps(asdict(cell), default=str) + "\n")
            process.stdin.flush()
            status = process.stdout.readline().strip()
        except BrokenPipeError:
            status = ""
        if status:
            return status
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        record = {key: value for key, value in asdict(cell).items() if key != "needs"}
        error = f"the process died ({how}); see {cell.folder(self._output) / 'log'}"
        write_cell(cell.folder(self._output), record | {"status": "failed", "error": error, "seconds": 0.0})
        return "failed"

    def close(self) -> None:
        """Kill the process, even while it runs a cell."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _alive(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            benchmarks = str(Path(__file__).parents[1])
            path = os.pathsep.join([benchmarks, *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-m", "effect_matrix.work", str(self._output)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        return self._process


def run_cells(
    cells: Sequence[Cell], done: set[str], output: Path, jobs: int, tell: Callable[[Ended], None]
) -> list[Ended]:
    """Run cells in their order, each as soon as the cells that it needs are done.

    Args:
        cells: The cells to run.
        done: Names of the cells that are done.
        output: The folder of the matrix.
        jobs: Number of processes.
        tell: Called with each cell that has ended.

    Returns:
        The cells that have run; those that need a failed cell are left out.
    """
    waiting, ended = list(cells), []
    finished, running = set(done), set()
    ends: Queue[Ended] = Queue()
    idle = [Worker(output) for _ in range(jobs)]
    workers = list(idle)
    try:
        while waiting or running:
            while idle and (cell := next((c for c in waiting if finished.issuperset(c.needs)), None)):
                waiting.remove(cell)
                running.add(cell.name)
                worker = idle.pop()
                threading.Thread(target=_do, args=(worker, cell, ends, idle), daemon=True).start()
            if not running:
                break  # the others need a failed cell
            end = ends.get()
            running.discard(end.cell.name)
            if end.status == "done":
                finished.add(end.cell.name)
            ended.append(end)
            tell(end)
    finally:
        for worker in workers:
            worker.close()
    return ended


def _do(worker: Worker, cell: Cell, ends: Queue, idle: list[Worker]) -> None:
    started = time.monotonic()
    status = worker.run(cell)
    idle.append(worker)
    ends.put(Ended(cell, status, time.monotonic() - started))
