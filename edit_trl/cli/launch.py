"""The launcher of a stage in processes of its own, which receive the signals that stop it.

A single process without an accelerate configuration is started directly, as `accelerate launch` would start it:
the launcher would import torch and accelerate only to start a second interpreter that imports them again.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from edit_trl.cli.launch_options import check_process_count, launch_options
from edit_trl.common.errors import InputError
from edit_trl.common.shipped import recipes_folder
from edit_trl.training.resuming.stopping import EXIT_CODE, TrainingStopped, exit_code_of

TRAIN_MODULE = "edit_trl.cli.train"
# On Linux one of these exists if there may be a GPU: NVIDIA's and AMD's drivers, and Windows' under WSL.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/kfd", "/dev/dxg")


class SignalRelay:
    """Passes signals on to the processes that train; `with handled(relay.pass_on)` listens.

    Attributes:
        received: The name of the first signal that was received.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Send a signal on as SIGTERM.

        Raises:
            TrainingStopped: No process has been started yet.
        """
        import psutil

        self.received = self.received or signal.Signals(number).name
        children = psutil.Process().children()
        if not children:
            raise TrainingStopped(f"stopped by {self.received} before anything was started", self.received)
        for child in children:
            try:
                child.send_signal(signal.SIGTERM)
            except psutil.NoSuchProcess:
                continue

    def exit_code(self, code: int) -> int:
        """Return a stage's exit code; that of the signal for a stage that failed after one was received."""
        stopped = self.received and code not in (0, 2)
        return exit_code_of(self.received) if stopped else code


def launch(own: argparse.Namespace, options: Sequence[str]) -> int:
    """Run a stage in processes of its own.

    Args:
        own: The options `accelerate_config`, `num_processes` and `config`, the recipe.
        options: The command-line options of the stage's processes.

    Returns:
        The stage's exit code.

    Raises:
        InputError: There is no such accelerate configuration, or it asks for more GPUs than there are.
    """
    check_process_count(own.num_processes)
    file = accelerate_config(own)
    if file is None and not _has_default_config() and (own.num_processes or _count_gpus()) <= 1:
        return _run(options)
    return _accelerate_launch(launch_options(file, own.num_processes, own.config, options), options)


def _count_gpus() -> int:
    if sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES)):
        return 0
    import torch

    return torch.cuda.device_count()


def _has_default_config() -> bool:
    """Return whether `accelerate config` has written a configuration, which `accelerate launch` uses."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser()
    return any((home / "accelerate" / f"default_config.{end}").is_file() for end in ("yaml", "json"))


def _run(options: Sequence[str]) -> int:
    import subprocess

    # The value that accelerate sets for one process; the recipe's bf16 or fp16 decides in the process.
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "no"}
    return subprocess.Popen([sys.executable, "-m", TRAIN_MODULE, *options], env=environment).wait()


def accelerate_config(own: argparse.Namespace) -> Path | None:
    """Return the file that `--accelerate_config` names; None without the option.

    The option is a path, a name in an `accelerate/` folder above the recipe, or a name of a configuration that comes
    with the package.

    Raises:
        InputError: There is no such file (lists the names that exist).
    """
    name = own.accelerate_config
    if name is None or Path(name).is_file():
        return Path(name) if name else None
    above = list(Path(own.config).resolve().parents) if own.config else []
    folders = [recipes_folder() / "accelerate", *(folder / "accelerate" for folder in reversed(above))]
    named = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name not in named:
        raise InputError(
            f"no accelerate configuration {name!r}: not a file, and the names are: {', '.join(sorted(named))}"
        )
    return named[name]


def _accelerate_launch(launcher_options: Sequence[str], options: Sequence[str]) -> int:
    import subprocess

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args([*launcher_options, "-m", TRAIN_MODULE, *options])
    # On SIGTERM and SIGINT torchrun would give the processes 30 s, and SIGUSR1 would end it: the relay passes them on.
    arguments.signals_to_handle = "SIGHUP,SIGQUIT"
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return error.returncode  # the process has printed what was wrong
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        # When one process fails the others are killed; their negative codes say nothing.
        return EXIT_CODE if EXIT_CODE in codes else max(codes)
    return 0


def end_with_launcher() -> None:
    """Have Linux stop this process when the launcher that started it ends, for whatever reason."""
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if sys.platform == "linux" and launched:
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
