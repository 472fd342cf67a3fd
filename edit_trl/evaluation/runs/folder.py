"""The folder of an evaluation run, for later comparisons and reports.

    evaluation.json    a `RunRecord`: the settings, versions and hashes, and, once finished, the scores
    items.jsonl        one `EvaluateItem` or `SuiteItem` per line

Items are appended batch by batch, and put into the order of the data at the end. A killed run resumes after its last
whole batch. Its finished file has the same bytes as that of an uninterrupted run, so items hold no times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError, show
from edit_trl.common.files import DRAFT_SUFFIX, check_writable, git_revision, write_whole
from edit_trl.common.json_text import bulk_checker, checker, read_json, read_json_file
from edit_trl.common.locks import FOLDER_LOCK, Hold, hold_folder
from edit_trl.evaluation.runs.schema import FORMAT, ITEMS, Item, Run, RunRecord, key_of
from edit_trl.evaluation.runs.stored_tokens import StoredTokens, split_tokens

RECORD_FILE, ITEMS_FILE = "evaluation.json", "items.jsonl"

# A run is resumed only if these fields are the same.
_IDENTITY = ("kind", "model", "model_hash", "settings", "tasks", "data_hash", "seed", "verifier", "format")


class RunFolder:
    """A run that is being written; resumes the run in the folder if it is the same.

    Nothing is written before `start`, so that a model that cannot be loaded leaves no run behind. From then on, and
    from the beginning where a run is resumed, other processes are kept out until `finish` or `release`.

    Args:
        path: The folder; created if it is missing.
        record: The record of the run that is about to be measured.

    Attributes:
        path: The folder.
        record: The record, as it is on disk.
        done: The finished items, by (task, id).
        needs_grading: Whether an earlier version of the answer check made these items of an unfinished run.

    Raises:
        InputError: The folder holds another run, files that are not a run, or a run of another format; or another
            process writes to it.
        OSError: The folder cannot be written to.
    """

    def __init__(self, path: str | Path, record: RunRecord):
        self.path = Path(path)
        self._hold: Hold | None = None
        self._started = time.monotonic()
        self.done: dict[tuple[str, str], Item] = {}
        self.needs_grading = False
        record = replace(record, created=record.created or _now(), git_revision=git_revision())
        self._is_new = not (self.path / RECORD_FILE).is_file()
        if not self._is_new:
            record = self._resume(record)
        elif self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir()))):
            raise InputError(
                f"{self.path} is not empty and holds no run of edit-trl; choose another folder, or remove it"
            )
        elif blocked := next((parent for parent in self.path.parents if parent.is_file()), None):
            raise InputError(f"output_dir {self.path}: {blocked} is a file, not a folder")
        else:
            check_writable(self.path)
            if self.path.exists():  # in which another process may be loading its model
                self._take()
        self.record = record

    @property
    def finished(self) -> bool:
        """Whether all items and the scores are written."""
        return self.record.finished is not None

    def start(self) -> None:
        """Write the record, before anything is measured and whenever it changes."""
        if self._hold is None:
            self._take()
            if self._is_new and (self.path / RECORD_FILE).is_file():
                self.release()
                raise InputError(
                    f"{self.path}: another process has begun this run meanwhile; run the command again to go on with it"
                )
        values = asdict(self.record)
        if not values["hub_datasets"]:  # so that earlier versions can read the record
            del values["hub_datasets"]
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str, allow_nan=False)
        write_whole(self.path / RECORD_FILE, text + "\n")
        self._is_new = False

    def append(self, items: Iterable[Item]) -> None:
        """Append a batch of items; they are on the disk when this returns."""
        items = list(items)
        if not (self.path / RECORD_FILE).is_file():
            self.start()
        lines = "".join(map(_line, items))
        try:
            with (self.path / ITEMS_FILE).open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(self.path / ITEMS_FILE)) from error
        self.done |= {key_of(item): item for item in items}

    def grade_again(self, items: Iterable[Item]) -> None:
        """Replace items by those with the verdicts of the present answer check."""
        self.done |= {key_of(item): item for item in items}
        write_whole(self.path / ITEMS_FILE, "".join(map(_line, self.done.values())))
        self.needs_grading = False
        self.start()

    def finish(
        self,
        order: Sequence[tuple[str, str]],
        scores: dict[str, float | None],
        intervals: Mapping[str, Sequence[float]],
        groups: dict[str, dict[str, dict[str, float | None]]],
    ) -> Run:
        """Put the items into the order of the data, given by (task, id), and write the scores; see `RunRecord`."""
        items = [self.done[key] for key in order]
        if not (self.path / RECORD_FILE).is_file():
            self.start()
        write_whole(self.path / ITEMS_FILE, "".join(map(_line, items)))
        self.record = replace(
            self.record,
            finished=_now(),
            items=len(items),
            scores=scores,
            intervals={name: list(interval) for name, interval in intervals.items()},
            groups=groups,
        )
        self.pause()
        self.release()
        return Run(self.path, self.record, items)

    def pause(self) -> None:
        """Add the time since the start to the record."""
        if not (self.path / RECORD_FILE).is_file():
            return  # it was not started
        now = time.monotonic()
        self.record = replace(self.record, seconds=round(self.record.seconds + now - self._started, 3))
        self._started = now
        self.start()

    def release(self) -> None:
        """Leave the folder to other processes."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _take(self) -> None:
        """Hold the folder, and remove the drafts of a process that was killed."""
        self._hold = hold_folder(self.path)
        for draft in filter(_is_draft, self.path.iterdir()):
            draft.unlink()

    def _resume(self, record: RunRecord) -> RunRecord:
        if _read_record(self.path).finished is None:
            self._take()
        try:
            return self._resume_held(record)
        except BaseException:
            self.release()
            raise

    def _resume_held(self, record: RunRecord) -> RunRecord:
        """Read the items of the run in the folder; return its record, or the new one if another run has no items."""
        earlier = _read_record(self.path)
        items = _read_items(self.path, earlier.kind, partial=not earlier.finished)
        before, now = ({name: getattr(one, name) for name in _IDENTITY} for one in (earlier, _as_read(record)))
        # A finished run stays as it is stored; the responses of an unfinished one are graded again.
        of_earlier_check = _number(before["verifier"]) < _number(now["verifier"])
        if of_earlier_check:
            before["verifier"] = now["verifier"]
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
            self.needs_grading = of_earlier_check
            earlier = replace(earlier, verifier=record.verifier)
        return earlier


def read_run(path: str | Path, *, stored_tokens: bool = False) -> Run:
    """Read a finished run.

    Args:
        path: Its folder, or a file in it.
        stored_tokens: Leave the tokens of a suite's items as text until they are looked up, see `StoredTokens`: much
            faster where few of them are.

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
    items = _read_items(path, record.kind, stored_tokens=stored_tokens)
    if len(items) != record.items:
        raise InputError(f"{path}: {ITEMS_FILE} has {len(items)} items, {RECORD_FILE} says {record.items}")
    return Run(path, record, items)


def _read_record(path: Path) -> RunRecord:
    file = path / RECORD_FILE
    values = read_json_file(file)
    version, writer = (values.get("format"), values.get("edit_trl")) if isinstance(values, dict) else (None, None)
    if version != FORMAT:
        raise InputError(
            f"{file} has format {show(version)}; edit_trl {installed_version('edit_trl')} reads format {FORMAT}. "
            f"Run the evaluation again, or use the version that wrote it ({show(writer) if writer else 'not said'})"
        )
    values.setdefault("hub_datasets", {})
    if (problem := checker(RunRecord)(values)) is not None:
        raise InputError(f"{file} is not the record of a run: {problem.lstrip('.: ')}")
    return RunRecord(**values)


def _read_items(path: Path, kind: str, *, partial: bool = False, stored_tokens: bool = False) -> list[Any]:
    """Return the items of a run; `partial` allows a last line that was cut short, which is left out.

    See `read_run` for `stored_tokens`.
    """
    file = path / ITEMS_FILE
    if not file.is_file():
        if partial:
            return []
        raise InputError(f"{file} is missing")
    items: list[Any] = []
    tokens: list[StoredTokens | None] = []
    *lines, rest = file.read_bytes().split(b"\n")
    if rest and not partial:
        raise InputError(f"{file}, line {len(lines) + 1}: cut short")
    try:
        for number, line in enumerate(lines, 1):
            item, stored = split_tokens(line) if stored_tokens else (None, None)
            if stored is None:
                item = read_json(line, f"{file}, line {number}")
            if isinstance(item, dict) and type(item.get("id")) is int:  # earlier versions kept the type of the data
                item["id"] = str(item["id"])
            items.append(item)
            tokens.append(stored)
    except InputError:
        _check_items(items, kind, file)  # the first line with an error is named
        raise
    _check_items(items, kind, file)
    for item, stored in zip(items, tokens, strict=True):
        if stored is not None:
            item["tokens"] = stored
    return items


def _check_items(items: Sequence[Any], kind: str, file: Path) -> None:
    """Raise an InputError for the first value that is not an item of this kind of run."""
    if bulk_checker(ITEMS[kind])(items) and (kind != "evaluate" or all(item["samples"] for item in items)):
        return
    problem_of = checker(ITEMS[kind])
    for number, item in enumerate(items, 1):
        problem = problem_of(item)
        if problem is None and kind == "evaluate" and not item["samples"]:
            problem = ".samples: is empty"
        if problem is not None:
            raise InputError(f"{file}, line {number}: not an item of `edit-trl {kind}`: {problem.lstrip('.: ')}")


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


def _number(version: Any) -> int:
    return int(version) if str(version).isdecimal() else -1


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
