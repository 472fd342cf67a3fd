"""Rewrites a row: its correct chain alone, one of its wrong chains alone, a marked prompt, an answer task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.steps import step_start
from edit_trl.data.answers import extract_answer, infer_answer_type
from edit_trl.data.chains import turn_text
from edit_trl.data.row import SPAN_COLUMNS, chain_text, has_several_rejected, is_chosen_alone, pairs_of

Row = dict[str, Any]


def answer_statement(row: Mapping[str, Any], chain: str) -> tuple[int, int] | None:
    """Find where a chain states its final answer.

    Args:
        row: The dual CoT; its `answer` decides the type of answer to look for.
        chain: One of its chains.

    Returns:
        The first character of the statement ("Therefore, the answer is 3.") and that of the answer in it;
        None where the chain states no answer.
    """
    known_answer = row.get("answer")
    answer = extract_answer(chain, infer_answer_type(known_answer) if known_answer else "text")
    return None if answer is None else (step_start(chain, answer.start), answer.start)


def chosen_alone(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield each correct chain of a question once, without its wrong chains."""
    seen = set()
    for row in rows:
        key = _prompt_text(row["prompt"]), chain_text(row["chosen"])
        if key not in seen:
            seen.add(key)
            yield without_rejected(row)


def rejected_alone(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield each wrong chain of a question once, in the column of the correct one."""
    seen = set()
    for row in rows:
        if is_chosen_alone(row):
            continue
        for pair in pairs_of(row):
            key = _prompt_text(row["prompt"]), chain_text(pair["rejected"])
            if key not in seen:
                seen.add(key)
                alone = without_rejected(row) | {"chosen": pair["rejected"]}
                yield renamed(alone, f"wrong {len(seen)}") if has_several_rejected(row) else alone


def answer_task(row: Row, marker: str) -> Row | None:
    """Return the row that asks for the answer only, all of it key; None where the chain states no answer."""
    chain = chain_text(row["chosen"])
    statement = answer_statement(row, chain)
    if statement is None:
        return None
    label = chain[statement[0] :].strip()
    # A `prefix` begins the chain, not its answer.
    without_prefix = {"prefix": None} if row.get("prefix") else {}
    return renamed(task(row, marker, label), "answer") | {"chosen_key_spans": [[0, len(label)]]} | without_prefix


def task(row: Row, marker: str, chain: str | None = None) -> Row:
    """Return the row with a marker after its prompt, and with another chain, if one is given, in a single turn."""

    def ask(text: str) -> str:
        question = text.rstrip()
        # What separates the prompt from the chain stays at the end.
        return f"{question}\n{marker}{text[len(question) :]}"

    asked = row | {"prompt": with_question(row["prompt"], ask)}
    if chain is None:
        return asked
    return asked | {"chosen": chain if isinstance(row["chosen"], str) else [{"role": "assistant", "content": chain}]}


def refuse_several_turns(row: Mapping[str, Any], view: str) -> None:
    """Raise an InputError if a correct chain has several turns, which a view that rewrites it would lose."""
    if not isinstance(row["chosen"], str) and len(row["chosen"]) > 1:
        name = row.get("id") or _prompt_text(row["prompt"])[:40]
        raise InputError(
            f"the view {view!r} rewrites the correct chain, and that of {name!r} has {len(row['chosen'])} turns; use "
            "the view 'mt_cot', 'check' or 'chosen', or leave such rows out"
        )


def marked(row: Row, marker: str) -> Row:
    """Return the row with a marker before its prompt."""
    return row | {"prompt": with_question(row["prompt"], lambda text: f"{marker} {text}")}


def renamed(row: Row, suffix: str) -> Row:
    """Return the row with a suffix on its id, since ids are unique in a dataset."""
    return row if row.get("id") is None else row | {"id": f"{row['id']}/{suffix}"}


def without_rejected(row: Row) -> Row:
    return {**row, "rejected": []} | dict.fromkeys(SPAN_COLUMNS)


def with_question(prompt: Any, change: Callable[[str], str]) -> Any:
    """Return a prompt, plain or conversational, whose last text of the user is changed."""
    if isinstance(prompt, str):
        return change(prompt)
    place = max((place for place, turn in enumerate(prompt) if turn["role"] == "user"), default=len(prompt) - 1)
    question = {**prompt[place], "content": change(prompt[place]["content"])}
    return [*prompt[:place], question, *prompt[place + 1 :]]


def _prompt_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\0".join(map(turn_text, prompt))
