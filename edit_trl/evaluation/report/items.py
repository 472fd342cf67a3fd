"""The items of several runs, each question once, as small as they come (L3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edit_trl.evaluation.runs.schema import Run

Detail = Mapping[str, Any]


@dataclass(frozen=True)
class Keep:
    """What a page has room for.

    Attributes:
        samples: Every response, or only the first that gave the answer which counted.
        tokens: Log-probabilities of tokens.
    """

    samples: bool = True
    tokens: bool = True


def page_items(runs: Sequence[Run], keep: Keep) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the page shows item by item.

    A question that several runs answered is one item; what each run made of it is in `runs`, a list of
    [index of the run, outcome]. A question of the same name but another text is another item.

    Args:
        runs: Of either kind.
        keep: What there is room for.

    Returns:
        The items, and the tokens of both chains that an outcome's `tokens` is an index of: apart they
        compress better, and are not unpacked before the page is there.
    """
    tokens: list[dict[str, Any]] = []
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    # Suites first: their items have the chains, which a question of the same name and text then joins.
    order = sorted(range(len(runs)), key=lambda index: runs[index].record.kind != "suite")
    by_question: dict[tuple[str, ...], dict[str, Any]] = {}
    for index in order:
        is_suite = runs[index].record.kind == "suite"
        for item in runs[index].items:
            question = (item["task"], item["id"], repr(item["prompt"]))
            chains = (item["chosen"], item["rejected"]) if is_suite else ()
            shown = merged.get((*question, *chains)) if is_suite else by_question.get(question)
            if shown is None:
                shown = merged[(*question, *chains)] = _question(item)
                by_question.setdefault(question, shown)
            outcome = _suite_outcome(item) if is_suite else _evaluate_outcome(item, keep)
            if is_suite and keep.tokens:
                outcome["tokens"] = len(tokens)
                tokens.append({side: packed_tokens(item["tokens"][side]) for side in ("chosen", "rejected")})
            shown["runs"].append([index, outcome])
    for shown in merged.values():
        shown["runs"].sort(key=lambda entry: entry[0])
    return list(merged.values()), tokens


def _question(item: Detail) -> dict[str, Any]:
    names = ("task", "id", "prompt", "answer", "mistake", "source", "chosen", "rejected")
    question = {name: item[name] for name in names if item.get(name)}
    for side in ("chosen", "rejected"):
        if side in item:
            question[f"{side}_spans"] = item[f"{side}_key_spans"]
    return question | {"runs": []}


def _evaluate_outcome(item: Detail, keep: Keep) -> dict[str, Any]:
    samples = item["samples"]
    shown = samples
    if not keep.samples:
        shown = [next((one for one in samples if one["value"] == item["value"]), samples[0])]
    outcome = {name: item[name] for name in ("verdict", "value", "lenient_verdict", "cut_off")}
    return outcome | {"of": len(samples), "samples": [_sample(sample) for sample in shown]}


def _sample(sample: Detail) -> dict[str, Any]:
    kept = ("response", "verdict", "value", "span", "cut_off", "tokens")
    # Lenient extraction is only of interest where it sees something else.
    if sample["lenient_span"] != sample["span"]:
        kept += ("lenient_verdict", "lenient_value", "lenient_span")
    return {name: sample[name] for name in kept if sample[name] not in (None, False)}


def _suite_outcome(item: Detail) -> dict[str, Any]:
    outcome = {name: item[name] for name in ("preferred", "key_preferred", "first_wrong", "greedy")}
    if outcome["first_wrong"]:
        outcome["first_wrong"] = item["first_wrong"] | {"logp": rounded(item["first_wrong"]["logp"])}
    outcome |= {name: rounded(item[name]) for name in ("margin", "key_margin")}
    outcome["logps"] = {name: rounded(value) for name, value in item["logps"].items()}
    return outcome


def packed_tokens(tokens: Sequence[Sequence[float]]) -> dict[str, list[Any]]:
    """[start, end, log-probability] of a chain's tokens as three lists that compress well.

    Returns:
        `lengths` in characters; `starts`, [token, start] of those that do not begin where the one before
        ends; `logps` in hundredths of a nat below 0, None where not finite.
    """
    lengths, starts, logps, at = [], [], [], 0
    for number, (start, end, logp) in enumerate(tokens):
        if start != at:
            starts.append([number, start])
        lengths.append(end - start)
        logps.append(round(-100 * logp) if math.isfinite(logp) else None)
        at = end
    return {"lengths": lengths, "starts": starts, "logps": logps}


def rounded(value: float | None, digits: int = 3) -> float | None:
    """As the page shows it; None for what is no number, which JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
