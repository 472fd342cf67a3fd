"""Dual CoTs loaded, saved and pushed (L0); the row itself is in `dual_cot_row`.

Files of rows are parsed here rather than by `datasets`, which neither names the broken line nor
keeps an answer such as "007" as text. `datasets` is slow to import, so it is where it is used.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.data.row import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPAN_COLUMNS,
    TEXT_COLUMNS,
    DualCoT,
    Message,
    chain_text,
    checked_mapping,
    find_problems,
    has_several_rejected,
    is_conversational,
    raise_problems,
    rows_of,
    show,
    validate_dual_cots,
)
from edit_trl.hub.refusals import explained
from edit_trl.hub.repository import check_repo_id, open_repository

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "OPTIONAL_COLUMNS",
    "REQUIRED_COLUMNS",
    "DualCoT",
    "Message",
    "chain_text",
    "is_conversational",
    "load_dual_cots",
    "push_dual_cots",
    "save_dual_cots",
    "validate_dual_cots",
]

_CSV_JSON_COLUMNS = ("mistake", *SPAN_COLUMNS)


# --- Loading ---------------------------------------------------------------------------------


def load_dual_cots(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    column_mapping: Mapping[str, str] | None = None,
) -> Dataset:
    """Loads dual CoTs, renames columns and validates every row.

    Args:
        source: A .jsonl, .json (a list of rows, or {"data": [...]}), .csv or .parquet file; a
            folder written by `datasets.save_to_disk` or by `edit-trl generate` (with the splits `dual` and
            `warm_up`); or the id of a dataset on the Hub. In CSV
            every cell is text, except that `mistake`, spans and conversations are JSON, and an
            empty cell of an optional column is None.
        name: The configuration, for a dataset on the Hub.
        split: The split, "train" by default; a file has only that one.
        revision: The branch, tag or commit, for a dataset on the Hub.
        column_mapping: Their column name -> ours, such as {"correct": "chosen"}.

    Returns:
        The dataset, with its other columns kept.

    Raises:
        InputError: What cannot be found, read or mapped, or rows that are not dual CoTs.
    """
    path, where = Path(source).expanduser(), str(source)
    if not path.exists():
        refuse_missing_path(where)
        dataset = load_from_hub(where, name, split, revision)
    else:
        _refuse_hub_options(where, {"name": name, "revision": revision})
        if path.is_file():
            _pick_split({"train": path}, split, where)
            if path.suffix.lower() != ".parquet":
                return _dataset_of_rows(path, column_mapping or {})
        dataset = load_folder(path, split) if path.is_dir() else read_parquet(path)
    dataset = dataset.rename_columns(checked_mapping(column_mapping or {}, dataset.column_names, where))
    validate_dual_cots(dataset, source=where)
    return dataset


def _looks_like_file(path: Path) -> bool:
    # Letters only: "Qwen3-0.6B" and "data.v2" are names of folders and repositories.
    return re.fullmatch(r"\.[a-z]{2,9}", path.suffix.lower()) is not None


def refuse_missing_path(source: str) -> None:
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) is not None
    if not is_hub_id or _looks_like_file(Path(source)):
        raise InputError(f"no such file or folder: {source!r} (looked in {Path.cwd()})")


def _refuse_hub_options(source: str, options: Mapping[str, str | None]) -> None:
    given = [f"{option}={value!r}" for option, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{source} is on this machine: {', '.join(given)} only applies to a dataset on the Hub"
        )


def _pick_split(splits: Mapping[str, Any], split: str | None, source: str) -> Any:
    wanted = split or "train"
    if wanted not in splits:
        listed = ", ".join(splits)
        generated = "; `dual` and `warm_up` are in a folder that `edit-trl generate` wrote: give that"
        hint = generated if wanted in ("dual", "warm_up") else ""
        raise InputError(f"{source}: no split {wanted!r}; choose the split from: {listed}{hint}")
    return splits[wanted]


def load_from_hub(source: str, name: str | None, split: str | None, revision: str | None) -> Dataset:
    from datasets import DatasetDict, load_dataset
    from datasets.exceptions import DatasetsError

    # OSError covers a missing dataset, a refusal, no network and the offline mode; ValueError an
    # unknown configuration or split, whose message lists the known ones.
    try:
        loaded = load_dataset(source, name, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"{source!r} is neither a file or folder here (looked in {Path.cwd()}) nor a dataset "
            f"that could be loaded from the Hub: {error}"
        ) from error
    return _pick_split(loaded, None, source) if isinstance(loaded, DatasetDict) else loaded


def load_folder(path: Path, split: str | None) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    if (path / "dual.parquet").is_file() and (path / "warm_up.parquet").is_file():  # `edit-trl generate`
        name = _pick_split({"train": "dual", "dual": "dual", "warm_up": "warm_up"}, split, str(path))
        return read_parquet(path / f"{name}.parquet")
    if not any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        files = sorted(file.name for file in path.iterdir() if _looks_like_file(file))
        raise InputError(
            f"{path} is not a folder written by datasets.save_to_disk; it holds "
            f"{', '.join(files[:10]) or 'no data file'}. Pass one file instead"
        )
    try:
        loaded = load_from_disk(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: a saved dataset that cannot be read: {error}") from error
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    return _pick_split(splits, split, str(path))


def read_parquet(path: Path) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        return Dataset(InMemoryTable(pq.read_table(path)))
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {error}") from error


# --- Files of rows ---------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() not in _ROW_READERS:
        known = ", ".join([*_ROW_READERS, ".parquet"])
        raise InputError(f"{path}: cannot read a {path.suffix!r} file; use one of {known}")
    rows = _ROW_READERS[path.suffix.lower()](path)
    wrong = [
        f"{path}, row {number}: must be an object with named columns, got {show(row)}"
        for number, row in enumerate(rows, 1)
        if not isinstance(row, dict)
    ]
    raise_problems(wrong, str(path))
    if not rows:
        raise InputError(f"{path}: there are no rows")
    return rows


def _read_jsonl(path: Path) -> list[Any]:
    rows, broken = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line.strip()))
            except json.JSONDecodeError as error:
                problem = f"not JSON: {error.msg} (column {error.colno})"
                broken.append(f"{path}, line {number}: {problem}")
            except (UnicodeDecodeError, RecursionError) as error:  # not UTF-8, or nested too deep
                broken.append(f"{path}, line {number}: cannot be read: {error}")
    raise_problems(broken, str(path))
    return rows


def _read_json(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        hint = " (one object per line? name it .jsonl)" if "Extra data" in str(error) else ""
        raise InputError(f"{path}: not JSON: {error}{hint}") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InputError(f'{path}: must be a list of rows or {{"data": [rows]}}, got {show(content)}')
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not CSV: {error}") from error
    if len(set(header)) < len(header):
        raise InputError(f"{path}: the header names a column twice: {', '.join(header)}")
    rows, problems = [], []
    for number, cells in enumerate(lines, 1):
        if len(cells) != len(header):
            problems.append(f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}")
            continue
        rows.append(dict(zip(header, cells, strict=True)))
    raise_problems(problems, str(path))
    return rows


_ROW_READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}


def _parse_csv_cell(column: str, text: str) -> Any:
    """What a CSV cell holds; text that does not parse is left for the validation to name."""
    if column in OPTIONAL_COLUMNS and not text:
        return None
    if column == "rejected" and text == "[]":
        return []
    beginnings = ("[{", '["', "[[{") if column == "rejected" else ("[{",)  # messages, or several chains
    if column not in _CSV_JSON_COLUMNS and not (column in REQUIRED_COLUMNS and text.startswith(beginnings)):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    is_turns = isinstance(first, str) or (isinstance(first, dict) and "role" in first)
    return value if column in _CSV_JSON_COLUMNS or is_turns else text


def _dataset_of_rows(path: Path, column_mapping: Mapping[str, str]) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rows = read_rows(path)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    mapping = checked_mapping(column_mapping, columns, str(path))
    rows = [{mapping.get(column, column): value for column, value in row.items()} for row in rows]
    columns = [mapping.get(column, column) for column in columns]
    if path.suffix.lower() == ".csv":
        rows = [{c: _parse_csv_cell(c, text) for c, text in row.items()} for row in rows]
    raise_problems(find_problems(rows, columns, str(path)), str(path))

    # Fixed types where they are known: a column of empty lists or of None has none of its own.
    types = dict.fromkeys(TEXT_COLUMNS, pa.string())
    types |= {"mistake": pa.list_(pa.string())}
    spans = pa.list_(pa.list_(pa.int64()))
    several = any(map(has_several_rejected, rows))
    types |= dict.fromkeys(SPAN_COLUMNS, pa.list_(spans) if several else spans)
    arrays = {}
    for column in columns:
        try:
            arrays[column] = pa.array([row.get(column) for row in rows], type=types.get(column))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise InputError(
                f"{path}: column {column!r} cannot be stored, its values must be of one type: {error}"
            ) from error
    return Dataset(InMemoryTable.from_pydict(arrays))


# --- Saving ----------------------------------------------------------------------------------


def save_dual_cots(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Validates and writes dual CoTs, whole or not at all; what was there is replaced.

    Args:
        dataset: The rows.
        path: A .jsonl, .parquet or .csv file, or (without a suffix) a folder for
            `datasets.save_to_disk`. Its parent folders are made. CSV turns other columns into text.

    Raises:
        InputError: Rows that are not dual CoTs, a format not known, a column that the format
            cannot hold, or a folder that holds something else than one saved dataset.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    writers = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": type(dataset).to_parquet}
    if _looks_like_file(path) and suffix not in writers:
        raise InputError(
            f"{path}: cannot write a {path.suffix!r} file; use one of {', '.join(writers)} or a "
            "folder (no suffix)"
        )
    write = writers.get(suffix, type(dataset).save_to_disk)
    if path.is_dir() if suffix in writers else path.is_file():
        raise InputError(f"{path} exists and is {'a folder' if path.is_dir() else 'a file'}")
    if path.is_dir() and any(path.iterdir()) and not (path / "state.json").exists():
        raise InputError(f"{path} is a folder that holds something else; choose another")
    validate_dual_cots(dataset, source=str(path))
    try:
        with _replacing(path) as temporary:
            write(dataset, temporary)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `path` once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary, old = Path(folder) / path.name, Path(folder) / "old"
        yield temporary
        if not path.is_dir():
            temporary.replace(path)
            return
        path.rename(old)  # no system call replaces a folder that is not empty
        try:
            temporary.rename(path)
        finally:
            if not path.exists():
                old.rename(path)


def _write_jsonl(dataset: Dataset, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows_of(dataset):
            file.write(_to_json(row, "JSON Lines") + "\n")


def _write_csv(dataset: Dataset, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(dataset.column_names)
        for row in rows_of(dataset):
            writer.writerow(
                value if isinstance(value, str | None) else _to_json(value, "CSV") for value in row.values()
            )


def _to_json(value: Any, format_name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:  # bytes, dates, images in a column of the user's own
        raise InputError(
            f"{format_name} cannot hold {show(value)}: {error}; use .parquet or a folder"
        ) from error


def push_dual_cots(
    dataset: Dataset, repo_id: str, *, private: bool | None = None, split: str = "train"
) -> None:
    """Validates dual CoTs and pushes them to the Hub as a split of a dataset.

    Args:
        dataset: The rows.
        repo_id: "namespace/name"; made if it does not exist.
        private: Whether a new repository is private; it is unless this is False.
        split: The split to write.

    Raises:
        InputError: A repo_id without its namespace, rows that are not dual CoTs, or a refusal by
            the Hub.
    """
    check_repo_id(repo_id, "repo_id")
    validate_dual_cots(dataset, source=repo_id)
    open_repository(repo_id, repo_type="dataset", private=private)
    with explained(repo_id):
        dataset.push_to_hub(repo_id, split=split)
