"""The columns of rows that are read from a file, stored in Arrow block by block.

As Python objects, rows take about ten times the memory of their columns, and the garbage collector walks them again
and again: it took half of the time of reading a file.
"""

from __future__ import annotations

import bisect
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.data.row import REQUIRED_COLUMNS, SPAN_COLUMNS, TEMPLATE_COLUMNS, TEXT_COLUMNS, has_several_rejected

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_BLOCK = 5000  # rows


class Columns:
    """The columns of a file, which `store` fills.

    Attributes:
        names: Their names, in the order of their first appearance.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._count = 0
        self._block: list[Mapping[str, Any]] = []
        self._structured: set[str] = set(TEMPLATE_COLUMNS)
        self._several = False
        # Of each column its blocks: in Arrow, or as values where Arrow alone would lose what they are.
        self._blocks: dict[str, list[pa.Array | pa.ChunkedArray | list[Any]]] = {}

    def store(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Store rows, and yield each of them, to be checked as it is read."""
        for row in rows:
            self._block.append(row)
            yield row
            if len(self._block) == _BLOCK:
                self._store_block()
        self._store_block()

    def arrays(self, source: str) -> dict[str, pa.ChunkedArray]:
        """Return the columns, once all rows have been stored and found to be valid.

        Raises:
            InputError: The values of a column are not of one type; names the row.
        """
        return {name: self._whole(name, source) for name in self.names}

    def _store_block(self) -> None:
        import pyarrow as pa

        block, self._block = self._block, []
        for name in dict.fromkeys(chain.from_iterable(block)):
            if name not in self._blocks:
                self.names.append(name)
                self._blocks[name] = [pa.nulls(self._count)] if self._count else []
                if name in REQUIRED_COLUMNS and not isinstance(block[0].get(name), str):
                    self._structured.add(name)
        self._several = self._several or any(map(has_several_rejected, block))
        for name in self.names:
            values = [row.get(name) for row in block]
            try:
                array = self._array(name, values)
            except (pa.ArrowException, OverflowError):  # an error of the row, or of the whole column
                self._blocks[name].append(values)
            else:
                self._blocks[name].append(values if _has_json(array.type) else array)
        self._count += len(block)

    def _array(self, name: str, values: list[Any]) -> pa.Array | pa.ChunkedArray:
        import pyarrow as pa

        if name in self._structured:
            return array_of(name, values)
        return pa.array(values, type=type_of_column(name, self._several))

    def _whole(self, name: str, source: str) -> pa.ChunkedArray:
        import pyarrow as pa

        blocks = self._blocks[name]
        arrays = [block for block in blocks if not isinstance(block, list)]
        kinds = {array.type for array in arrays} - {pa.null()}
        if len(arrays) == len(blocks) and len(kinds) <= 1:
            kind = kinds.pop() if kinds else pa.null()
            arrays = [pa.nulls(len(array), kind) if array.type == pa.null() else array for array in arrays]
            return pa.chunked_array(chain.from_iterable(map(_chunks, arrays)), kind)
        values = [*chain.from_iterable(block if isinstance(block, list) else block.to_pylist() for block in blocks)]
        try:
            return self._array(name, values)
        except (pa.ArrowException, OverflowError) as error:
            row = bisect.bisect(range(len(values)), False, key=lambda last: not _is_column(values[: last + 1]))
            reason = f"column {name!r} cannot be stored, its values must be of one type: {error}"
            raise InputError(f"{source}, row {row + 1}: {reason}") from error


def type_of_column(name: str, several: bool = False) -> pa.DataType | None:
    """Return the type of a known column: Arrow cannot infer that of empty lists or None. None for any other column.

    `several` is whether rows have several wrong chains.
    """
    import pyarrow as pa

    if name in TEXT_COLUMNS:
        return pa.string()
    if name == "mistake":
        return pa.list_(pa.string())
    if name in SPAN_COLUMNS:
        spans = pa.list_(pa.list_(pa.int64()))
        return pa.list_(spans) if several else spans
    return None


def dataset_of(table: pa.Table) -> Dataset:
    """Return a table as a dataset whose fingerprint is that of its content.

    Without a fingerprint, `datasets` makes one of a pickle of the table, for which it copies all of it several times.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    content = _Hash()
    with pa.PythonFile(content, "w") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return Dataset(InMemoryTable(table), fingerprint=content.hash.hexdigest()[:16])


class _Hash(io.RawIOBase):
    """A file that keeps only the hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def array_of(column: str, values: list[Any]) -> pa.Array | pa.ChunkedArray:
    """Return the values of a column as Arrow stores them; dicts whose keys differ are JSON, as in files that TRL loads.

    One Arrow type for all of them would have the keys of all, and give each dict those of the others, as None.
    """
    import pyarrow as pa
    from datasets import Dataset

    if _are_like_messages(values):
        return pa.array(values)  # what `datasets` does after a long look
    return Dataset.from_dict({column: values}, on_mixed_types="use_json").data.table[column]


def _are_like_messages(values: list[Any]) -> bool:
    """Return whether all values are lists of dicts that have the same keys, and texts or None for all of them."""
    if not {list}.issuperset(map(type, values)):
        return False
    messages = [*chain.from_iterable(values)]
    if not messages or not {dict}.issuperset(map(type, messages)):
        return False
    keys = messages[0].keys()
    kinds = {*map(type, chain.from_iterable(message.values() for message in messages))}
    return bool(keys) and kinds <= {str, type(None)} and all(message.keys() == keys for message in messages)


def _chunks(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    import pyarrow as pa

    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def _has_json(kind: pa.DataType) -> bool:
    """Return whether a type holds values as JSON: blocks of it may be of one type in another way as a whole."""
    import pyarrow as pa

    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return isinstance(kind, pa.BaseExtensionType) or any(map(_has_json, inner))


def _is_column(values: list[Any]) -> bool:
    """Return whether values, of a column that is not ours, are of one type."""
    import pyarrow as pa

    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError):
        return False
    return True
