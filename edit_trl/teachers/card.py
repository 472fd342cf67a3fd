"""The dataset card of generated dual CoTs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edit_trl.common.markdown import text
from edit_trl.models.chat.dispatch import DispatchStats
from edit_trl.teachers.generation import DUAL, WARM_UP, Generation

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class CardFacts:
    """What a card tells beside the counts.

    Attributes:
        teacher: The model that was asked for; the student where there is no teacher.
        stats: What was sent, by who asked: "teacher", "student", "labeller".
        template_versions: By template name.
        options: What the run was asked for, as in its recipe.
    """

    teacher: str
    stats: Mapping[str, DispatchStats]
    template_versions: Mapping[str, str]
    options: Mapping[str, Any]


def generation_card(
    generation: Generation, facts: CardFacts, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """The card: what is in the files, where it comes from and what it cost."""
    dual = rows[DUAL]
    mistakes = Counter(kind for row in dual for kind in row["mistake"] or ())
    header = {
        "configs": [
            {"config_name": "dual", "data_files": DUAL, "default": True},
            {"config_name": "warm_up", "data_files": WARM_UP},
        ],
        "tags": ["edit_trl", "dual-cot", "trl"],
    }
    lines = ["---", json.dumps(header, indent=2), "---", "", "# Dual chains of thought", ""]
    lines += [
        "Pairs of a correct chain of thought and a similar wrong one of the same question, made with",
        f"[edit_trl](https://arxiv.org/abs/2405.19737) by {_author(generation)} `{_code(facts.teacher)}`.",
        "",
        f"`{DUAL}` has {len(dual)} pairs, `{WARM_UP}` {len(rows[WARM_UP])} correct chains for the warm-up.",
        "",
        *_table("source", Counter(row["source"] for row in dual)),
        *_table("task", Counter(row["task"] or "" for row in dual)),
    ]
    if mistakes:
        lines += _table("mistake", mistakes)
    if generation.pivots is not None:
        lines += _pivot_section(generation, facts)
    lines += ["## How they were made", "", "| stage | outcome | answers |", "|---|---|---|"]
    lines += [
        f"| {stage} | {outcome} | {count} |"
        for stage, counts in generation.counts.items()
        for outcome, count in sorted(counts.items())
    ]
    if generation.dropped:
        what = "dropped pairs" if generation.pivots is None else "dropped questions and pairs"
        lines += ["", *_table(what, Counter({r: len(i) for r, i in generation.dropped.items()}))]
    lines += [
        "",
        "| | prompt tokens | completion tokens | cost | models as reported |",
        "|---|---|---|---|---|",
    ]
    for who, stats in facts.stats.items():
        models = ", ".join(f"`{_code(model)}`" for model in sorted(stats.models)) or "-"
        cost = f"{stats.cost:.4f}" if stats.cost else "-"
        lines.append(f"| {who} | {stats.prompt_tokens} | {stats.completion_tokens} | {cost} | {models} |")
    lines += ["", "Versions of the prompt templates: " + _versions(facts.template_versions) + ".", ""]
    lines += ["```json", json.dumps(facts.options, indent=2, sort_keys=True, default=str), "```", ""]
    return "\n".join(lines)


def _author(generation: Generation) -> str:
    return "the teacher" if generation.pivots is None else "the student itself,"


def _pivot_section(generation: Generation, facts: CardFacts) -> list[str]:
    """What the rollouts cost and show."""
    pivots, stages = generation.pivots, generation.counts
    rollouts = sum(counts.total() for stage, counts in stages.items() if stage != "samples")
    tokens = facts.stats["student"].completion_tokens
    before = sum(pivot.right_before for pivot in pivots) / sum(pivot.drawn_before for pivot in pivots)
    drawn_after = sum(pivot.drawn_after for pivot in pivots)
    after = sum(pivot.right_after for pivot in pivots) / drawn_after if drawn_after else 0.0
    samples = stages["samples"]
    lines = [
        "## Pivotal steps",
        "",
        "Both chains of a pair are the student's own and share their text up to the pivotal step of the",
        "wrong one: the step before which continuations of it reach the right answer and after which they",
        "do not. The key spans are that step on either side. Steps were found by bisection, which takes for",
        "granted that what is lost stays lost; rollouts hold to that only about.",
        "",
        f"Of {samples.total()} samples {samples['correct']} were right and {samples['wrong']} wrong. "
        f"{rollouts} rollouts found {len(pivots)} pivotal steps: {rollouts / len(pivots):.1f} rollouts and "
        f"{tokens / len(pivots):.0f} generated tokens, those of the samples included, for each. Of "
        f"continuations from before the step {before:.0%} are right, from after it {after:.1%}.",
        "",
    ]
    places = Counter(f"{pivot.step} of {pivot.steps}" for pivot in pivots)
    rows = sorted(places.items(), key=lambda item: [int(part) for part in item[0].split(" of ")])
    return [*lines, "| pivotal step | pairs |", "|---|---|", *(f"| {name} | {n} |" for name, n in rows), ""]


def _table(title: str, counts: Counter[str]) -> list[str]:
    lines = [f"| {title} | pairs |", "|---|---|"]
    return [*lines, *(f"| {text(name)} | {n} |" for name, n in sorted(counts.items())), ""]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} `{version}`" for name, version in versions.items())


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
