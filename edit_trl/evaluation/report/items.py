"""The items of several runs, merged by question, in a compact form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edit_trl.common.thoughts import answer_part
from edit_trl.data.chains import turn_text
from edit_trl.evaluation.runs.schema import Run

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Detail:
    """How much detail a page shows.

    Attributes:
        samples: Whether to show all responses, or only the first with the answer that won the vote.
        tokens: Whether to show log-probabilities of tokens.
    """

    samples: bool = True
    tokens: bool = True


def page_items(runs: Sequence[Run], detail: Detail) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """Return the items that the page shows.

    A question of several runs is one item. Its `runs` are the outcomes, as [index of the run, outcome]. A
    question with the same name and another text is another item.

    Returns:
        The items; and the tokens of both chains (see `packed_tokens`), into which the `tokens` of an outcome is an
        index. They are separate because they compress better and are unpacked only after the page is shown.
    """
    tokens: list[Mapping[str, Any]] = []
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    # Suites come first: their items have chains, and outcomes of the same question are added to them.
    order = sorted(range(len(runs)), key=lambda index: runs[index].record.kind != "suite")
    by_question: dict[tuple[str, ...], dict[str, Any]] = {}
    for index in order:
        is_suite = runs[index].record.kind == "suite"
        for item in runs[index].items:
            question = (item["task"], item["id"], repr(item["prompt"]))
            chains = (item["chosen"], item["rejected"]) if is_suite else ()
            page_item = merged.get((*question, *chains)) if is_suite else by_question.get(question)
            if page_item is None:
                page_item = merged[(*question, *chains)] = _question(item)
                by_question.setdefault(question, page_item)
            outcome = _suite_outcome(item) if is_suite else _evaluate_outcome(item, detail)
            if is_suite and detail.tokens:
                outcome["tokens"] = len(tokens)
                tokens.append(item["tokens"])
            page_item["runs"].append([index, outcome])
    for page_item in merged.values():
        page_item["runs"].sort(key=lambda entry: entry[0])
    return list(merged.values()), tokens


def _question(item: Item) -> dict[str, Any]:
    names = ("task", "id", "prompt", "answer", "mistake", "source", "chosen", "rejected")
    question = {name: item[name] for name in names if item.get(name)} | {"prompt": page_prompt(item["prompt"])}
    for side in ("chosen", "rejected"):
        if side in item:
            question[f"{side}_spans"] = item[f"{side}_key_spans"]
            question |= thoughts_of_text(item[side], f"{side}_thoughts")
    return question | {"runs": []}


def page_prompt(prompt: Any) -> Any:
    """Return a prompt with what each turn thinks, says and calls as its content."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn["role"], "content": turn_text(turn)} for turn in prompt]


def thoughts_of_text(text: str, name: str = "thoughts") -> dict[str, int]:
    """Return how many characters of a text come before its answer, by a name; nothing for a text without thoughts."""
    part = answer_part(text)
    end = len(text) if part is None else part[0]
    return {name: end} if end else {}


def _evaluate_outcome(item: Item, detail: Detail) -> dict[str, Any]:
    samples = item["samples"]
    outcome = {name: item[name] for name in ("verdict", "value", "lenient_verdict", "cut_off")}
    outcome["of"] = len(samples)
    if "majority_verdict" in item:  # votes have weights
        outcome["majority"] = item["majority_verdict"]
    if not detail.samples:
        samples = [next((sample for sample in samples if sample["value"] == item["value"]), samples[0])]
    return outcome | {"samples": [_sample(sample) for sample in samples]}


def _sample(sample: Item) -> dict[str, Any]:
    names: tuple[str, ...] = ("response", "verdict", "value", "span", "cut_off", "tokens")
    # The lenient answer is left out if it is the strict one.
    if sample["lenient_span"] != sample["span"]:
        names += ("lenient_verdict", "lenient_value", "lenient_span")
    shown = {name: sample[name] for name in names if sample[name] not in (None, False)}
    weight = sample.get("weight")
    shown |= {} if weight is None else {"weight": rounded(weight)}
    return shown | thoughts_of_text(sample["response"])


def _suite_outcome(item: Item) -> dict[str, Any]:
    outcome = {name: item[name] for name in ("preferred", "key_preferred", "first_wrong", "greedy")}
    if outcome["first_wrong"]:
        outcome["first_wrong"] = item["first_wrong"] | {"logp": rounded(item["first_wrong"]["logp"])}
    outcome |= {name: rounded(item[name]) for name in ("margin", "key_margin")}
    outcome["logps"] = {name: rounded(value) for name, value in item["logps"].items()}
    return outcome


def packed_tokens(tokens: Sequence[Sequence[float]]) -> dict[str, list[Any]]:
    """Pack [start, end, log-probability] of each token of a chain into three lists that compress well.

    Returns:
        `lengths` in characters; `starts`, as [token, start] of each token that does not begin where the one
        before ends; `logps`, as negative log-probabilities in hundredths of a nat, None if not finite.
    """
    lengths, starts, logps, position = [], [], [], 0.0
    for number, (start, end, logp) in enumerate(tokens):
        if start != position:
            starts.append([number, start])
        lengths.append(end - start)
        logps.append(round(-100 * logp) if math.isfinite(logp) else None)
        position = end
    return {"lengths": lengths, "starts": starts, "logps": logps}


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Return a rounded value for the page; None if it is not finite, which JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
