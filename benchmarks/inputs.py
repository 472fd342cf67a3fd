"""What a benchmark is given: a command line and files of rows. What is wrong with them is said without a traceback."""

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from edit_trl.cli.main import run_command
from edit_trl.common.errors import raise_problems
from edit_trl.common.json_text import checker
from edit_trl.common.terminal import clean_streams
from edit_trl.data.files import read_rows


def run_benchmark(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark as `edit-trl` runs a command, and exit with its code."""
    clean_streams()
    sys.exit(run_command(lambda _: main() or 0, []))


def count(text: str) -> int:
    """Read a number of things on the command line, 1 or more."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def read_columns(path: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file.

    Args:
        path: The file.
        columns: The columns that every row must have, with their types (see `edit_trl.common.json_text.checker`).

    Raises:
        InputError: The file cannot be read, or names the row and the column of each wrong value.
    """
    rows = read_rows(path)
    raise_problems(
        (
            f"{path}, row {number}, {column}{problem}"
            for number, row in enumerate(rows, 1)
            for column, kind in columns.items()
            if (problem := checker(kind)(row.get(column))) is not None
        ),
        str(path),
    )
    return rows
