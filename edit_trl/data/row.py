"""The row: a dual CoT and its columns.

A dual CoT pairs a correct chain of thought with a similar wrong one. Its columns are those of TRL's
preference format, so any preference trainer runs on the same file:

    {"prompt": "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts?",
     "chosen": "White: 2 / 2 = 1. In total 2 + 1 = 3. Therefore, the answer is 3.",
     "rejected": "White: 2 / 2 = 1. In total 2 * 1 = 2. Therefore, the answer is 2.",
     "answer": "3", "chosen_key_spans": [[29, 30], [35, 36], [63, 64]], ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from edit_trl.common.errors import InputError, show
from edit_trl.data.chains import messages_text

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


class Message(TypedDict):
    """One turn of a conversation; it may have more fields, which a chat template may know.

    The thoughts of an assistant stand in a field of `edit_trl.common.thoughts.FIELDS`, or in its content between tags.
    A turn that only calls tools may have no content.
    """

    role: str
    content: str | None
    reasoning_content: NotRequired[str | None]
    tool_calls: NotRequired[list[dict[str, Any]] | None]


class DualCoT(TypedDict):
    """A row. Its prompt, chosen and rejected are either all text or all conversational.

    In a conversational row the prompt is a list of messages that ends in a user turn (or in the result of a tool), and
    each chain is a list of messages that begins and ends with the assistant; between them, tools or users may answer.
    Spans are [start, end) character offsets into the chain's text (see `chain_text`); they are sorted and do not
    overlap. An optional column may be missing or None.

    `prefix` is a beginning of the answer that both chains continue, or that stands at the beginning of both. It is part
    of what the student is given. `tools` are the JSON schemas of tools, as a list or as JSON text, and
    `chat_template_kwargs` are values of the chat template's variables, such as {"enable_thinking": False}. Both are for
    conversational rows, as in TRL. `critique` says what is wrong with the wrong chain; the views `critique` and `lema`
    train on it.

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
    prefix: NotRequired[str | None]
    critique: NotRequired[str | None]
    tools: NotRequired[list[dict[str, Any]] | str | None]
    chat_template_kwargs: NotRequired[dict[str, Any] | None]
    chosen_key_spans: NotRequired[list[list[int]] | list[list[list[int]]] | None]
    rejected_key_spans: NotRequired[list[list[int]] | list[list[list[int]]] | None]


# Errors of single values: text that is not UTF-8, times that Python cannot represent, unknown time zones.
_UNREADABLE = (ValueError, ArithmeticError, LookupError)

REQUIRED_COLUMNS = ("prompt", "chosen", "rejected")
TEXT_COLUMNS = ("answer", "task", "source", "id", "prefix", "critique")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
SPAN_COLUMNS = {"chosen_key_spans": "chosen", "rejected_key_spans": "rejected"}
GENERATED_COLUMNS = ("answer", "task", "mistake", "source", "id", *SPAN_COLUMNS)
OPTIONAL_COLUMNS = (*GENERATED_COLUMNS, "prefix", "critique", *TEMPLATE_COLUMNS)


def column_types(conversational: bool, thoughts_field: str | None = None) -> dict[str, Any]:
    """Return the type of every column of generated rows, as a feature of `datasets`, with one wrong chain each.

    Args:
        conversational: Whether prompts and chains are lists of messages.
        thoughts_field: The field of a message that holds its thoughts, if they are not part of its content.
    """
    from datasets import List, Value

    text, spans = Value("string"), List(List(Value("int64")))
    message = dict.fromkeys(filter(None, ("role", "content", thoughts_field)), text)
    types = dict.fromkeys((*REQUIRED_COLUMNS, *GENERATED_COLUMNS), text)
    types |= dict.fromkeys(REQUIRED_COLUMNS, List(message) if conversational else text)
    return types | dict.fromkeys(SPAN_COLUMNS, spans) | {"mistake": List(text)}


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
    """Return the text of a chain: the plain string, or all that the assistant thinks, says and calls in its turns.

    Raises:
        InputError: A conversational chain without an assistant message.
    """
    if isinstance(value, str):
        return value
    if not any(message["role"] == "assistant" for message in value):
        raise InputError(f"a chain without an assistant message: {show(value)}")
    return messages_text(value)


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row says to its chat template: the options `tools` and `chat_template_kwargs` of `render`."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools or None, "chat_template_kwargs": row.get("chat_template_kwargs")}


def template_values(given: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the values of a chat template's variables: those of a run, and a row's own ones, which win."""
    own = {name: value for name, value in (own or {}).items() if value is not None}
    return {**(given or {}), **own} or None


def with_template_values(row: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a row with `template_values` in its `chat_template_kwargs`."""
    values = template_values(given, row.get("chat_template_kwargs"))
    return {**row, "chat_template_kwargs": values} if given else row


def with_prompt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row with a prompt: where whole conversations have none beside them, it is the turns that they share.

    As TRL's `extract_prompt`, for conversations. The last turn of each is its answer in any case.
    """
    if row.get("prompt") is not None:
        return row
    chosen, rejected = row.get("chosen"), row.get("rejected")
    several = isinstance(rejected, list) and (has_several_rejected(row) or not rejected)
    chains: list[Any] = [chosen, *rejected] if isinstance(rejected, list) and several else [chosen, rejected]
    if not all(map(_is_conversation, chains)):
        return row
    turns = zip(*(chain[:-1] for chain in chains), strict=False)
    count = len(list(takewhile(lambda turn: all(other == turn[0] for other in turn), turns)))
    cut = [chain[count:] for chain in chains]
    return {**row, "prompt": chains[0][:count], "chosen": cut[0], "rejected": cut[1:] if several else cut[1]}


def with_prompts(dataset: Dataset) -> Dataset:
    """Return a dataset with a prompt in each row; see `with_prompt`."""
    refuse_splits(dataset)
    columns = dataset.column_names
    if "prompt" in columns or not {"chosen", "rejected"} <= {*columns} or not len(dataset):
        return dataset
    if "prompt" not in with_prompt(next(rows_of(dataset.select([0])))):
        return dataset
    return dataset.with_format(None).map(with_prompt, desc="Extracting prompts")


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def refuse_splits(dataset: Any, name: str = "dataset") -> None:
    """Refuse a dict of datasets, such as `datasets.load_dataset` returns without a split.

    Raises:
        InputError: It is one; says how to choose a split.
    """
    if isinstance(dataset, dict):  # also a DatasetDict
        first = "train" if "train" in dataset else next(iter(dataset), "train")
        raise InputError(
            f"`{name}` must be one datasets.Dataset, got a {type(dataset).__name__} of "
            f"{', '.join(map(show, dataset)) or 'nothing'}; choose a split, such as `{name}[{first!r}]`"
        )


def rows_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset, read in batches: reading an Arrow table row by row is many times slower.

    Raises:
        InputError: A value cannot be read, such as a text that is not UTF-8; names its row and column.
    """
    refuse_splits(dataset)
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


def rows_of_table(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table whose values can all be read."""
    for batch in table.to_batches(max_chunksize=1000):
        columns = batch.to_pydict()
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


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
