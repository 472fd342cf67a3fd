"""The folder of an evaluation run, for later comparisons and reports.

    evaluation.json    a `RunRecord`: the settings, versions and hashes, and, once finished, the scores
    items.jsonl        one `EvaluateItem` or `SuiteItem` per line

Items are appended batch by batch, and put into the order of the data at the end. A killed run resumes after its last
whole batch. Its finished file has the same bytes as that of an uninterrupted run, so items hold no times.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import DRAFT_SUFFIX, git_revision, write_whole
from edit_trl.common.json_text import parse_json, value_error
from edit_trl.common.locks import FOLDER_LOCK, Hold, hold_folder
from edit_trl.common.shapes import fits, misfit
from edit_trl.evaluation.runs.schema import FORMAT, ITEM_TYPES, Item, Run, RunRecord, key_of

RECORD_FILE, ITEMS_FILE = "evaluation.json", "items.jsonl"

# A run is resumed only if these fields are the same.
_IDENTITY = ("kind", "model", "model_hash", "settings", "tasks", "data_hash", "seed", "verifier", "format")

# The folders that this process holds. It may open one again: in a notebook, the traceback of an interrupted run keeps
# the object that held the folder.
_HELD: dict[Path, Hold] = {}


class RunFolder:
    """A run that is being written; resumes the run in the folder if it is the same.

    Nothing is written before `start`, so that a model that cannot be loaded leaves no run behind. From then on, or
    from the beginning for a run that is resumed, no other process can write to the folder, until `finish` or `close`.
    A context manager, which closes it.

    Args:
        path: The folder; created if it is missing.
        record: The record of the run that is about to be measured.

    Attributes:
        path: The folder.
        record: The record, as it is on disk.
        done: The finished items, by (task, id).

    Raises:
        InputError: The folder holds another run, files that are not a run, or a run of another format; or another
            process writes to it.
        OSError: The folder cannot be written to.
    """

    def __init__(self, path: str | Path, record: RunRecord):
        self.path = Path(path)
        self._started = time.monotonic()
        self.done: dict[tuple[str, str], Item] = {}
        record = replace(record, created=record.created or _now(), git_revision=git_revision())
        if issue := value_error(asdict(_as_read(record)), allow_nan=False):
            raise InputError(f"the options of the run {self.path} cannot be written: {issue}")
        self._written = (self.path / RECORD_FILE).is_file()
        if self._written:
            record = self._resume(record)
        elif self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir()))):
            raise InputError(
                f"{self.path} is not empty and holds no run of edit-trl; choose another folder, or remove it"
            )
        elif blocked := next((parent for parent in self.path.parents if parent.is_file()), None):
            raise InputError(f"output_dir {self.path}: {blocked} is a file, not a folder")
        else:
            check_writable(self.path)
        self.record = record

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the folder to other processes."""
        if hold := _HELD.pop(self.path.resolve(), None):
            hold.release()

    @property
    def finished(self) -> bool:
        """Whether all items and the scores are written."""
        return self.record.finished is not None

    def start(self) -> None:
        """Write the record, before anything is measured and whenever it changes.

        Raises:
            InputError: Another process writes to the folder, or began a run there in the meantime.
        """
        self._hold()
        text = json.dumps(asdict(self.record), indent=2, ensure_ascii=False, default=str, allow_nan=False)
        write_whole(self.path / RECORD_FILE, text + "\n")

    def append(self, items: Iterable[Item]) -> None:
        """Append a batch of items; they are on the disk when this returns."""
        items = list(items)
        self._hold()
        if not (self.path / RECORD_FILE).is_file():
            self.start()
        try:
            with (self.path / ITEMS_FILE).open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, items)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(self.path / ITEMS_FILE)) from error
        self.done |= {key_of(item): item for item in items}

    def finish(
        self,
        order: Sequence[tuple[str, str]],
        scores: dict[str, float | None],
        intervals: Mapping[str, Sequence[float]],
        groups: dict[str, dict[str, dict[str, float | None]]],
    ) -> Run:
        """Put the items into the order of the data, given by (task, id), and write the scores; see `RunRecord`."""
        items = [self.done[key] for key in order]
        self._hold()
        if not (self.path / RECORD_FILE).is_file():
            self.start()
        write_whole(self.path / ITEMS_FILE, "".join(map(_line, items)))
        intervals = {name: list(interval) for name, interval in intervals.items()}
        results = {"items": len(items), "scores": scores, "intervals": intervals, "groups": groups}
        self.record = replace(self.record, finished=_now(), **results)
        self.pause()
        self.close()
        return Run(self.path, self.record, items)

    def pause(self) -> None:
        """Add the time since the start to the record."""
        if not (self.path / RECORD_FILE).is_file():
            return  # it was not started
        now = time.monotonic()
        self.record = replace(self.record, seconds=round(self.record.seconds + now - self._started, 3))
        self._started = now
        self.start()

    def _hold(self) -> None:
        """Take the folder for this process, and remove the drafts of a process that was killed."""
        if self.path.resolve() in _HELD:
            return
        _HELD[self.path.resolve()] = hold_folder(self.path)
        if not self._written and (self.path / RECORD_FILE).is_file():
            self.close()
            raise InputError(
                f"another process began a run in {self.path} in the meantime; run the same command again to resume it"
            )
        self._written = True
        for draft in filter(_is_draft, self.path.iterdir()):
            draft.unlink()

    def _resume(self, record: RunRecord) -> RunRecord:
        """Read the run in the folder, which is held if it is not finished.

        Returns:
            The record of that run, or the new one if that is another run without items.
        """
        if not _read_record(self.path).finished:
            self._hold()
        try:
            return self._resumed(record)
        except BaseException:
            self.close()
            raise

    def _resumed(self, record: RunRecord) -> RunRecord:
        earlier = _read_record(self.path)
        items = _read_items(self.path, earlier.kind, partial=not earlier.finished)
        before, now = ({name: getattr(one, name) for name in _IDENTITY} for one in (earlier, _as_read(record)))
        if before != now:
            if not items:
                (self.path / ITEMS_FILE).unlink(missing_ok=True)
                return record
            raise InputError(
                f"{self.path} holds another run ({'; '.join(_differences(before, now))}); choose another "
                "output_dir, or remove that folder"
            )
        self.done = {key_of(item): item for item in items}
        if not earlier.finished:
            # Remove a last line that was cut short, or the next item would be appended to it.
            write_whole(self.path / ITEMS_FILE, "".join(map(_line, items)))
        return earlier


def read_run(path: str | Path) -> Run:
    """Read a finished run.

    Args:
        path: Its folder, or a file in it.

    Raises:
        InputError: There is no run, it is not finished, or it has another format.
    """
    path = Path(path)
    path = path.parent if path.name in (RECORD_FILE, ITEMS_FILE) else path
    if not (path / RECORD_FILE).is_file():
        raise InputError(f"no run of `edit-trl evaluate` or `suite` at {path} (no {RECORD_FILE} there)")
    record = _read_record(path)
    if record.finished is None:
        raise InputError(f"{path}: this run is not finished; run its command again to resume it")
    items = _read_items(path, record.kind)
    if len(items) != record.items:
        raise InputError(f"{path}: {ITEMS_FILE} has {len(items)} items, {RECORD_FILE} says {record.items}")
    return Run(path, record, items)


def _read_record(path: Path) -> RunRecord:
    file = path / RECORD_FILE
    values = parse_json(file.read_bytes(), f"{file} cannot be read")
    version, writer = (values.get("format"), values.get("edit_trl")) if isinstance(values, dict) else (None, None)
    if version != FORMAT:
        raise InputError(
            f"{file} has format {version!r}; edit_trl {installed_version('edit_trl')} reads format {FORMAT}. "
            f"Run the evaluation again, or use the version that wrote it ({writer or 'not said'})"
        )
    if issue := misfit(values, RunRecord):
        raise InputError(f"{file} is not the record of a run: {issue}. Was it edited by hand? Run the evaluation again")
    return RunRecord(**values)


def _read_items(path: Path, kind: str, partial: bool = False) -> list[Any]:
    """Return the items of a run; `partial` allows a last line that was cut short, which is left out."""
    file = path / ITEMS_FILE
    if not file.is_file():
        if partial:
            return []
        raise InputError(f"{file} is missing")
    items: list[Any] = []
    *lines, rest = file.read_bytes().split(b"\n")
    if rest and not partial:
        raise InputError(f"{file}, line {len(lines) + 1}: cut short")
    for number, line in enumerate(lines, 1):
        item = parse_json(line, f"{file}, line {number}")
        if isinstance(item, dict) and type(item.get("id")) is int:  # earlier versions kept the type in the data
            item["id"] = str(item["id"])
        items.append(item)
    if not fits(items, ITEM_TYPES[kind]):
        number, issue = next(
            (number, issue) for number, item in enumerate(items, 1) if (issue := misfit(item, ITEM_TYPES[kind]))
        )
        raise InputError(f"{file}, line {number}: not an item of `edit-trl {kind}`: {issue}. Was it edited by hand?")
    return items


def check_writable(path: Path) -> None:
    """Raise an OSError if a file or folder, which need not exist, cannot be written to; nothing is written."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(place, os.W_OK | os.X_OK if place.is_dir() else os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _is_draft(path: Path) -> bool:
    return path.name.startswith((RECORD_FILE, ITEMS_FILE)) and path.name.endswith(DRAFT_SUFFIX)


def _is_foreign(path: Path) -> bool:
    """Return whether a file was not left by a run that ended before its record was written."""
    return path.name not in FOLDER_LOCK and not _is_draft(path)


def _as_read(record: RunRecord) -> RunRecord:
    """Return the record as JSON would return it: with lists instead of tuples."""
    return RunRecord(**json.loads(json.dumps(asdict(record), default=str)))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the fields that differ, and of settings and tasks the names that differ."""
    differences = []
    for name in before:
        values = before[name], now[name]
        there, here = values if isinstance(before[name], dict) else ({name: value} for value in values)
        for key in sorted({*there, *here}):
            old, new = there.get(key, "not set"), here.get(key, "not set")
            if old != new:
                differences.append(f"{key}: {old!r} there, {new!r} now")
    return differences


def _line(item: Item) -> str:
    return json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
