"""One `edit-trl` command in a child of a process that has imported the libraries."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

# What the commands import when they run.
_LIBRARIES = (
    *("encodings.utf_8_sig", "encodings.utf_16", "encodings.latin_1", "encodings.idna"),
    *("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate", "pyarrow.parquet", "yaml"),
    *("scipy.stats", "rich.console", "rich.table", "openai", "aiohttp", "jinja2"),
    *("transformers.models.llama.modeling_llama", "torch._dynamo", "safetensors.torch", "rapidfuzz.distance"),
    *("edit_trl.training.trainer", "edit_trl.training.baselines", "edit_trl.training.recipe.stage"),
    *("edit_trl.teachers.run", "edit_trl.teachers.card", "edit_trl.evaluation.report", "edit_trl.models.merging"),
    *("edit_trl.evaluation.accuracy.measure", "edit_trl.evaluation.suite.measure", "edit_trl.hub.model_card"),
)
_NOBODY = 65534
# More memory than this, beside what is in use when the command starts, is a fault.
_MEMORY = 4 << 30


def warm_up(log: Path) -> None:
    """Import everything once, with the streams that a command has; what is printed goes to a log."""
    for name in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ[name] = "1"
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", COLUMNS="200", TERM="dumb")
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(stream, number)
    from edit_trl.common.terminal import clean_streams

    clean_streams()
    for name in _LIBRARIES:
        import_module(name)
    from edit_trl.cli.main import COMMANDS

    for command in (*COMMANDS, "train_recipe"):
        import_module(f"edit_trl.cli.{command}")
    import torch

    torch.set_num_threads(1)


def start(words: Sequence[str], folder: Path, place: Path, *, nobody: bool, real: bool = False) -> int:
    """Start a command in a folder, and return its process.

    Args:
        words: The command line.
        folder: The working directory.
        place: A folder for `out`, `err`, `typed` (standard input), the cache, and `loaded`, which appears when a model
            is loaded.
        nobody: Whether it gives up the rights of root.
        real: Whether it is a fresh interpreter.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        finish(lambda: _command(words, folder, place, nobody, real))
    return child


def finish(run: Callable[[], int]) -> NoReturn:
    """End this process as the interpreter ends after `sys.exit(run())`."""
    code = 1
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120
        os._exit(code)


def _command(words: Sequence[str], folder: Path, place: Path, nobody: bool, real: bool) -> int:
    os.setsid()
    for number, (name, flags) in enumerate(
        (("typed", os.O_RDONLY), ("out", os.O_WRONLY | os.O_APPEND), ("err", os.O_WRONLY | os.O_APPEND))
    ):
        os.dup2(os.open(place / name, flags | os.O_CREAT, 0o666), number)
    # multiprocessing has closed that of its workers
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    import datasets

    datasets.config.HF_DATASETS_CACHE = place / "cache"
    os.environ["HF_DATASETS_CACHE"] = str(place / "cache")
    if nobody:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    if real:
        os.execv(sys.executable, [sys.executable, "-m", "edit_trl.cli.main", *words])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _watch_loading(place / "loaded")
    _train_in_a_fork()
    from edit_trl.cli.main import main

    sys.argv = ["edit-trl", *words]
    return main()


def _watch_loading(mark: Path) -> None:
    """Have a file appear when a model is loaded."""
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__

    def watched(cls, *args, **options):
        mark.touch()
        return load(cls, *args, **options)

    PreTrainedModel.from_pretrained = classmethod(watched)


def _train_in_a_fork() -> None:
    """Let `train` run its stages in forks of this process where it would start an interpreter for each."""
    from edit_trl.cli import main, train

    launch = train.launch

    def launch_forked(own: argparse.Namespace, options: Sequence[str]) -> int:
        if own.accelerate_config is not None or own.num_processes is not None:
            return launch(own, options)
        child = os.fork()
        if not child:
            finish(lambda: main.run_command(train.train_stage, list(options)))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    train.launch = launch_forked


def wait(child: int, seconds: float) -> int | None:
    """Return a process's exit code; None where it had to be killed, with all that it started."""
    end = time.monotonic() + seconds
    pause = 0.005
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
