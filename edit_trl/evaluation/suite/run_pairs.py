"""Dual CoTs from the chains of a model: a correct and a wrong sample of the same question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rapidfuzz.distance import Levenshtein

from edit_trl.common.errors import InputError
from edit_trl.common.steps import WORD
from edit_trl.evaluation.runs.schema import EvaluateItem, Run

SOURCE = "sampled"


def pairs_of_run(run: Run, pairs_per_question: int = 1) -> list[dict[str, Any]]:
    """Make dual CoTs of a finished `edit-trl evaluate` run.

    The correct and the wrong chain of a question with the smallest word edit distance make the first pair, the closest
    two of the remaining chains the next one. Chains that were cut off or have no answer are not used.

    Args:
        run: A run with several samples per question.
        pairs_per_question: The most pairs to make of a question.

    Returns:
        Rows as `edit_trl.data.dual_cots` describes them, with the task, id, answer and mistakes of the question.

    Raises:
        InputError: The run is one of `edit-trl suite` or has one sample per question, or no question has
            both a correct and a wrong chain.
    """
    if run.record.kind != "evaluate":
        raise InputError(f"`from_run: {run.path}` is a run of `edit-trl {run.record.kind}`, not of evaluate")
    if all(len(item["samples"]) < 2 for item in run.items):
        raise InputError(
            f"`from_run: {run.path}` has one sample per question, and a pair needs two; evaluate with "
            "`samples: 8` and `temperature: 0.7`"
        )
    rows = [row for item in run.items for row in _rows(item, pairs_per_question)]
    if not rows:
        raise InputError(
            f"`from_run: {run.path}`: no question of the {len(run.items)} has both a right and a wrong "
            "chain; draw more samples, or ask harder questions"
        )
    return rows


def _rows(item: EvaluateItem, most: int) -> Iterator[dict[str, Any]]:
    conversational = not isinstance(item["prompt"], str)
    for number, (right, wrong) in enumerate(_most_alike(item, most), 1):
        yield {
            "prompt": item["prompt"],
            "chosen": _chain(right, item["prompt"], conversational),
            "rejected": _chain(wrong, item["prompt"], conversational),
            "answer": item["answer"],
            "answer_type": item["answer_type"],
            "task": item["task"],
            "mistake": item["mistake"],
            "source": SOURCE,
            # Ids must be unique in a dataset, and two tasks may have the same ids.
            "id": f"{item['task']}/{item['id']}" + (f"/{number}" if number > 1 else ""),
        }


def _most_alike(item: EvaluateItem, most: int) -> list[tuple[str, str]]:
    chains: dict[str, dict[str, None]] = {"correct": {}, "wrong": {}}
    for sample in item["samples"]:
        if sample["verdict"] in chains and not sample["cut_off"] and sample["response"].strip():
            chains[sample["verdict"]][sample["response"]] = None
    words = {chain: WORD.findall(chain) for side in chains.values() for chain in side}
    distances = sorted(
        (Levenshtein.normalized_distance(words[right], words[wrong]), i, j, right, wrong)
        for i, right in enumerate(chains["correct"])
        for j, wrong in enumerate(chains["wrong"])
    )
    pairs: list[tuple[str, str]] = []
    used: set[str] = set()
    for *_, right, wrong in distances:
        if len(pairs) < most and not used & {right, wrong}:
            pairs.append((right, wrong))
            used |= {right, wrong}
    return pairs


def _chain(text: str, prompt: Any, conversational: bool) -> Any:
    if conversational:
        return [{"role": "assistant", "content": text}]
    # Responses are stored without surrounding white space.
    return text if prompt[-1:].isspace() else f" {text}"
