"""The journal of a run: every response that was paid for, saved before anything is read from it.

The journal is an SQLite file in the folder of the run. A response is committed before the pipeline sees it,
so it survives whatever happens next, and parsing, checking and filtering can be repeated at no cost.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from edit_trl.common.errors import InputError
from edit_trl.common.locks import Hold
from edit_trl.models.chat.protocol import ChatRequest, RawResponse, Teacher

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE responses (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    stage TEXT NOT NULL,
    row_id TEXT NOT NULL,
    template TEXT NOT NULL,
    messages TEXT NOT NULL,
    model TEXT NOT NULL,
    address TEXT NOT NULL,
    sampling TEXT NOT NULL,
    seed INTEGER,
    sample INTEGER NOT NULL,
    body TEXT NOT NULL,
    latency REAL NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX responses_by_key ON responses (key);
"""
# Requests that were sent in a file and are not answered yet. Earlier versions of the program leave the table alone.
_BATCHES = """
CREATE TABLE IF NOT EXISTS batch_requests (key TEXT PRIMARY KEY, file TEXT NOT NULL, batch TEXT);
"""
_COLUMNS = 13
_INSERT = f"INSERT INTO responses VALUES (NULL{', ?' * _COLUMNS})"
_FIND = "SELECT body, latency FROM responses WHERE key = ? ORDER BY id"


class JournalError(InputError):
    """The journal cannot be opened, read or written."""


class BatchRequest(NamedTuple):
    """A request that waits in a batch: its key, the file it was sent in, and the batch, once that is known."""

    key: str
    file: str
    batch: str | None


class _Write(NamedTuple):
    statement: str
    rows: Sequence[Sequence[object]]
    done: asyncio.Future[None]


class Journal:
    """The responses of a run, by the request they answer (`ChatRequest.key`); a context manager.

    Args:
        folder: The run's folder; created if it is missing.
        wait: Seconds to wait for another process that has the journal open.

    Raises:
        JournalError: Another process has the journal open, or the file is not a journal of this version.
    """

    def __init__(self, folder: str | Path, *, wait: float = 0.0):
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error
        self.path = folder / "journal-0.sqlite"
        self._lock = _lock(self.path, wait)
        try:
            # A connection for each thread: this one reads, the journal's own writes.
            self._writing, self._reading = _open(self.path), _open(self.path)
        except BaseException:
            self._lock.release()
            raise
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is waiting, and release the journal to other processes."""
        self._queue.put(None)
        self._thread.join()
        self._writing.close()
        self._reading.close()
        self._lock.release()

    def __len__(self) -> int:
        return self._reading.execute("SELECT count(*) FROM responses").fetchone()[0]

    def find(self, key: str) -> list[RawResponse]:
        """Return all responses to a request, in the order in which they were received.

        Raises:
            JournalError: The file is damaged.
        """
        return [RawResponse(*row) for row in self._read(_FIND, (key,))]

    def has_response_of(self, teacher: Teacher) -> bool:
        """Return whether a teacher has responded to any request; see `find`."""
        query = "SELECT 1 FROM responses WHERE model = ? AND address = ? LIMIT 1"
        return bool(self._read(query, (teacher.model, teacher.address)))

    def _read(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._reading.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise JournalError(
                f"a journal in {self.path.parent} cannot be read: {error}. Keep a copy of it; "
                "`sqlite3 FILE .recover` saves what can still be read"
            ) from error

    async def add(self, key: str, request: ChatRequest, teacher: Teacher, raw: RawResponse) -> None:
        """Save a response; it is on disk when this returns.

        Raises:
            JournalError: It cannot be written, such as on a full disk.
        """
        values = (
            *(key, request.stage, request.row_id, request.template),
            json.dumps(request.messages, ensure_ascii=False),
            *(teacher.model, teacher.address, json.dumps(asdict(request.sampling))),
            # A seed may be longer than SQLite's integers. It is only for readers; requests are found by their key.
            *(None if request.seed is None else str(request.seed), request.sample),
            *(raw.body, raw.latency, time.time()),
        )
        await self._write(_INSERT, [values])

    async def add_batch(self, file: str, keys: Iterable[str]) -> None:
        """Save which requests are in a file that was sent, before a batch is made of it; see `add`."""
        await self._write("INSERT OR REPLACE INTO batch_requests VALUES (?, ?, NULL)", [(key, file) for key in keys])

    async def name_batch(self, file: str, batch: str) -> None:
        """Save the batch that was made of a file; see `add`."""
        await self._write("UPDATE batch_requests SET batch = ? WHERE file = ?", [(batch, file)])

    async def end_batch(self, keys: Iterable[str]) -> None:
        """Forget that requests wait in a batch; see `add`."""
        await self._write("DELETE FROM batch_requests WHERE key = ?", [(key,) for key in keys])

    def batch_requests(self) -> list[BatchRequest]:
        """Return the requests that wait in a batch, in the order in which they were sent; see `find`."""
        return [BatchRequest(*row) for row in self._read("SELECT * FROM batch_requests ORDER BY rowid", ())]

    async def _write(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Write(statement, rows, done))
        await done

    def _write_all(self) -> None:
        """Commit everything added since the last commit at once, to wait for the disk once per batch."""
        is_open = True
        while is_open:
            entries = [self._queue.get()]
            while not self._queue.empty():
                entries.append(self._queue.get())
            is_open = entries[-1] is not None  # nothing is added after `close`
            if writes := [write for write in entries if write is not None]:
                self._commit(writes)

    def _commit(self, writes: list[_Write]) -> None:
        error: JournalError | None = None
        try:
            with self._writing:
                for write in writes:
                    self._writing.executemany(write.statement, write.rows)
        except sqlite3.Error as failure:
            error = JournalError(
                f"cannot write {self.path}: {failure}. What it holds is safe: free some space or mend the "
                "disk, and run the same command again"
            )
        except (OverflowError, UnicodeError) as failure:
            error = JournalError(f"cannot write {self.path}: it can hold no such value ({failure})")
        loop = writes[0].done.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_tell, [write.done for write in writes], error)


def _tell(waiting: list[asyncio.Future[None]], error: JournalError | None) -> None:
    for done in waiting:
        if done.cancelled():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _lock(path: Path, wait: float) -> Hold:
    try:
        return Hold(path, path.with_suffix(".lock"), wait=wait)
    except InputError as error:
        raise JournalError(error.problems) from error
    except OSError as error:
        raise JournalError(f"cannot write {error.filename or path}: {error.strerror}; free some space") from error


def _open(path: Path) -> sqlite3.Connection:
    try:
        # The writing thread's connection is opened here, where errors can be raised.
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            version = SCHEMA_VERSION
        if version == SCHEMA_VERSION:
            connection.execute(_BATCHES)
    except sqlite3.Error as error:
        raise JournalError(
            f"{path} cannot be opened as a journal: {error}. Free some space if the disk is full, move the file away "
            "if it is something else, or choose another `output_dir`"
        ) from error
    if version != SCHEMA_VERSION:
        connection.close()
        raise JournalError(
            f"{path} has version {version} of the journal, and this program reads version "
            f"{SCHEMA_VERSION}; use the program that wrote it, or another `output_dir`"
        )
    return connection
