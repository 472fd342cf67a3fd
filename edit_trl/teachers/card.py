"""The dataset card of generated dual CoTs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCardData

from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.row import chain_text
from edit_trl.hub.card_templates import render_card
from edit_trl.models.chat.dispatch import DispatchStats
from edit_trl.teachers.generation import DUAL, WARM_UP, Generation


@dataclass(frozen=True)
class Provenance:
    """Who made the data, with which prompts and options, and what was sent.

    Attributes:
        teacher: The model that was asked; the student where there is no teacher.
        stats: Requests and tokens, by role: "teacher", "student", "labeller".
        template_versions: Version of each prompt template, by name.
        options: The options of the run, as in its recipe.
        batch_discount: What was taken off the prices, as `teacher: batch` asked for less; None for another teacher.
    """

    teacher: str
    stats: Mapping[str, DispatchStats]
    template_versions: Mapping[str, str]
    options: Mapping[str, Any]
    batch_discount: float | None = None


def generation_card(
    generation: Generation, provenance: Provenance, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """Return the card: what is in the files (`rows` by file name), where it comes from and what it cost."""
    dual = rows[DUAL]
    counts = {
        "source": Counter(row["source"] for row in dual),
        "task": Counter(row["task"] or "" for row in dual),
        "mistake": Counter(kind for row in dual for kind in row["mistake"] or ()),
    }
    metadata = DatasetCardData(
        configs=[
            {"config_name": "dual", "data_files": DUAL, "default": True},
            {"config_name": "warm_up", "data_files": WARM_UP},
        ],
        tags=["edit_trl", "dual-cot", "trl"],
    )
    values = {
        "title": "Dual chains of thought",
        "counts": {column: sorted(counter.items()) for column, counter in counts.items() if counter},
        "generated": {
            "provenance": provenance,
            "pairs": len(dual),
            "warm_up_chains": len(rows[WARM_UP]),
            "by_student": "teacher" not in provenance.stats,
            "outcomes": {stage: sorted(counter.items()) for stage, counter in generation.counts.items()},
            "dropped": sorted((reason, len(ids)) for reason, ids in generation.dropped.items()),
            "thoughts": generation.thoughts,
            "with_thoughts": generation.with_thoughts,
            "answers": sum(map(Counter.total, generation.counts.values())),
            "chains_with_thoughts": _count_thoughts(generation, rows[WARM_UP]),
            "pivots": _pivot_values(generation, provenance.stats) if generation.pivots is not None else None,
        },
    }
    return render_card("dataset_card.md", metadata, values)


def _count_thoughts(generation: Generation, warm_up: Sequence[Mapping[str, Any]]) -> int:
    """Return how many of the chains for the warm-up have thoughts, or consist of them."""
    if not generation.with_thoughts:
        return 0
    if generation.thoughts != "only":
        return sum(bool(split_thoughts(chain_text(row["chosen"])).thoughts) for row in warm_up)
    chains = {(c.question.id, c.text): c.has_thoughts for c in (*generation.correct, *generation.rectified)}
    return sum(chains.values())


def _pivot_values(generation: Generation, stats: Mapping[str, DispatchStats]) -> dict[str, Any]:
    """Return the values for the section on pivotal steps: what the rollouts cost, and what they showed."""
    pivots, samples = generation.pivots or [], generation.counts["samples"]
    drawn_after = sum(pivot.drawn_after for pivot in pivots)
    places = Counter((pivot.step, pivot.steps) for pivot in pivots)
    return {
        "samples": samples.total(),
        "correct": samples["correct"],
        "wrong": samples["wrong"],
        "rollouts": sum(outcomes.total() for stage, outcomes in generation.counts.items() if stage != "samples"),
        "steps": len(pivots),
        "tokens": stats["student"].completion_tokens,
        "right_before": sum(pivot.right_before for pivot in pivots) / sum(pivot.drawn_before for pivot in pivots),
        "right_after": sum(pivot.right_after for pivot in pivots) / drawn_after if drawn_after else 0.0,
        "places": [(f"{step} of {steps}", count) for (step, steps), count in sorted(places.items())],
    }
