"""Mixtures of datasets, as TRL's `DatasetMixtureConfig` describes them: `datasets` in a recipe."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.checks import positive
from edit_trl.common.conversion import convert, natural
from edit_trl.common.errors import InputError, collect_problems, raise_problems, show
from edit_trl.common.yaml_file import parse_yaml
from edit_trl.data.columns import array_of, dataset_of
from edit_trl.data.dual_cots import DatasetSource
from edit_trl.data.row import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPAN_COLUMNS,
    TEMPLATE_COLUMNS,
    is_conversational,
    rows_of,
    with_prompts,
)
from edit_trl.data.unused_columns import unknown_columns, unused_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


ENTRY: dict[str, Any] = {
    "path": str,
    "name": str | None,
    "data_dir": str | None,
    "data_files": str | list[str] | dict[str, str] | None,
    "split": str | None,
    "columns": list[str] | None,
    "fraction": float | None,
    "revision": str | None,
    "column_mapping": dict[str, str] | None,
}
"""The options of a dataset in `datasets`: those of TRL's `DatasetConfig`, and the last two."""


def read_datasets(value: Any) -> list[dict[str, Any]]:
    """Read the option `datasets`.

    Args:
        value: A list of mappings with the options in `ENTRY`, or that as JSON or YAML text.

    Returns:
        The list, with all values converted to their types.

    Raises:
        InputError: All that is wrong with it.
    """
    if isinstance(value, str):
        value = parse_yaml(value, "datasets")
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise InputError(
            "`datasets` must be a list of datasets, each with a `path`, such as [{path: rows.jsonl}], "
            f"got {show(natural(value))}"
        )
    entries, problems = [], []
    for place, entry in enumerate(value):
        options, found = convert(entry, ENTRY)
        if not entry.get("path"):
            found.append("`path` is missing: a file, a folder or a Hub id")
        found += positive(fraction=options.get("fraction"))
        problems += [f"`datasets[{place}]`: {problem}" for problem in found]
        entries.append(options)
    fractions = [entry.get("fraction") for entry in value]
    if None in fractions and any(fraction is not None for fraction in fractions):
        problems.append("`datasets`: set `fraction` for all of them or for none")
    raise_problems(problems)
    return entries


@dataclass(frozen=True)
class Mixture:
    """Several datasets of dual CoTs, loaded as one.

    Attributes:
        sources: The datasets.
        fractions: Their shares of the mixture, which are normalized; None for all rows of each. As in TRL, the mixture
            is the largest in which no row is used twice, and takes the first rows of each dataset.
        test_size: How much is held out for evaluation: a share of the rows, or their number. None for nothing.
        part: Which of the two parts this is.
    """

    sources: tuple[DatasetSource, ...]
    fractions: tuple[float, ...] | None = None
    test_size: float | None = None
    part: Literal["train", "test"] = "train"

    @property
    def names(self) -> list[str]:
        """The name of every dataset that the rows come from."""
        return list(dict.fromkeys(source.name for source in self.sources))

    @property
    def name(self) -> str:
        """The names, for messages."""
        return " + ".join(map(_label, self.sources))

    @property
    def split(self) -> str | None:
        """The part, if there are two."""
        return None if self.test_size is None else self.part

    @property
    def is_local(self) -> bool:
        """Whether all rows are on this machine."""
        return all(source.is_local for source in self.sources)

    def load(self) -> Dataset:
        """Load, validate and mix the rows.

        Columns that are not a dual CoT's are left out, and an optional column that a dataset lacks is None in its rows.
        Ids that two datasets share get the place of their dataset in front: "2/id".

        Raises:
            InputError: What is wrong with each dataset, or between them.
        """
        datasets: list[Dataset] = []
        problems: list[str] = []
        for source in self.sources:
            with collect_problems(problems):
                datasets.append(with_prompts(source.load()))
        raise_problems(problems)
        self._check_kinds(datasets)
        for source, dataset in zip(self.sources, datasets, strict=True):
            self._name_unknown(source, dataset)
        counts = self._counts([len(dataset) for dataset in datasets])
        datasets = [dataset.select(range(count)) for dataset, count in zip(datasets, counts, strict=True)]
        return self._part_of(self._joined([_own_columns(dataset) for dataset in datasets]))

    def _check_kinds(self, datasets: Sequence[Dataset]) -> None:
        kinds = ["conversational" if is_conversational(dataset[0]) else "plain" for dataset in datasets]
        raise_problems(
            f"{_label(source)}, prompt: is {kind}, but {_label(self.sources[0])} is {kinds[0]}; convert one of them, "
            "since all rows of a run must be plain or all conversational"
            for source, kind in zip(self.sources, kinds, strict=True)
            if kind != kinds[0]
        )

    def _name_unknown(self, source: DatasetSource, dataset: Dataset) -> None:
        from accelerate import PartialState
        from transformers.utils import logging

        if unknown_columns(dataset.column_names) and PartialState().is_main_process:
            logging.get_logger(__name__).warning_once(f"{_label(source)}: {unused_columns(dataset.column_names)}")

    def _counts(self, sizes: Sequence[int]) -> Sequence[int]:
        """Return how many rows of each dataset are used; TRL's rule."""
        if self.fractions is None:
            return sizes
        weights = [fraction / sum(self.fractions) for fraction in self.fractions]
        total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        counts = [round(weight * total) for weight in weights]
        raise_problems(
            f"{_label(source)}: `fraction: {fraction:g}` leaves none of its rows in a mixture of {sum(counts)}; "
            "raise it, or remove the dataset"
            for source, fraction, count in zip(self.sources, self.fractions, counts, strict=True)
            if not count
        )
        return counts

    def _joined(self, tables: list[pa.Table]) -> Dataset:
        import pyarrow as pa

        tables, problems = _with_common_types(self._with_lists_of_rejected(tables)), []
        columns = [
            name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if any(name in t.column_names for t in tables)
        ]
        for column in columns:
            schemas = [table.select([column]).schema if column in table.column_names else None for table in tables]
            first = next(place for place, schema in enumerate(schemas) if schema is not None)
            for place, schema in enumerate(schemas):
                try:
                    pa.unify_schemas([schemas[first], schema or schemas[first]], promote_options="permissive")
                except pa.ArrowException:
                    problems.append(
                        f"{_label(self.sources[place])}, {column}: holds {_described(schema, column)}, but "
                        f"{_label(self.sources[first])} has {_described(schemas[first], column)}; write both alike"
                    )
        raise_problems(problems)
        table = pa.concat_tables(_with_unique_ids(tables), promote_options="permissive")
        return dataset_of(table.select(columns))

    def _with_lists_of_rejected(self, tables: list[pa.Table]) -> list[pa.Table]:
        """Return tables that all have lists of wrong chains, if one has."""
        depths = [_depth(table) for table in tables]
        deepest = max(1 if depth is None else depth for depth in depths)
        return [
            table if depth in (None, deepest) else _with_list_of_rejected(table, _label(source))
            for source, table, depth in zip(self.sources, tables, depths, strict=True)
        ]

    def _part_of(self, dataset: Dataset) -> Dataset:
        if self.test_size is None:
            return dataset
        held_out = _held_out(dataset, self.test_size)
        rows = sorted(held_out if self.part == "test" else set(range(len(dataset))) - held_out)
        if not held_out or len(held_out) == len(dataset):
            left = "train on" if held_out else "evaluate on"
            raise InputError(
                f"`test_split_size: {self.test_size:g}` leaves no row of {len(dataset)} to {left} (rows with the same "
                "prompt stay together)"
            )
        return dataset.select(rows)


def _label(source: DatasetSource) -> str:
    details = ", ".join(filter(None, (source.config, source.split if source.split != "train" else None)))
    return f"{source.name} ({details})" if details else source.name


def _own_columns(dataset: Dataset) -> pa.Table:
    """Return the columns of a dual CoT as an Arrow table, without the metadata of `datasets`."""
    unknown = unknown_columns(dataset.column_names)
    return dataset.remove_columns(unknown).with_format("arrow")[:].replace_schema_metadata(None)


def _depth(table: pa.Table) -> int | None:
    """Return how many lists are around the texts or messages of `rejected`; None where all of its lists are empty."""
    import pyarrow as pa

    kind, depth = table.schema.field("rejected").type, 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, depth = kind.value_type, depth + 1
    return None if pa.types.is_null(kind) else depth


def _with_list_of_rejected(table: pa.Table, source: str) -> pa.Table:
    """Return a table whose wrong chains, and their spans, are in lists of one; a correct chain alone stays so."""
    import pyarrow as pa

    alone = [rejected == [] for rejected in table["rejected"].to_pylist()]
    for column in ("rejected", *(name for name in SPAN_COLUMNS if name in table.column_names)):
        kind = table.schema.field(column).type
        values = [
            value if value is None or one_alone else [value]
            for value, one_alone in zip(table[column].to_pylist(), alone, strict=True)
        ]
        try:
            array = pa.array(values, pa.list_(kind))
        except pa.ArrowException as error:
            raise InputError(
                f"{source}, {column}: spans of correct chains alone cannot be mixed with rows of several wrong chains"
            ) from error
        table = table.set_column(table.column_names.index(column), column, array)
    return table


def _with_common_types(tables: list[pa.Table]) -> list[pa.Table]:
    """Return tables whose messages, tools and template options have one type, which is JSON where their fields differ.

    A type with the fields of all would give each tool the parameters of all tools, as None.
    """
    from datasets import Dataset

    for column in (*REQUIRED_COLUMNS, *TEMPLATE_COLUMNS):
        having = [place for place, table in enumerate(tables) if column in table.column_names]
        if len({str(tables[place].schema.field(column).type) for place in having}) < 2:
            continue
        parts = [Dataset(tables[place].select([column])) for place in having]
        array = array_of(column, [value for part in parts for value in part[column][:]])
        for place in having:
            table = tables[place]
            own, array = array[: len(table)], array[len(table) :]
            tables[place] = table.set_column(table.column_names.index(column), column, own)
    return tables


def _with_unique_ids(tables: list[pa.Table]) -> list[pa.Table]:
    """Return tables whose ids begin with the place of their table, from 1, if two tables share one."""
    import pyarrow as pa

    ids = [table["id"].to_pylist() if "id" in table.column_names else [] for table in tables]
    shared = Counter(one for own in ids for one in {*own} - {None})
    if max(shared.values(), default=1) == 1:
        return tables
    renamed = []
    for place, (table, own) in enumerate(zip(tables, ids, strict=True), 1):
        if own:
            column = pa.array([None if one is None else f"{place}/{one}" for one in own], pa.string())
            table = table.set_column(table.column_names.index("id"), "id", column)
        renamed.append(table)
    return renamed


def _described(schema: pa.Schema, column: str) -> str:
    kind = str(schema.field(column).type)
    return kind if len(kind) <= 80 else f"{kind[:77]}..."


def _held_out(dataset: Dataset, size: float) -> set[int]:
    """Return the rows that are held out, at most `size` of them: whole prompts, in the order of their hashes.

    They do not depend on a seed, so that no stage trains on the rows that another one evaluates on.
    """
    rows_by_prompt = defaultdict(list)
    for number, row in enumerate(rows_of(dataset.select_columns(["prompt"]))):
        rows_by_prompt[json.dumps(row["prompt"])].append(number)
    wanted = math.ceil(size * len(dataset)) if size < 1 else int(size)
    held_out: set[int] = set()
    for prompt in sorted(rows_by_prompt, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if len(held_out) + len(rows_by_prompt[prompt]) <= wanted:
            held_out.update(rows_by_prompt[prompt])
    return held_out
