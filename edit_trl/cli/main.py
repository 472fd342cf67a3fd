"""`edit-trl`: the command line. This module imports the standard library alone, so that `--help` is quick."""

import difflib
import errno
import logging
import os
import select
import shlex
import sys
import warnings
from collections.abc import Callable
from importlib import import_module

from edit_trl.common.errors import InputError
from edit_trl.common.malloc import keep_freed_memory
from edit_trl.common.terminal import clean_streams, visible

# The help lines live here because `edit-trl --help` imports no command.
COMMANDS = {
    "train": "run a recipe: warm-up, key-step learning or any list of stages",
    "validate": "check a recipe and a dataset without loading a model",
    "generate": "make dual CoTs with a teacher",
    "inspect": "look at dual CoTs and their key steps",
    "evaluate": "let a model answer questions and check its answers",
    "suite": "see whether a model prefers correct chains to wrong ones",
    "compare": "compare runs of evaluate or suite, item by item",
    "report": "write runs as one HTML page",
    "history": "list what was measured before, and plot it",
    "judge": "let a model judge how well chains show the key steps",
    "merge": "put an adapter into the weights of its model",
    "push": "push a trained model to the Hub",
    "chat": "try a model in the terminal",
    "quickstart": "train and measure a small student in a few minutes, as an example",
    "recipes": "list, show and copy the recipes that come with the package",
}

HELP = """\
usage: edit-trl [--help] [--version] COMMAND ...

Distil reasoning into small models by learning from mistakes.

commands:
{commands}

`edit-trl COMMAND --help` lists the options of a command."""


def main(argv: list[str] | None = None) -> int:
    """Run one command: `edit_trl.cli.<command>.main(the other arguments)`.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code, as `run_command` gives it.
    """
    if argv is None:
        clean_streams()
        argv = sys.argv[1:]
    return run_command(_run, argv)


def run_command(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command and turn input errors into messages.

    Returns:
        The command's exit code; 2 for bad input and for files that cannot be read or written, which are explained
        without a traceback; 130 for an interruption. Any other exception is a bug and keeps its traceback.
    """
    _hush_libraries()
    keep_freed_memory()
    try:
        code = command(argv)
        sys.stdout.flush()  # else a closed pipe would raise when the interpreter ends
        return code
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 0
    except (InputError, FloatingPointError) as error:  # the latter: a loss that is not finite
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {visible(_sentence(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_interruption(argv) if command is _run else "interrupted", file=sys.stderr)
        return 130


# What is left of a command that was interrupted at once; others name what they have saved.
_LEFT = {
    "train": "the last checkpoint of each stage is kept",
    "generate": "every answer that was received is kept",
    "evaluate": "every finished batch is kept",
    "suite": "every finished batch is kept",
    "judge": "every answer that was received is in the journal",
    "merge": "nothing was saved",
    "push": "what was uploaded is not sent again",
}


def _interruption(argv: list[str]) -> str:
    left = "nothing was written" if "--dry_run" in argv else _LEFT.get(argv[0] if argv else "")
    if left is None:
        return "interrupted"
    verb = "run it again" if left.startswith("nothing") else "resume"
    return f"interrupted: {left}; to {verb}:\n  {visible(shlex.join(['edit-trl', *argv]))}"


# What to do about errors of the system that people meet.
_WAYS_OUT = {
    errno.ENOSPC: "free some space, and run the same command again",
    errno.EDQUOT: "free some space, and run the same command again",
    errno.EACCES: "change its permissions, or choose another",
    errno.EPERM: "change its permissions, or choose another",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}


def _sentence(error: OSError) -> str:
    """Say which file an error of the system is about, what it is, and the way out."""
    if error.errno is None:  # of a library, such as one for the network
        return str(error) or type(error).__name__
    file = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    way_out = _WAYS_OUT.get(error.errno)
    return f"{file}{error.strerror}" + (f"; {way_out}" if way_out else "")


def _reader_has_left() -> bool:
    """Return whether standard output is a pipe whose reader has left, such as `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    # So that the interpreter does not flush to the pipe again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _hush_libraries() -> None:
    """Silence warnings of libraries that a user of the command can do nothing about."""
    # transformers' renamed options, which TRL still sets.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # bitsandbytes' message at import about a CPU kernel that it would have to download.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _run(argv: list[str]) -> int:
    if not argv:
        print(_help(), file=sys.stderr)
        return 2
    command, *rest = argv
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"edit-trl {version('edit_trl')}")
        return 0
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {command!r}; {hint}")
    return import_module(f"edit_trl.cli.{command}").main(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {command:<{width}}  {line}" for command, line in COMMANDS.items())
    return HELP.format(commands=commands)


if __name__ == "__main__":
    sys.exit(main())
