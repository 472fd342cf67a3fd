"""Reads rows from files (JSON Lines, JSON, CSV, Parquet), folders and the Hub."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.common.hub_ids import looks_like_file, refuse_missing_path
from edit_trl.common.json_text import read_json
from edit_trl.data.columns import dataset_of
from edit_trl.data.row import unreadable_cell

if TYPE_CHECKING:
    from datasets import Dataset

# What `datasets` raises for the files of a saved dataset that are not as it wrote them.
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, RecursionError)

DataFiles = str | Sequence[str] | Mapping[str, str] | None


def pick_split(splits: Mapping[str, Any], split: str | None, source: str) -> Any:
    """Return the value of a split, "train" by default; raise an InputError if there is no such split."""
    name = split or "train"
    if name not in splits:
        listed = ", ".join(splits)
        generated = "; `dual` and `warm_up` are in a folder that `edit-trl generate` wrote: give that"
        hint = generated if name in ("dual", "warm_up") else ""
        raise InputError(f"{source}: no split {name!r}; choose the split from: {listed}{hint}")
    return splits[name]


def check_local_source(source: str, split: str | None, **hub_options: DataFiles) -> None:
    """Check that a source on this machine is asked for nothing that only the Hub has, and a file for no other split.

    Raises:
        InputError: It is.
    """
    path = Path(source).expanduser()
    listed = ", ".join(f"{option}={value!r}" for option, value in hub_options.items() if value is not None)
    if listed and path.exists():
        hint = "; give the path of the file itself" if "data_" in listed else ""
        raise InputError(f"{source} is on this machine: {listed} only applies to a dataset on the Hub{hint}")
    if path.is_file():
        pick_split({"train": path}, split, source)


def _load_from_hub(
    source: str, name: str | None, split: str | None, revision: str | None, **files: DataFiles
) -> Dataset:
    """Load a dataset from the Hub; raise an InputError if that fails."""
    from datasets import DatasetDict, load_dataset
    from datasets.exceptions import DatasetsError

    # OSError covers a missing dataset, a refusal, no network and the offline mode; ValueError an
    # unknown configuration or split, whose message lists the known ones.
    try:
        loaded = load_dataset(source, name, split=split, revision=revision, **files)
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"{source!r} is neither a file or folder here (looked in {Path.cwd()}) nor a dataset "
            f"that could be loaded from the Hub: {error}"
        ) from error
    return pick_split(loaded, None, source) if isinstance(loaded, DatasetDict) else loaded


def _is_saved(path: Path) -> bool:
    """Return whether a folder was written by `datasets.save_to_disk`."""
    return any((path / name).exists() for name in ("dataset_dict.json", "state.json"))


def split_path(source: str | Path, split: str | None) -> Path | None:
    """Return the file or folder of a split, where a folder has one for each: train.jsonl, test.jsonl, or train/.

    None for any other source.

    Raises:
        InputError: There is none for this split, or there are two.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() or _is_saved(folder) or (folder / "dual.parquet").is_file():
        return None
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _is_saved(path):
            paths.setdefault(path.name, []).append(path)
        if path.is_file() and path.suffix.lower() in (*_ROW_READERS, ".parquet"):
            paths.setdefault(path.stem, []).append(path)
    if not paths.keys() & {"train", "test", "validation", split}:
        return None
    found = pick_split(paths, split, str(source))
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise InputError(f"{source}: {names} are both the split {split or 'train'!r}; give the path of one of them")
    return found[0]


def _load_folder(path: Path, split: str | None) -> Dataset:
    """Load a folder of `datasets.save_to_disk` or `edit-trl generate`; raise an InputError if that fails."""
    from datasets import DatasetDict, load_from_disk

    if (path / "dual.parquet").is_file() and (path / "warm_up.parquet").is_file():  # `edit-trl generate`
        name = pick_split({"train": "dual", "dual": "dual", "warm_up": "warm_up"}, split, str(path))
        return _read_parquet(path / f"{name}.parquet")
    if not _is_saved(path):
        files = sorted(file.name for file in path.iterdir() if looks_like_file(file))
        raise InputError(
            f"{path} is not a folder written by datasets.save_to_disk, and has no file or folder for a split, such as "
            f"train.jsonl; it holds {', '.join(files[:10]) or 'no data file'}. Pass one file instead"
        )
    try:
        loaded = load_from_disk(path)
    except _BROKEN as error:
        raise InputError(f"{path}: a saved dataset that cannot be read: {type(error).__name__}: {error}") from error
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return _readable(pick_split(splits, split, str(path)), str(path))


def _read_parquet(path: Path) -> Dataset:
    """Read a Parquet file; raise an InputError if that fails."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        dataset = dataset_of(pq.read_table(path))
    except (pa.ArrowException, *_BROKEN) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {error}") from error
    return _readable(dataset, str(path))


def _readable(dataset: Dataset, source: str) -> Dataset:
    """Return a dataset whose values can all be read; Arrow itself does not check that text is UTF-8."""
    import pyarrow as pa

    try:
        dataset.data.table.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{source}, {unreadable_cell(dataset) or error}") from error
    return dataset


def load_table(
    source: str, name: str | None, split: str | None, revision: str | None = None, **files: DataFiles
) -> Dataset:
    """Load a Parquet file, a folder or a dataset on the Hub; raise an InputError if that fails.

    `files` are `data_dir` and `data_files` of `datasets.load_dataset`, for the Hub.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_parquet(path)
    if path.is_dir():
        return _load_folder(path, split)
    if path.exists():
        raise InputError(f"{source} is a device or a pipe; write its contents to a file, and name that")
    refuse_missing_path(source)
    return _load_from_hub(source, name, split, revision, **files)


def is_text_file(path: Path) -> bool:
    """Return whether a path is a file that `read_rows` reads, or refuses: any file that is not Parquet."""
    return path.is_file() and path.suffix.lower() != ".parquet"


# --- Files of rows ---------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl, .json or .csv file; see `iterate_rows`."""
    return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl, .json or .csv file; every cell of a CSV file is text.

    Raises:
        InputError: The file is of another format, broken or empty. Errors of rows are raised together, after the last.
    """
    read = _ROW_READERS.get(path.suffix.lower())
    if read is None:
        formats = ", ".join([*_ROW_READERS, ".parquet"])
        raise InputError(f"{path}: cannot read a {path.suffix!r} file; use one of {formats}")
    errors, number = [], 0
    for number, row in enumerate(read(path), 1):
        if isinstance(row, dict):
            yield row
        else:
            errors.append(f"{path}, row {number}: must be an object with named columns, got {show(row)}")
    raise_problems(errors, str(path))
    if not number:
        raise InputError(f"{path}: there are no rows")


def _read_jsonl(path: Path) -> Iterator[Any]:
    errors: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = read_json(line.strip(), f"{path}, line {number}", finite=False)
            except InputError as error:
                errors += error.problems
            else:
                yield value
    raise_problems(errors, str(path))


def _read_json(path: Path) -> list[Any]:
    try:
        content = read_json(path.read_bytes(), str(path), finite=False)
    except InputError as error:
        hint = " (one object per line? name it .jsonl)" if "Extra data" in str(error) else ""
        raise InputError(f"{error}{hint}") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InputError(f'{path}: must be a list of rows or {{"data": [rows]}}, got {show(content)}')
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file, _any_length():
            header, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not CSV: {error}") from error
    if len(set(header)) < len(header):
        raise InputError(f"{path}: the header names a column twice: {', '.join(header)}")
    errors = [
        f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}"
        for number, cells in enumerate(lines, 1)
        if len(cells) != len(header)
    ]
    raise_problems(errors, str(path))
    return [dict(zip(header, cells, strict=True)) for cells in lines]


@contextmanager
def _any_length() -> Iterator[None]:
    """Let the CSV reader take cells of any length; by default it refuses those of more than 131,072 characters."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


_ROW_READERS: dict[str, Callable[[Path], Iterable[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
