"""The entry point: what it lists, how it reports errors, and that it stays quick to start."""

import re
import subprocess
import sys

import pytest

import edit_trl
import edit_trl.cli
from edit_trl.cli.main import COMMANDS, main

HEAVY = {"torch", "trl", "transformers", "datasets", "peft", "accelerate", "numpy", "pyarrow"}


def run(*argv, options=()):
    return subprocess.run(
        [sys.executable, *options, "-m", "edit_trl.cli.main", *argv], capture_output=True, text=True, check=False
    )


def imported_packages(importtime: str) -> set[str]:
    modules = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", importtime, re.MULTILINE)
    return {module.split(".")[0] for module in modules}


@pytest.fixture
def new_command(tmp_path, monkeypatch):
    """Adds a command with the given source to the command line."""

    def add(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setattr(edit_trl.cli, "__path__", [*edit_trl.cli.__path__, str(tmp_path)])
        monkeypatch.setitem(COMMANDS, name, "made by a test")

    yield add
    for name in [name for name in sys.modules if name.startswith("edit_trl.cli.made_up")]:
        del sys.modules[name]


def test_help_lists_every_command():
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    listed = re.findall(r"^  (\w+) +(\S.*)$", done.stdout, re.MULTILINE)
    assert dict(listed) == COMMANDS
    assert list(COMMANDS)[:3] == ["train", "validate", "generate"]
    assert run("-h").stdout == done.stdout


def test_without_a_command_the_help_is_an_error():
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == run("--help").stdout


def test_version():
    assert run("--version").stdout == f"edit-trl {edit_trl.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("trian", "error: unknown command 'trian'; did you mean 'train'?\n"),
        ("--x", f"error: unknown command '--x'; choose from {', '.join(COMMANDS)}\n"),
    ],
)
def test_unknown_command(typed, expected):
    done = run(typed)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_help_imports_nothing_heavy():
    done = run("--help", options=["-X", "importtime"])
    packages = imported_packages(done.stderr)
    assert "edit_trl" in packages
    assert not packages & HEAVY


@pytest.mark.parametrize("module", ["edit_trl", *(f"edit_trl.cli.{name}" for name in COMMANDS)])
def test_importing_imports_nothing_heavy(module):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True, check=True
    )
    packages = imported_packages(done.stderr)
    assert "edit_trl" in packages
    assert not packages & HEAVY


def test_a_command_gets_its_arguments_and_gives_the_exit_code(new_command, capsys):
    new_command("made_up_echo", "def main(argv):\n    print(argv)\n    return 7\n")
    assert main(["made_up_echo", "--rows", "3"]) == 7
    assert capsys.readouterr().out == "['--rows', '3']\n"


def test_the_arguments_of_the_process_are_the_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["edit-trl", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"edit-trl {edit_trl.__version__}\n"


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ("'x.yaml: no such file'", "error: x.yaml: no such file\n"),
        ("['a', 'b'], 'x.yaml:'", "error: x.yaml:\n  - a\n  - b\n"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(new_command, capsys, problems, expected):
    new_command(
        "made_up_input",
        f"from edit_trl.common.errors import InputError\ndef main(argv):\n    raise InputError({problems})\n",
    )
    assert main(["made_up_input"]) == 2
    assert capsys.readouterr() == ("", expected)


def test_a_reader_that_leaves():
    command = f"{sys.executable} -m edit_trl.cli.main evaluate --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["usage: edit-trl evaluate [--config RECIPE.yaml] [--OPTION VALUE ...]", "0"]
    assert done.stderr == ""


def test_interruption(new_command, capsys):
    new_command("made_up_stop", "def main(argv):\n    raise KeyboardInterrupt\n")
    assert main(["made_up_stop"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["merge", "a b", "--output", "c"], "nothing was saved; to run it again:\n  edit-trl merge 'a b' --output c\n"),
        (["train", "--dry_run"], "nothing was written; to run it again:\n  edit-trl train --dry_run\n"),
        (["evaluate", "--model", "m"], "every finished batch is kept; to resume:\n  edit-trl evaluate --model m\n"),
    ],
)
def test_an_interruption_says_what_is_left_and_how_to_go_on(monkeypatch, capsys, argv, told):
    def interrupt(_argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"edit_trl.cli.{argv[0]}.main", interrupt)
    assert main(argv) == 130
    assert capsys.readouterr() == ("", f"interrupted: {told}")


def test_other_exceptions_keep_their_traceback(new_command):
    new_command("made_up_bug", "def main(argv):\n    return {}['bug']\n")
    with pytest.raises(KeyError, match="bug"):
        main(["made_up_bug"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("OSError(28, 'No space left on device', 'out.json')", "out.json: No space left on device; free some space"),
        ("OSError(28, 'No space left on device')", "No space left on device; free some space"),
        ("PermissionError(13, 'Permission denied', b'a\\x1b')", "a\u241b: Permission denied; change its permissions"),
        ("OSError('the server is away')", "the server is away"),
    ],
)
def test_an_error_of_the_system_is_a_sentence(new_command, capsys, error, expected):
    new_command("made_up_system", f"def main(argv):\n    raise {error}\n")
    assert main(["made_up_system"]) == 2
    written = capsys.readouterr().err
    assert written.startswith(f"error: {expected}")
    assert written.count("\n") == 1


def test_no_control_character_of_a_name_reaches_the_terminal(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a\\u001b]0;title\\u0007": 1}\n')
    done = run("inspect", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 2
    assert "a\u241b]0;title\u2407" in done.stderr
    assert "\x1b" not in done.stderr
