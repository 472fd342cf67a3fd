"""Rewrites a row: its correct chain alone, one of its wrong chains alone, a marked prompt, an answer task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edit_trl.common.steps import step_start
from edit_trl.data.answers import extract_answer, infer_answer_type
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
    return renamed(task(row, marker, label), "answer") | {"chosen_key_spans": [[0, len(label)]]}


def task(row: Row, marker: str, chain: str) -> Row:
    """Return the row with a marker after its prompt and another chain."""

    def ask(text: str) -> str:
        question = text.rstrip()
        # What separates the prompt from the chain stays at the end.
        return f"{question}\n{marker}{text[len(question) :]}"

    chosen = chain if isinstance(row["chosen"], str) else [{**row["chosen"][-1], "content": chain}]
    return row | {"prompt": with_question(row["prompt"], ask), "chosen": chosen}


def marked(row: Row, marker: str) -> Row:
    """Return the row with a marker before its prompt."""
    return row | {"prompt": with_question(row["prompt"], lambda text: f"{marker} {text}")}


def renamed(row: Row, suffix: str) -> Row:
    """Return the row with a suffix on its id, since ids are unique in a dataset."""
    return row if row.get("id") is None else row | {"id": f"{row['id']}/{suffix}"}


def without_rejected(row: Row) -> Row:
    return {**row, "rejected": []} | dict.fromkeys(SPAN_COLUMNS)


def with_question(prompt: Any, change: Callable[[str], str]) -> Any:
    """Return a prompt, plain or conversational, whose last text is changed."""
    if isinstance(prompt, str):
        return change(prompt)
    return [*prompt[:-1], {**prompt[-1], "content": change(prompt[-1]["content"])}]


def _prompt_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\0".join(turn["content"] for turn in prompt)
