"""The row: a dual CoT and its columns.

A dual CoT pairs a correct chain of thought with a similar wrong one. Its columns are those of TRL's
preference format, so any preference trainer runs on the same file:

    {"prompt": "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts?",
     "chosen": "White: 2 / 2 = 1. In total 2 + 1 = 3. Therefore, the answer is 3.",
     "rejected": "White: 2 / 2 = 1. In total 2 * 1 = 2. Therefore, the answer is 2.",
     "answer": "3", "chosen_key_spans": [[29, 30], [35, 36], [63, 64]], ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from edit_trl.common.errors import InputError, show

if TYPE_CHECKING:
    from datasets import Dataset


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class DualCoT(TypedDict):
    """A row. Its prompt, chosen and rejected are either all text or all conversational.

    In a conversational row the prompt is a list of messages that ends in a user turn, and each chain is a
    list of one assistant message. Spans are [start, end) character offsets into the chain's text (see
    `chain_text`); they are sorted and do not overlap. An optional column may be missing or None.

    `rejected` may be a list of wrong chains, each of which makes a pair with the correct chain; span columns
    then hold one list of spans per wrong chain. An empty list means a correct chain alone, such as for the
    warm-up. Its `chosen_key_spans` mark the part that gets `chosen_key_weight` with `key_step_method: spans`.
    """

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message] | list[str] | list[list[Message]]
    answer: NotRequired[str | None]
    task: NotRequired[str | None]
    mistake: NotRequired[list[str] | None]
    source: NotRequired[str | None]
    id: NotRequired[str | None]
    chosen_key_spans: NotRequired[list[list[int]] | list[list[list[int]]] | None]
    rejected_key_spans: NotRequired[list[list[int]] | list[list[list[int]]] | None]


# Errors of single values: text that is not UTF-8, times that Python cannot represent, unknown time zones.
_UNREADABLE = (ValueError, ArithmeticError, LookupError)

REQUIRED_COLUMNS = ("prompt", "chosen", "rejected")
TEXT_COLUMNS = ("answer", "task", "source", "id")
SPAN_COLUMNS = {"chosen_key_spans": "chosen", "rejected_key_spans": "rejected"}
OPTIONAL_COLUMNS = ("answer", "task", "mistake", "source", "id", *SPAN_COLUMNS)


def column_types(conversational: bool) -> dict[str, Any]:
    """Return the type of every column, as a feature of `datasets`, for rows with one wrong chain each."""
    from datasets import List, Value

    text, spans = Value("string"), List(List(Value("int64")))
    chain = List({"role": text, "content": text}) if conversational else text
    types = dict.fromkeys((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS), text)
    return types | dict.fromkeys(REQUIRED_COLUMNS, chain) | dict.fromkeys(SPAN_COLUMNS, spans) | {"mistake": List(text)}


def is_conversational(row: Mapping[str, Any]) -> bool:
    """Return whether a valid row holds lists of messages rather than plain text."""
    return isinstance(row["prompt"], list)


def has_several_rejected(row: Mapping[str, Any]) -> bool:
    """Return whether a row's `rejected` is a list of chains rather than one chain."""
    rejected = row.get("rejected")
    return isinstance(rejected, list) and bool(rejected) and not isinstance(rejected[0], dict)


def is_chosen_alone(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a correct chain and no wrong chain."""
    return row.get("rejected") == []


def pairs_of(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the pairs of a valid row: the row itself, or one pair per wrong chain.

    A correct chain alone is paired with itself. The two do not differ, so no term of the loss that compares
    chains applies. Its `chosen_key_spans` stay: they mark the part that gets `chosen_key_weight`.
    """
    if is_chosen_alone(row):
        yield {**row, "rejected": row["chosen"], "rejected_key_spans": None}
        return
    if not has_several_rejected(row):
        yield row
        return
    for number, rejected in enumerate(row["rejected"]):
        spans = {column: row[column][number] for column in SPAN_COLUMNS if row.get(column) is not None}
        yield {**row, "rejected": rejected, **spans}


def chain_text(value: str | list[Message]) -> str:
    """Return the text of a chain: the plain string, or the content of the last assistant message.

    Raises:
        InputError: A conversational chain without an assistant message.
    """
    if isinstance(value, str):
        return value
    for message in reversed(value):
        if message["role"] == "assistant":
            return message["content"]
    raise InputError(f"a chain without an assistant message: {show(value)}")


def rows_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset, read in batches: reading an Arrow table row by row is many times slower.

    Raises:
        InputError: A value cannot be read, such as a text that is not UTF-8; names its row and column.
    """
    dataset = dataset.with_format(None)
    batches, count = dataset.iter(batch_size=1000), 0
    while True:
        try:
            batch = next(batches, None)
        except _UNREADABLE as error:
            raise InputError(unreadable_cell(dataset, count) or f"rows cannot be read: {error}") from error
        if batch is None:
            return
        for values in zip(*batch.values(), strict=True):
            count += 1
            yield dict(zip(batch, values, strict=True))


def unreadable_cell(dataset: Dataset, first: int = 0) -> str | None:
    """Return the row, the column and the error of the first value that cannot be read, from row `first` (from 0)."""
    dataset = dataset.with_format(None)
    columns = {column: dataset.select_columns([column]) for column in dataset.column_names}
    for number in range(first, len(dataset)):
        for column, values in columns.items():
            try:
                values[number]
            except _UNREADABLE as error:
                return f"row {number + 1}, {column}: cannot be read: {error}"
    return None
