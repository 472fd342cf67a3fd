"""Log-probabilities of a pair -> an item of a suite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import NamedTuple

from edit_trl.data.answers import check_answer
from edit_trl.evaluation.runs.schema import Branch, Continuation, Logps, SuiteItem, WrongTurn
from edit_trl.evaluation.suite.cases import SuiteCase


class WrongTurnAt(NamedTuple):
    """A token of the correct chain that is not the most likely one: its index, its text, the text instead."""

    position: int
    token: str
    instead: str


def not_finite(name: str, side: str, logps: Sequence[float]) -> str | None:
    """Name the first log-probability of a pair's "correct" or "wrong" chain that is not finite; None if all are."""
    for number, logp in enumerate(logps, 1):
        if not math.isfinite(logp):
            return (
                f"{name}: the log-probability of token {number} of the {side} chain is {logp}. Are the "
                "weights sound? In float16 large activations overflow: try `dtype: bfloat16` or `float32`"
            )
    return None


def continuation_of(case: SuiteCase, whole: str, response: str, branch: Branch, cut_off: bool) -> Continuation:
    """Check the answer of a continuation, which is none if it is cut off; `whole` has the shared beginning too."""
    is_whole = case.answer is not None and not cut_off
    check = check_answer(whole, case.answer, case.answer_type) if is_whole and case.answer is not None else None
    return {
        "response": response,
        "branch": branch,
        "verdict": check.verdict if check else "unparsed",
        "value": check.value if check else None,
        "cut_off": cut_off,
    }


def graded_again(case: SuiteCase, item: SuiteItem) -> SuiteItem:
    """Return an item with the verdict of the present answer check on its stored continuation."""
    greedy = item["greedy"]
    if greedy is None:
        return item
    response, branch, cut_off = greedy["response"], greedy["branch"], greedy["cut_off"]
    return item | {"greedy": continuation_of(case, case.beginning + response, response, branch, cut_off)}


def suite_item(
    case: SuiteCase,
    chosen: Sequence[float],
    rejected: Sequence[float],
    wrong_turn: WrongTurnAt | None,
    greedy: Continuation | None,
) -> SuiteItem:
    """Make the item of a pair.

    Args:
        case: The pair.
        chosen: Log-probability of each token of the correct chain.
        rejected: Log-probability of each token of the wrong chain.
        wrong_turn: The first token of the correct chain that greedy decoding would not generate.
        greedy: The greedy continuation of the shared beginning.
    """
    logps: Logps = {
        "chosen": math.fsum(chosen) / len(chosen),
        "rejected": math.fsum(rejected) / len(rejected),
        "chosen_key": _mean(compress(chosen, case.tokens["chosen_key_mask"])),
        "rejected_key": _mean(compress(rejected, case.tokens["rejected_key_mask"])),
    }
    margin = logps["chosen"] - logps["rejected"]
    chosen_key, rejected_key = logps["chosen_key"], logps["rejected_key"]
    key_margin = None if chosen_key is None or rejected_key is None else chosen_key - rejected_key
    return {
        "task": case.task,
        "id": case.id,
        "prompt": case.prompt,
        "chosen": case.chosen,
        "rejected": case.rejected,
        "answer": case.answer,
        "mistake": case.mistake,
        "source": case.source,
        "chosen_key_spans": case.key_spans("chosen"),
        "rejected_key_spans": case.key_spans("rejected"),
        "logps": logps,
        "margin": margin,
        "preferred": margin > 0,
        "key_margin": key_margin,
        "key_preferred": None if key_margin is None else key_margin > 0,
        "first_wrong": None if wrong_turn is None else _turn(case, chosen, wrong_turn),
        "greedy": greedy,
        "tokens": {"chosen": _placed(case, "chosen", chosen), "rejected": _placed(case, "rejected", rejected)},
    }


def _placed(case: SuiteCase, side: str, logps: Sequence[float]) -> list[list[float]]:
    return [[*span, round(logp, 5)] for span, logp in zip(case.offsets[side], logps, strict=True)]


def _turn(case: SuiteCase, logps: Sequence[float], turn: WrongTurnAt) -> WrongTurn:
    start, end = case.offsets["chosen"][turn.position]
    return {
        "start": start,
        "end": end,
        "token": turn.token,
        "instead": turn.instead,
        "logp": logps[turn.position],
        "at_key": case.tokens["chosen_key_mask"][turn.position],
    }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None
