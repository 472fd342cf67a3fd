"""Checks whole columns of dual CoTs at once, which takes a fraction of the time of checking rows.

Only tables of the usual forms are found to be valid here. `edit_trl.data.row_checks` looks at the rows of any other
table, and says what is wrong with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edit_trl.common.thoughts import FIELDS
from edit_trl.data.row import REQUIRED_COLUMNS, SPAN_COLUMNS, TEMPLATE_COLUMNS, TEXT_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

# What `str.strip` removes.
_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
# A result of a tool needs `tools`, and is left to the checks of rows.
_ROLES = {"system", "developer", "user", "assistant"}


def is_surely_valid(table: pa.Table) -> bool:
    """Return whether `find_row_errors` would find nothing in a table, as far as can be told from its columns.

    True only for rows with one wrong chain each, of one turn if they are conversational, without thoughts or tool calls
    in fields of their own, and without `prefix`, `tools` and `chat_template_kwargs`.
    """
    import pyarrow.compute as pc

    names = table.column_names
    if not len(table) or not {*REQUIRED_COLUMNS} <= {*names} or len({*names}) < len(names):
        return False
    if len({table.schema.field(name).type for name in REQUIRED_COLUMNS}) > 1:
        return False
    unset = [name for name in ("prefix", *TEMPLATE_COLUMNS) if name in names]
    if any(table[name].null_count < len(table) for name in unset):
        return False
    if not all(_is_text(table[name]) for name in TEXT_COLUMNS if name in names):
        return False
    if "mistake" in names and not _is_list_of_texts(table["mistake"]):
        return False
    if "id" in names and pc.count_distinct(table["id"]).as_py() < len(table) - table["id"].null_count:
        return False
    columns = [name for name in (*REQUIRED_COLUMNS, *SPAN_COLUMNS) if name in names]
    return all(_are_pairs(batch) for batch in table.select(columns).to_batches())


def _is_text(column: pa.ChunkedArray) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(column.type) or column.null_count == len(column)


def _is_list_of_texts(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if column.null_count == len(column):
        return True
    return (
        kinds.is_list(column.type)
        and kinds.is_string(column.type.value_type)
        and pc.list_flatten(column).null_count == 0
    )


def _are_pairs(batch: pa.RecordBatch) -> bool:
    """Return whether prompts and chains are valid, the chains of a pair differ, and spans are in their chains."""
    import pyarrow.compute as pc

    prompts, chosen, rejected = (_texts_of(batch.column(name), name == "prompt") for name in REQUIRED_COLUMNS)
    if prompts is None or chosen is None or rejected is None:
        return False
    stripped = [pc.utf8_trim(texts, characters=_SPACE) for texts in (prompts, chosen, rejected)]
    if any(pc.min(pc.binary_length(texts)).as_py() == 0 for texts in stripped):
        return False
    if pc.any(pc.equal(*stripped[1:])).as_py():
        return False
    sides = {"chosen": chosen, "rejected": rejected}
    spans = [(batch.column(name), sides[side]) for name, side in SPAN_COLUMNS.items() if name in batch.schema.names]
    return all(_are_spans(column, texts) for column, texts in spans)


def _texts_of(column: pa.Array, is_prompt: bool) -> pa.Array | None:
    """Return the text of each plain value, or of the last turn of each conversation; None if a value may be invalid."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if column.null_count:
        return None
    if kinds.is_string(column.type):
        return column
    if not (kinds.is_list(column.type) and kinds.is_struct(column.type.value_type)):
        return None
    fields = {field.name: field.type for field in column.type.value_type}
    if {"tool_calls", *FIELDS} & {*fields} or not all(
        kinds.is_string(fields.get(name, column.type)) for name in ("role", "content")
    ):
        return None
    lengths = column.value_lengths()
    messages = column.flatten()
    roles, contents = pc.struct_field(messages, "role"), pc.struct_field(messages, "content")
    if messages.null_count or roles.null_count or contents.null_count or pc.min(lengths).as_py() == 0:
        return None
    if not _ROLES.issuperset(roles.unique().to_pylist()):
        return None
    if len(messages) > len(column):  # turns before the last one
        if not is_prompt:
            return None
        last = pc.subtract(pc.cumulative_sum(lengths), 1)
        roles, contents = roles.take(last), contents.take(last)
    return contents if roles.unique().to_pylist() == ["user" if is_prompt else "assistant"] else None


def _are_spans(column: pa.Array, texts: pa.Array) -> bool:
    """Return whether the spans of each row are None, or sorted [start, end) characters of its text without overlap."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == len(column):
        return True
    if column.type != pa.list_(pa.list_(pa.int64())):
        return False
    # By DLPack: `to_numpy` would import pandas, which takes a quarter of a second, as `pc.equal` with a text does.
    spans = column.flatten()
    offsets = spans.flatten()
    if spans.null_count or offsets.null_count or not (np.from_dlpack(spans.value_lengths()) == 2).all():
        return False
    start, end = np.from_dlpack(offsets).reshape(-1, 2).T
    row = np.from_dlpack(pc.list_parent_indices(column))
    length = np.from_dlpack(pc.utf8_length(texts))[row]
    follows = (start[1:] >= end[:-1]) | (row[1:] != row[:-1])
    return bool(((start >= 0) & (start < end) & (end <= length)).all() and follows.all())
