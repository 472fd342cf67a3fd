"""Reads a .jsonl file of rows of one form straight into columns.

As Python objects on their way to Arrow, rows take about ten times as long as in Arrow's own reader. That reader is as
strict as `read_json`, but it names neither the row nor the column of an error, and gives rows of several forms types
of its own. So it reads only files whose rows are all like the first, and `edit_trl.data.files` reads any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.common.json_text import read_json
from edit_trl.data.columns import type_of_column
from edit_trl.data.row import REQUIRED_COLUMNS, TEMPLATE_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 4 << 20  # bytes; no line may be longer


def read_uniform_rows(path: Path) -> pa.Table | None:
    """Read a file of JSON objects, one per line, if all have the columns and types of the first.

    Returns:
        The columns, as `edit_trl.data.columns.Columns` would store them, in chunks of other sizes. None if the rows are
        not of one form, or something is wrong with the file.
    """
    import pyarrow as pa
    from pyarrow.json import ParseOptions, ReadOptions, open_json

    first, count = b"", 0
    with path.open("rb") as file:
        for line in file:
            # So that each line is an object: Arrow would also take several on a line, and one on several lines.
            if not (line.startswith(b"{") and line.endswith((b"}\n", b"}"))):
                return None
            first, count = first or line, count + 1
    schema = _schema_of(first)
    if schema is None:
        return None
    reading = ReadOptions(use_threads=False, block_size=_BLOCK)
    parsing = ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    try:
        table = open_json(path, reading, parsing).read_all()
        table.validate(full=True)  # that text is UTF-8
    except pa.ArrowException:
        return None
    return table if len(table) == count and _has_whole_messages(table) else None


def _schema_of(line: bytes) -> pa.Schema | None:
    """Return the types of the columns of a row; None if one of them depends on other rows."""
    import pyarrow as pa

    try:
        row = read_json(line, "")
    except InputError:
        return None
    types = {name: _type_of(name, value) for name, value in row.items()}
    return None if None in types.values() else pa.schema(types.items())


def _type_of(name: str, value: Any) -> pa.DataType | None:
    import pyarrow as pa

    if name in TEMPLATE_COLUMNS:
        return None
    if (known := type_of_column(name)) is not None:
        return known
    if name in REQUIRED_COLUMNS and isinstance(value, list):
        is_message = bool(value) and isinstance(value[0], dict)
        texts = value[0].items() if is_message else ()
        fields = [(key, pa.string()) for key, text in texts if isinstance(text, str)]
        return pa.list_(pa.struct(fields)) if fields and len(fields) == len(texts) else None
    scalars = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return scalars.get(type(value))


def _has_whole_messages(table: pa.Table) -> bool:
    """Return whether no message lacks a field that others have, which Arrow stores like one that is null."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    messages = [pc.list_flatten(column) for column in table.columns if kinds.is_list(column.type)]
    return not any(
        part.null_count or any(field.null_count for field in part.flatten())
        for part in messages
        if kinds.is_struct(part.type)
    )
