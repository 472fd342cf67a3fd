"""The history of finished runs: one row per run in a SQLite file.

The folders of the runs hold everything. The history is the index that remains when they are moved or deleted.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError, show
from edit_trl.common.files import check_writable
from edit_trl.common.json_text import checker, read_json
from edit_trl.common.options import nearest
from edit_trl.evaluation.runs.schema import Run, RunKind
from edit_trl.evaluation.runs.scores import SCORES

DEFAULT_FILE = Path("outputs/history.sqlite")
SCHEMA_VERSION = 1
# Seconds to wait while another process writes.
_WAIT = 30.0
_SCHEMA = """
CREATE TABLE runs (
    finished TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    model TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    recipe_hash TEXT NOT NULL,
    data_hash TEXT NOT NULL,
    git_revision TEXT,
    seed INTEGER NOT NULL,
    items INTEGER NOT NULL,
    scores TEXT NOT NULL,
    PRIMARY KEY (path, finished)
)"""


@dataclass(frozen=True)
class HistoryRow:
    """A finished run.

    Attributes:
        finished: When the run finished, UTC, ISO 8601.
        kind: `evaluate` or `suite`.
        name: The name of the run in tables.
        path: The absolute path of its folder.
        model: The model: a path, a Hub id or a name at an endpoint.
        model_hash: A hash of the weights.
        recipe_hash: A hash of the options.
        data_hash: A hash of the questions or pairs.
        git_revision: The revision, with "+" at its end if files differed from it; None outside a repository.
        seed: The seed of the run.
        items: The number of items.
        scores: The scores by name; None where no item has the score.
    """

    finished: str
    kind: str
    name: str
    path: str
    model: str
    model_hash: str
    recipe_hash: str
    data_hash: str
    git_revision: str | None
    seed: int
    items: int
    scores: dict[str, float | None]


_COLUMNS = tuple(field.name for field in fields(HistoryRow))


def record_run(run: Run, file: str | Path | None = DEFAULT_FILE) -> None:
    """Add a finished run to the history. Recording a run twice changes nothing.

    Several processes may write at the same time. The file and its folder are created if they are missing.
    Nothing is recorded if the file is None.

    Raises:
        InputError: The file cannot be written, is not a history, or has another version.
    """
    if file is None:
        return
    file = Path(file)
    values = vars(run.record) | {"path": str(Path(run.path).resolve())}
    values |= {"scores": json.dumps(run.record.scores, ensure_ascii=False)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder of the history {file}: {error.strerror}") from error
    with _opened(file, f"file:{_quoted(file)}?mode=rwc") as connection:
        # Lock the file first, so that two processes do not both create the table.
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _check(connection, file)
        places = ", ".join(f":{name}" for name in _COLUMNS)
        row = {name: values[name] for name in _COLUMNS}
        connection.execute(f"INSERT OR REPLACE INTO runs ({', '.join(_COLUMNS)}) VALUES ({places})", row)
        connection.execute("COMMIT")


def check_history(file: str | Path | None) -> None:
    """Check, before anything is measured, that a run can be added to the history; it need not exist yet.

    Raises:
        InputError: The file is not a history, or has another version.
        OSError: It cannot be written to.
    """
    if file is None:
        return
    file = Path(file)
    check_writable(file)
    if not file.exists():
        return
    if not file.is_file():
        raise InputError(f"{file} cannot be used as a history: it is no file; name another, or null for none")
    with _opened(file, f"file:{_quoted(file)}?mode=ro") as connection:
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone():  # else another process is creating it
            _check(connection, file)


def read_history(
    file: str | Path = DEFAULT_FILE,
    *,
    kind: RunKind | None = None,
    name: str | None = None,
    model: str | None = None,
    last: int | None = None,
) -> list[HistoryRow]:
    """Read the runs of a history, the oldest first.

    Args:
        file: The SQLite file.
        kind: Only runs of this kind.
        name: Only runs with this text in their name, ignoring case.
        model: Only runs with this text in their model, ignoring case.
        last: The most runs to return, the newest of those that match.

    Raises:
        InputError: The file is missing, is not a history, or has another version.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"no history at {file}; `edit-trl evaluate` and `suite` write one, --file names another")
    with _opened(file, f"file:{_quoted(file)}?mode=ro") as connection:
        _check(connection, file)
        values = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs ORDER BY finished, rowid").fetchall()
    rows = [_row(file, number, *row) for number, row in enumerate(values, 1)]
    rows = [
        row
        for row in rows
        if (kind is None or row.kind == kind)
        and (name is None or name.lower() in row.name.lower())
        and (model is None or model.lower() in row.model.lower())
    ]
    return rows if last is None else rows[max(len(rows) - last, 0) :]


def _row(file: Path, number: int, *values: Any) -> HistoryRow:
    place = f"{file}, run {number}"
    fields = dict(zip(_COLUMNS, values, strict=True))
    if isinstance(fields["scores"], str):
        fields["scores"] = read_json(fields["scores"], f"{place}, scores")
    problem = checker(HistoryRow)(fields)
    if problem is None and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+Z", fields["finished"]) is None:
        problem = f"finished: {show(fields['finished'])} is no time such as 2026-01-31T12:00:00Z"
    if problem is not None:
        raise InputError(f"{place}: {problem.lstrip('.: ')}; mend it, or name another file")
    return HistoryRow(**fields)


def with_score(rows: Sequence[HistoryRow], score: str) -> list[HistoryRow]:
    """Return the runs that have a score.

    Raises:
        InputError: There is no such score.
    """
    scored: list[Collection[str]] = [*(row.scores for row in rows), *SCORES.values()]
    names = dict.fromkeys(name for scores in scored for name in scores)
    if score not in names:
        hint = nearest(score, names) or f"; choose from {', '.join(names)}"
        raise InputError(f"no run has a metric {score!r}{hint}")
    return [row for row in rows if row.scores.get(score) is not None]


@contextmanager
def _opened(file: Path, address: str) -> Iterator[sqlite3.Connection]:
    """Open a connection and close it at the end; a transaction that was not committed is rolled back."""
    connection = None
    try:
        with suppress(OSError), file.open("rb") as content:
            # One that writes ahead is no history; to open it would leave two files beside it.
            if content.read(20)[18:] == b"\2\2":
                raise sqlite3.DatabaseError("it is a database of another program")
        connection = sqlite3.connect(address, uri=True, timeout=_WAIT, isolation_level=None)
        yield connection
    except sqlite3.Error as error:
        raise InputError(
            f"{file} cannot be used as a history: {error}. Move it away if it is something else, or name another file"
        ) from error
    finally:
        if connection is not None:
            connection.close()


def _check(connection: sqlite3.Connection, file: Path) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "runs" not in tables:
        raise InputError(f"{file} is a database, but not a history of edit-trl; name another file")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{file} has version {version} of the history, and this program reads version {SCHEMA_VERSION}; "
            "use the program that wrote it, or name another file"
        )


def _quoted(file: Path) -> str:
    return file.resolve().as_uri().removeprefix("file:")
