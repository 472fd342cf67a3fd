"""Validation of dual CoTs: every error of every row, with row and column, reported at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError, collect_problems, raise_problems, show
from edit_trl.common.json_text import read_json
from edit_trl.common.options import nearest
from edit_trl.common.thoughts import FIELDS, thoughts_of
from edit_trl.data.chains import turn_text
from edit_trl.data.row import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPAN_COLUMNS,
    TEXT_COLUMNS,
    chain_text,
    has_several_rejected,
    is_chosen_alone,
    pairs_of,
    refuse_splits,
    rows_of,
    with_prompt,
)

if TYPE_CHECKING:
    from datasets import Dataset

_ROLES = ("system", "developer", "user", "assistant", "tool")

# Names that other datasets give our columns. They are only suggested, never mapped silently.
_OTHER_NAMES = {
    "prompt": ("question", "problem", "instruction", "input", "query"),
    "chosen": (
        *("correct", "positive", "right", "correct_cot", "chosen_cot", "correct_chain"),
        *("positive_cot", "correct_response", "chosen_response"),
    ),
    "rejected": (
        *("incorrect", "wrong", "negative", "incorrect_cot", "wrong_cot", "rejected_cot"),
        *("wrong_chain", "negative_cot", "incorrect_response", "rejected_response"),
    ),
}


def validate_dual_cots(dataset: Dataset, source: str = "dataset", max_problems: int = 20) -> None:
    """Check every row and report all errors at once.

    Args:
        dataset: The rows.
        source: Name of the dataset in messages, such as its file.
        max_problems: Maximum number of errors that are listed; the others are counted.

    Raises:
        InputError: The errors, each with its source, row (from 1) and column.
    """
    refuse_splits(dataset)
    if len(dataset) == 0:
        raise InputError(f"{source}: there are no rows")
    own = [column for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if column in dataset.column_names]
    rows = rows_of(dataset.select_columns(own))
    raise_problems(find_row_errors(rows, dataset.column_names, source), source, max_problems)


def check_rows(rows: Sequence[Any], where: str, columns: Sequence[str]) -> None:
    """Check rows that are given in memory: mappings, whose values in some columns can be written to a file.

    Args:
        rows: The rows.
        where: The beginning of messages, such as "dataset, "; it may be empty.
        columns: The columns that are written.

    Raises:
        InputError: Names each row and column.
    """
    errors = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            errors.append(f"{where}row {number}: must be a mapping with named columns, got {show(row)}")
            continue
        for column in columns:
            with collect_problems(errors):
                _check_json(row.get(column), f"{where}row {number}, {column}")
    raise_problems(errors)


def _check_json(value: Any, where: str) -> None:
    if value is None or (isinstance(value, str) and value.isascii()):
        return
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be written to a file: {error}") from error
    read_json(text, where)


def find_row_errors(rows: Iterable[Mapping[str, Any]], columns: list[str], source: str) -> Iterator[str]:
    """Yield the errors of all rows, each with source, row and column."""
    if "prompt" not in columns and {"chosen", "rejected"} <= {*columns}:
        rows = map(with_prompt, rows)
        first = next(rows, {})
        rows, columns = (
            itertools.chain([first] if first else [], rows),
            [*columns, *(["prompt"] if "prompt" in first else [])],
        )
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        yield _missing_columns(missing, columns, source)
    first_kind = None
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        where = f"{source}, row {number}"
        errors = list(_row_errors(row, missing))
        if not errors and not missing:
            first_kind = first_kind or _kind(row["prompt"])
            if _kind(row["prompt"]) != first_kind:
                errors = [("prompt", f"is {_kind(row['prompt'])} while the first row is {first_kind}")]
        yield from (f"{where}, {column}: {error}" for column, error in errors)
        if isinstance(row.get("id"), str):
            earlier = numbers.setdefault(row["id"], number)
            if earlier != number:
                yield f"{where}, id: {show(row['id'])} is already the id of row {earlier}"


def _missing_columns(missing: list[str], columns: list[str], source: str) -> str:
    error = f"{source}: no column {', '.join(missing)} (columns: {', '.join(columns) or 'none'})"
    by_lower_name = {column.lower(): column for column in columns}
    mapping = {}
    for ours in missing:
        theirs = next((name for name in _OTHER_NAMES[ours] if name in by_lower_name), None)
        if theirs is not None:
            mapping[by_lower_name[theirs]] = ours
    if not mapping:
        return f"{error}; name the columns that hold them with column_mapping (theirs -> ours)"
    return f"{error}; to use these: --column_mapping '{json.dumps(mapping, ensure_ascii=False)}'"


def checked_mapping(
    mapping: Mapping[str, str],
    columns: list[str],
    source: str,
    ours: Sequence[str] = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS),
) -> dict[str, str]:
    """Check a column mapping (theirs -> ours): its names exist, and no two columns get the same name."""
    if not isinstance(mapping, Mapping):
        raise InputError(f'column_mapping must be {{"theirs": "ours"}}, got {show(mapping)}')
    errors = []
    for old, new in mapping.items():
        where = f"{source}: column_mapping {json.dumps({old: new}, ensure_ascii=False)}"
        if old not in columns:
            hint = nearest(str(old), columns)
            if new in columns and old in ours:
                hint = f"; it reads theirs -> ours: {json.dumps({new: old}, ensure_ascii=False)}"
            errors.append(f"{where}: no column {old!r} (columns: {', '.join(columns)}){hint}")
        elif new not in ours:
            errors.append(f"{where}: {new!r} is none of {', '.join(ours)}{nearest(str(new), ours)}")
        elif [mapping.get(column, column) for column in columns].count(new) > 1:
            errors.append(f"{where}: more than one column would be called {new!r}")
    raise_problems(errors, source)
    return dict(mapping)


def _kind(value: Any) -> str:
    return "conversational" if isinstance(value, list) else "plain"


def _row_errors(row: Mapping[str, Any], missing: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the (column, error) pairs of a row, except for columns that are missing in all rows."""
    if is_chosen_alone(row):
        yield from _pair_errors(row, [*missing, "rejected"])
    elif not has_several_rejected(row):
        yield from _pair_errors(row, missing)
    elif length_errors := list(_span_list_errors(row)):
        yield from length_errors
    else:
        for number, pair in enumerate(pairs_of(row)):
            for column, error in _pair_errors(pair, missing):
                differs = column == "rejected" or column in SPAN_COLUMNS
                if differs or number == 0:  # the other columns are the same in all pairs of the row
                    yield f"{column}[{number}]" if differs else column, error
    for column in TEXT_COLUMNS:
        if not isinstance(row.get(column), str | None):
            yield column, f"must be text, got {show(row[column])}"
    yield from template_errors(row)
    mistake = row.get("mistake")
    if mistake is not None and not (isinstance(mistake, list) and all(isinstance(kind, str) for kind in mistake)):
        yield "mistake", f'must be a list of texts, such as ["arithmetic"], got {show(mistake)}'


def template_errors(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the (column, error) pairs of what a row gives its chat template."""
    tools, values = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = read_json(tools, "the text")
        except InputError as error:
            yield "tools", f"is text that is not JSON: {error}"
            return
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        yield "tools", f"must be a list of JSON schemas, or that as JSON text, got {show(tools)}"
    if values is not None and not isinstance(values, dict):
        yield "chat_template_kwargs", f'must be a mapping, such as {{"enable_thinking": false}}, got {show(values)}'
    messages = [] if tools else [message for column in REQUIRED_COLUMNS for message in _messages_in(row.get(column))]
    if any(message.get("role") == "tool" or message.get("tool_calls") for message in messages):
        yield "tools", "is missing or empty, but the messages call tools: give the JSON schemas of the tools"


def _messages_in(value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, dict):
        return [value]
    return [message for item in value for message in _messages_in(item)] if isinstance(value, list) else []


def _span_list_errors(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    chains = len(row["rejected"])
    for column in SPAN_COLUMNS:
        spans = row.get(column)
        if spans is not None and not (isinstance(spans, list) and len(spans) == chains):
            yield column, f"must hold spans for each of the {chains} wrong chains, got {show(spans)}"


def _pair_errors(row: Mapping[str, Any], missing: list[str]) -> Iterator[tuple[str, str]]:
    turns: dict[str, Any] = {column: row.get(column) for column in REQUIRED_COLUMNS if column not in missing}
    errors = {column: _turns_error(column, value) for column, value in turns.items()}
    yield from ((column, error) for column, error in errors.items() if error)
    kinds = {column: _kind(value) for column, value in turns.items() if not errors[column]}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{column} is {kind}" for column, kind in kinds.items())
        yield "prompt", f"all three must be plain or all conversational, but {listed}"
    chains = {c: chain_text(turns[c]) for c in ("chosen", "rejected") if c in kinds}
    if len(chains) == 2 and chains["chosen"].strip() == chains["rejected"].strip():
        yield "rejected", f"equals chosen: {show(chains['rejected'])}"
    prefix = row.get("prefix")
    if isinstance(prefix, str) and prefix:
        messages = [message for column in ("chosen", "rejected") for message in _messages_in(row.get(column))]
        if any(map(thoughts_of, messages)):
            yield "prefix", "cannot stand before thoughts in a field of their own; write them in the content"
        if ended := [name for name, chain in chains.items() if chain.startswith(prefix) and len(chain) == len(prefix)]:
            yield "prefix", f"is the whole of {ended[0]}, so that nothing is left to learn: {show(prefix)}"
        begun = [name for name, chain in chains.items() if chain.startswith(prefix)]
        if len(begun) == 1 and len(chains) == 2:
            other = "rejected" if begun == ["chosen"] else "chosen"
            yield (
                "prefix",
                f"{begun[0]} begins with {show(prefix)} and {other} does not: it must be the beginning of both "
                "chains, or stand before both",
            )
    for column, chain in SPAN_COLUMNS.items():
        if row.get(column) is not None and chain in chains:
            error = _spans_error(row[column], len(chains[chain]))
            if error:
                yield column, error


def _turns_error(column: str, value: Any) -> str | None:
    """Return what is wrong with a prompt or a chain, plain or conversational; None if nothing is."""
    if value is None:
        return "is missing"
    if isinstance(value, str):
        return None if value.strip() else f"is empty: {show(value)}"
    if not isinstance(value, list):
        return f"must be text or a list of messages, got {show(value)}"
    for message in value:
        if error := message_error(message):
            return error
    roles = [message["role"] for message in value]
    if column == "prompt" and roles[-1:] not in (["user"], ["tool"]):
        hint = "; a beginning of the answer goes into the column `prefix`" if roles[-1:] == ["assistant"] else ""
        return f"must end in a user turn or the result of a tool, got the roles {roles}{hint}"
    if column != "prompt" and (roles[:1], roles[-1:]) != (["assistant"], ["assistant"]):
        return f"must begin and end with an assistant message (what precedes it is the prompt), got roles {roles}"
    if column == "prompt":
        return None if (value[-1]["content"] or "").strip() else "its last message is empty"
    return None if all(turn_text(m).strip() for m in value if m["role"] == "assistant") else "a message is empty"


def message_error(message: Any) -> str | None:
    """Return what is wrong with a message; None if nothing is."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        return f'a message must be {{"role": ..., "content": text}}, got {show(message)}'
    if message.get("role") not in _ROLES:
        return f"role must be one of {', '.join(_ROLES)}, got {show(message.get('role'))}"
    calls = message.get("tool_calls")
    is_call = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    if calls is not None and not is_call:
        return f"`tool_calls` must be a list of calls, got {show(calls)}"
    for name in FIELDS:
        if not isinstance(message.get(name), str | None):
            return f"`{name}` must be text, got {show(message[name])}"
    if message.get("content") is None and not (message["role"] == "assistant" and (calls or thoughts_of(message))):
        return f'a message must be {{"role": ..., "content": text}}, got {show(message)}'
    return None


def _spans_error(spans: Any, length: int) -> str | None:
    """Return what is wrong with [start, end) offsets into a chain of `length` characters; None if nothing is."""
    if not isinstance(spans, list):
        return f"must be a list of [start, end], got {show(spans)}"
    previous = [0, 0]
    for span in spans:
        # type(), not isinstance(): True and False are no offsets.
        if not isinstance(span, list) or len(span) != 2 or not type(span[0]) is type(span[1]) is int:
            return f"a span must be two integers [start, end], got {show(span)}"
        start, end = span
        if start >= end:
            return f"{span} is empty: the end must lie beyond the start"
        if start < 0 or end > length:
            return f"{span} is out of range: the chain has {length} characters"
        if start < previous[0]:
            return f"{span} comes after {previous}: sort the spans"
        if start < previous[1]:
            return f"{span} overlaps {previous}"
        previous = span
    return None
