"""Loads and saves dual CoTs.

Files of rows are parsed by this package rather than by `datasets`, which neither names the broken line nor
keeps an answer such as "007" as text. `datasets` is slow to import, so it is imported where it is used.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.conversion import nearest
from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.common.files import replacing
from edit_trl.common.hub_ids import looks_like_file
from edit_trl.common.json_text import read_json
from edit_trl.data.columns import Columns, dataset_of
from edit_trl.data.files import DataFiles, check_local_source, is_text_file, iterate_rows, load_table, split_path
from edit_trl.data.json_lines import read_uniform_rows
from edit_trl.data.row import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPAN_COLUMNS,
    rows_of,
    rows_of_table,
    with_prompt,
    with_prompts,
)
from edit_trl.data.row_checks import checked_mapping, find_row_errors, validate_dual_cots
from edit_trl.data.table_checks import is_surely_valid

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_CSV_JSON_COLUMNS = ("mistake", "chat_template_kwargs", *SPAN_COLUMNS)


# --- Loading ---------------------------------------------------------------------------------


def load_dual_cots(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    column_mapping: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    data_dir: str | None = None,
    data_files: DataFiles = None,
) -> Dataset:
    """Load dual CoTs, rename their columns and validate every row.

    Args:
        source: A .jsonl, .json (a list of rows, or {"data": [...]}), .csv or .parquet file; a folder written
            by `datasets.save_to_disk` or by `edit-trl generate` (with the splits `dual` and `warm_up`); a folder with a
            file or folder for each split, such as train.jsonl and test.jsonl; or the id of a dataset on the Hub. In CSV
            every cell is text, except that `mistake`, spans, `chat_template_kwargs` and conversations are JSON, and
            that an empty cell of an optional column is None.
        name: The configuration, for a dataset on the Hub.
        split: The split, "train" by default; a single file has no other.
        revision: The branch, tag or commit, for a dataset on the Hub.
        column_mapping: Their column name -> ours, such as {"correct": "chosen"}.
        columns: Keep only these columns, under the names that they have before the mapping.
        data_dir: A folder in a dataset on the Hub.
        data_files: Files of a dataset on the Hub.

    Returns:
        The dataset, including its other columns.

    Raises:
        InputError: A source that cannot be found, read or mapped, or rows that are not dual CoTs.
    """
    import pyarrow as pa

    files = {"data_dir": data_dir, "data_files": data_files}
    loaded = _load(source, name, split, revision, column_mapping, columns, **files)
    return dataset_of(loaded) if isinstance(loaded, pa.Table) else loaded


def _load(
    source: str | os.PathLike[str],
    name: str | None,
    split: str | None,
    revision: str | None,
    column_mapping: Mapping[str, str] | None,
    columns: Sequence[str] | None,
    **files: DataFiles,
) -> Dataset | pa.Table:
    """Load as `load_dual_cots` does; a file whose rows are all of one form is returned as a table."""
    path, where = Path(source).expanduser(), str(source)
    check_local_source(where, split, name=name, revision=revision, **files)
    if (of_split := split_path(path, split)) is not None:
        path, where, split = of_split, str(of_split), None
    if is_text_file(path):
        if path.suffix.lower() == ".jsonl" and not column_mapping and columns is None:
            table = read_uniform_rows(path)
            if table is not None and is_surely_valid(table):
                return table
        return _dataset_of_rows(path, column_mapping or {}, columns)
    # A saved format is a way to look at the rows.
    dataset = load_table(where, name, split, revision, **files).with_format(None)
    if columns is not None:
        dataset = dataset.select_columns(_checked_columns(columns, dataset.column_names, where))
    dataset = dataset.rename_columns(checked_mapping(column_mapping or {}, dataset.column_names, where))
    dataset = with_prompts(dataset)
    validate_dual_cots(dataset, source=where)
    return dataset


@dataclass(frozen=True)
class DatasetSource:
    """Where dual CoTs are, with what it takes to read them.

    Attributes:
        name: A file, a folder or the id of a dataset on the Hub.
        config: The configuration, for a dataset on the Hub.
        split: The split, "train" if None.
        revision: The branch, tag or commit, for a dataset on the Hub.
        column_mapping: Their column name -> ours.
        columns: The columns to keep, under their names; None for all.
        data_dir: A folder in a dataset on the Hub.
        data_files: Files of a dataset on the Hub.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    column_mapping: Mapping[str, str] | None = None
    columns: Sequence[str] | None = None
    data_dir: str | None = None
    data_files: DataFiles = None

    @property
    def names(self) -> list[str]:
        """The name of every dataset that the rows come from."""
        return [self.name]

    @property
    def is_local(self) -> bool:
        """Whether the rows are on this machine."""
        return Path(self.name).expanduser().exists()

    def load(self) -> Dataset:
        """Load and validate the rows; see `load_dual_cots`."""
        options = asdict(self)
        return load_dual_cots(options.pop("name"), name=options.pop("config"), **options)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Load and validate the rows, and yield them; see `load_dual_cots`. Files rarely need `datasets` here."""
        import pyarrow as pa

        options = self.config, self.split, self.revision, self.column_mapping, self.columns
        loaded = _load(self.name, *options, data_dir=self.data_dir, data_files=self.data_files)
        return rows_of_table(loaded) if isinstance(loaded, pa.Table) else rows_of(loaded)


def _parse_csv_cell(column: str, text: str) -> Any:
    """Return the value of a CSV cell; text that cannot be parsed stays, and validation reports it."""
    if column in OPTIONAL_COLUMNS and not text:
        return None
    if column == "rejected" and text == "[]":
        return []
    beginnings = ("[{", '["', "[[{") if column == "rejected" else ("[{",)  # messages, or several chains
    if column not in _CSV_JSON_COLUMNS and not (column in REQUIRED_COLUMNS and text.startswith(beginnings)):
        return text
    try:
        value = read_json(text, column)
    except InputError:
        return text
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    is_turns = isinstance(first, str) or (isinstance(first, dict) and "role" in first)
    return value if column in _CSV_JSON_COLUMNS or is_turns else text


def _checked_columns(chosen: Sequence[str], columns: Sequence[str], source: str) -> list[str]:
    """Return the chosen columns; raise an InputError if one does not exist."""
    raise_problems(
        f"{source}: no column {show(name)} (columns: {', '.join(columns)}){nearest(str(name), columns)}"
        for name in chosen
        if name not in columns
    )
    return list(chosen)


def _dataset_of_rows(path: Path, column_mapping: Mapping[str, str], chosen: Sequence[str] | None) -> Dataset:
    import pyarrow as pa

    # Which columns the rows have, on which their checks depend, is known at the end. They are read again if one lacks.
    expected: Sequence[str] = REQUIRED_COLUMNS
    while True:
        names: dict[str, None] = {}
        stored = Columns()
        rows = _prepared_rows(path, column_mapping, chosen, names, has_prompts="prompt" in expected)
        errors = list(find_row_errors(stored.store(rows), [*expected], str(path)))
        columns = [*names] if chosen is None else _checked_columns(chosen, [*names], str(path))
        mapping = checked_mapping(column_mapping, columns, str(path))
        columns = [mapping.get(column, column) for column in columns]
        if {*REQUIRED_COLUMNS} & {*expected} <= {*columns}:
            break
        expected = columns
    raise_problems(errors, str(path))
    arrays = stored.arrays(str(path))
    columns += ["prompt"] if "prompt" not in columns else []
    return dataset_of(pa.table({column: arrays[column] for column in columns}))


def _prepared_rows(
    path: Path,
    column_mapping: Mapping[str, str],
    chosen: Sequence[str] | None,
    names: dict[str, None],
    *,
    has_prompts: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with our names and types, and add the names that they have there to `names`.

    The names of the mapping and the chosen ones have not been checked.
    """
    ours = column_mapping if isinstance(column_mapping, Mapping) else {}
    ours = {theirs: name for theirs, name in ours.items() if isinstance(name, str)}
    is_csv = path.suffix.lower() == ".csv"
    for row in iterate_rows(path):
        names |= dict.fromkeys(row)
        if chosen is not None:
            row = {column: row[column] for column in chosen if column in row}
        if ours:
            row = {ours.get(column, column): value for column, value in row.items()}
        if is_csv:
            row = {column: _parse_csv_cell(column, text) for column, text in row.items()}
        yield row if has_prompts else dict(with_prompt(row))


# --- Saving ----------------------------------------------------------------------------------


def save_dual_cots(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Validate dual CoTs and write them, whole or not at all; an earlier version is replaced.

    Args:
        dataset: The rows.
        path: A .jsonl, .parquet or .csv file, or (without a suffix) a folder for `datasets.save_to_disk`. Its
            parent folders are created.

    Raises:
        InputError: Rows that are not dual CoTs, an unknown format, a value that would be another one when the file
            is read (in CSV, all but text in a column that is not ours), or a folder that does not hold a saved
            dataset.
    """
    import pyarrow as pa

    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    writers = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": type(dataset).to_parquet}
    if looks_like_file(path) and suffix not in writers:
        formats = ", ".join(writers)
        raise InputError(f"{path}: cannot write a {path.suffix!r} file; use one of {formats} or a folder (no suffix)")
    write = writers.get(suffix, type(dataset).save_to_disk)
    if path.is_dir() if suffix in writers else path.is_file():
        raise InputError(f"{path} exists and is {'a folder' if path.is_dir() else 'a file'}")
    if path.is_dir() and any(path.iterdir()) and not (path / "state.json").exists():
        raise InputError(f"{path} is a folder that holds something else; choose another")
    validate_dual_cots(dataset, source=str(path))
    try:
        with replacing(path) as draft:
            write(dataset, draft)
    except InputError as error:
        raise InputError(f"{path}, {error}") from error
    except (OSError, pa.ArrowException) as error:  # the latter: a type that Parquet does not have
        raise InputError(f"{path}: cannot be written: {error}") from error


def _write_jsonl(dataset: Dataset, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows_of(dataset):
            file.write(_to_json(row, "JSON Lines") + "\n")


def _write_csv(dataset: Dataset, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(dataset.column_names)
        for number, row in enumerate(rows_of(dataset), 1):
            cells = {
                column: value if isinstance(value, str | None) else _to_json(value, "CSV")
                for column, value in row.items()
            }
            for column, text in cells.items():
                if _parse_csv_cell(column, text or "") != row[column]:
                    raise InputError(
                        f"row {number}, {column}: CSV cannot hold {show(row[column])}, which would be read as other "
                        "text or another type; use .parquet or a folder"
                    )
            writer.writerow(cells.values())


def _to_json(value: Any, format_name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:  # bytes, dates, images in a column of the user's own
        raise InputError(f"{format_name} cannot hold {show(value)}: {error}; use .parquet or a folder") from error
