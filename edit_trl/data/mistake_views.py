"""Views with a wrong chain in the prompt: the student says what is wrong with it, or whether it is right.

| view       | rows                                                                                             |
|------------|--------------------------------------------------------------------------------------------------|
| `critique` | question and wrong chain -> what is wrong with it, then the correct chain (arXiv 2501.17703)      |
| `lema`     | the rows of `critique` beside the correct chains alone (LEMA, arXiv 2310.20689)                   |
| `check`    | question and chain -> "Yes" or "No", for both chains of each pair (arXiv 2408.15240)              |

What is wrong with a chain is in the column `critique`, which a teacher wrote. Where a row has none, it is made of
`mistake` and of the first step in which the chains differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edit_trl.common.steps import step_end, step_start
from edit_trl.common.thoughts import join_thoughts, split_thoughts
from edit_trl.data.row import SPAN_COLUMNS, chain_text, is_chosen_alone, pairs_of
from edit_trl.data.row_rewriting import (
    Row,
    chosen_alone,
    refuse_several_turns,
    renamed,
    with_question,
    without_rejected,
)
from edit_trl.key_steps import locate_key_steps

VERDICTS = {"chosen": "Yes", "rejected": "No"}
"""The answer of `check` about each side of a pair."""


def critiques(rows: list[Row]) -> Iterator[Row]:
    """Yield, for each wrong chain, the row that asks what is wrong with it.

    Raises:
        InputError: A correct chain has several turns.
    """
    for number, row, pair in _pairs(rows):
        refuse_several_turns(pair, "critique")
        wrong, chain = chain_text(pair["rejected"]), chain_text(pair["chosen"])
        thoughts, answer = split_thoughts(chain)
        # What is wrong is part of the answer, after the thoughts.
        target = join_thoughts(thoughts, f"{critique_of(pair)}\n\n{answer if thoughts else chain}")
        asked = f"Attempted solution:\n{wrong}\n\nSay what is wrong with this attempt, then solve the problem."
        yield renamed(_asking(row, asked, target), f"critique {number}")


def lema(rows: list[Row]) -> Iterator[Row]:
    """Yield the correct chains alone, and the rows of `critiques`."""
    yield from chosen_alone(rows)
    yield from critiques(rows)


def checks(rows: list[Row]) -> Iterator[Row]:
    """Yield the rows that ask whether a chain is right, for both chains of each pair: half of the answers are yes."""
    for number, row, pair in _pairs(rows):
        for side, verdict in VERDICTS.items():
            yield renamed(_asking(row, check_question(chain_text(pair[side])), verdict), f"check {number} {side}")


def check_question(chain: str) -> str:
    """Return what stands after a question to have a chain checked."""
    return f"Proposed solution:\n{chain.strip()}\n\nIs this solution right? Answer Yes or No."


def check_prompt(prompt: Any, chain: str) -> Any:
    """Return a prompt, plain or conversational, that asks whether a chain is right instead of asking for one."""
    return _followed(prompt, check_question(chain))


def critique_of(pair: Mapping[str, Any]) -> str:
    """Return what is wrong with the wrong chain of a pair: its `critique`, or else where and how the chains part."""
    given = pair.get("critique")
    if given:
        return given.strip()
    chosen, rejected = chain_text(pair["chosen"]), chain_text(pair["rejected"])
    spans = [pair.get(column) for column in SPAN_COLUMNS]
    if not any(spans):
        steps = locate_key_steps(chosen, rejected, method="fork")
        spans = [steps.chosen_spans, steps.rejected_spans]
    right, wrong = (
        _step(text, places[0][0]) if places else "" for text, places in zip((chosen, rejected), spans, strict=True)
    )
    kind = f" ({', '.join(pair['mistake'])})" if pair.get("mistake") else ""
    if not wrong:
        return f"A step is missing{kind}: {right}"
    return f'The step "{wrong}" is wrong{kind}.' + (f" It should be: {right}" if right else " It does not belong here.")


def _step(text: str, place: int) -> str:
    """Return the sentence or line of a chain that holds a character."""
    return text[step_start(text, place) : step_end(text, place)].strip()


def _pairs(rows: list[Row]) -> Iterator[tuple[int, Row, Mapping[str, Any]]]:
    """Yield the pairs with the number of each within its row, and the row."""
    for row in rows:
        if not is_chosen_alone(row):
            yield from ((number, row, pair) for number, pair in enumerate(pairs_of(row), 1))


def _followed(prompt: Any, asked: str) -> Any:
    """Return a prompt whose question is followed by `asked`."""

    def ask(text: str) -> str:
        question = text.rstrip()
        # What separates the prompt from the chain stays at the end.
        return f"{question}\n\n{asked}{text[len(question) :]}"

    return with_question(prompt, ask)


def _asking(row: Row, asked: str, target: str) -> Row:
    """Return a row whose prompt ends with `asked`, and whose chain is `target`, alone."""
    chosen = target if isinstance(row["chosen"], str) else [{"role": "assistant", "content": target}]
    return without_rejected(row) | {"prompt": _followed(row["prompt"], asked), "chosen": chosen}
