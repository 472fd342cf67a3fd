"""Asks what is wrong with the wrong chain of each pair: the kinds of its mistake, its steps, or a critique."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rapidfuzz.distance import Levenshtein

from edit_trl.common.steps import WORD, step_spans
from edit_trl.common.thoughts import split_thoughts
from edit_trl.key_steps import locate_key_steps
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.protocol import ChatResponse
from edit_trl.teachers.filters import ChainPair
from edit_trl.teachers.prompts import (
    LabelSet,
    TemplateName,
    listed_kinds,
    read_critique,
    read_kinds,
    read_steps,
)
from edit_trl.teachers.requests import Requests, Slot

Spans = tuple[tuple[int, int], ...]


@dataclass
class Labelling:
    """The stages after the pairs are made; each asks once about every pair of the generation, and changes them there.

    `labeller` is the model that is asked.
    """

    requests: Requests
    labeller: Dispatcher

    async def label_kinds(self, kinds: LabelSet) -> None:
        """Give the pairs their kinds of mistake; None where the answer does not have the required form."""

        def outcome(_: ChainPair, response: ChatResponse) -> str:
            return "unparsed" if read_kinds(response.text, kinds) is None else "labelled"

        def labelled(pair: ChainPair, answer: ChatResponse) -> ChainPair:
            names = read_kinds(answer.text, kinds)
            mistake = None if names is None else tuple(names)
            return replace(pair, mistake=mistake, mistake_text=split_thoughts(answer.text).answer or "")

        pairs = self.requests.generation.pairs
        values = [{"chosen": p.chosen, "rejected": p.rejected, "kinds": listed_kinds(kinds)} for p in pairs]
        answers = await self._ask("label", values, outcome)
        for number, answer in answers.items():
            pairs[number] = labelled(pairs[number], answer)

    async def label_steps(self) -> None:
        """Give the pairs the spans of the steps that carry the mistake; drop those without, since they need spans."""

        def outcome(pair: ChainPair, response: ChatResponse) -> str:
            return _marked_steps(pair, response)[0]

        generation = self.requests.generation
        values = [{"chosen": pair.chosen, "steps": _numbered(pair.rejected)} for pair in generation.pairs]
        answers = await self._ask("label_steps", values, outcome)
        marked = []
        for number, pair in enumerate(generation.pairs):
            reason, spans = _marked_steps(pair, answers[number]) if number in answers else ("no answer", None)
            if spans is None:
                generation.drop(f"steps of the mistake: {reason}", [pair.id])
            else:
                text = split_thoughts(answers[number].text).answer or ""
                chosen, rejected = spans
                marked.append(replace(pair, mistake_text=text, chosen_key_spans=chosen, rejected_key_spans=rejected))
        generation.pairs = marked

    async def criticise(self) -> None:
        """Give the pairs a critique of their wrong chain; none where it is not in the form, or finds nothing wrong."""

        def outcome(_: ChainPair, response: ChatResponse) -> str:
            if response.finish_reason != "stop":
                return _ended_by(response)
            critique = read_critique(response.text)
            if critique is None:
                return "unparsed"
            return "critique" if critique.finds_a_mistake else "contradicts the label"

        pairs = self.requests.generation.pairs
        values = [{"chain": pair.rejected} for pair in pairs]
        for number, answer in (await self._ask("critique", values, outcome)).items():
            critique = read_critique(answer.text)
            if critique is not None and outcome(pairs[number], answer) == "critique":
                pairs[number] = replace(pairs[number], critique=critique.text)

    async def _ask(
        self,
        template: TemplateName,
        values: Sequence[dict[str, Any]],
        outcome: Callable[[ChainPair, ChatResponse], str],
    ) -> dict[int, ChatResponse]:
        """Ask about each pair; returns the answers by the number of the pair."""
        pairs = self.requests.generation.pairs
        requests = {
            (pair.question, number): self.requests.make(
                template, pair.question, 0, number=number, temperature=0.0, **values[number]
            )
            for number, pair in enumerate(pairs)
        }

        def outcome_of(slot: Slot, response: ChatResponse) -> str:
            return outcome(pairs[slot[1]], response)

        answers = await self.requests.run(self.labeller, requests, template, outcome_of)
        return {number: answer for (_, number), answer in answers.items()}


def _ended_by(response: ChatResponse) -> str:
    return "cut off" if response.finish_reason == "length" else "refused"


def _numbered(chain: str) -> str:
    return "\n".join(f"{number}. {chain[start:end]}" for number, (start, end) in enumerate(step_spans(chain), 1))


def _marked_steps(pair: ChainPair, response: ChatResponse) -> tuple[str, tuple[Spans, Spans] | None]:
    """Return what came of a label, and the spans of the named steps in the correct and in the wrong chain."""
    if response.finish_reason != "stop":  # the last number may be cut in two
        return _ended_by(response), None
    steps = step_spans(pair.rejected)
    numbers = read_steps(response.text, len(steps))
    if numbers is None:
        return "unparsed", None
    key_steps = locate_key_steps(pair.chosen, pair.rejected)
    named = [steps[number - 1] for number in numbers]
    if not all(any(_overlap(step, span) for span in key_steps.rejected_spans or ()) for step in named):
        return "a named step does not differ", None
    return "labelled", (counterparts(pair.chosen, pair.rejected, named), tuple(named))


def counterparts(chosen: str, rejected: str, steps: Sequence[tuple[int, int]]) -> Spans:
    """Return the steps of the correct chain that stand where some steps of the wrong one do.

    The chains are aligned by minimum edit distance over words. A step of the correct chain is a counterpart if one of
    its words is deleted or replaced where a named step differs; an insertion has none.

    Args:
        chosen: The correct chain.
        rejected: The wrong chain.
        steps: [start, end) characters of steps of the wrong chain.
    """
    words = [[match.span() for match in WORD.finditer(text)] for text in (chosen, rejected)]
    texts = [[text[slice(*span)] for span in spans] for text, spans in zip((chosen, rejected), words, strict=True)]
    own = [False] * len(words[0])
    for edit in Levenshtein.opcodes(*texts):
        if edit.tag == "equal":
            continue
        places = words[1][edit.dest_start : edit.dest_end] or words[1][edit.dest_start : edit.dest_start + 1]
        if any(_overlap(step, place) for step in steps for place in places):
            own[edit.src_start : edit.src_end] = [True] * (edit.src_end - edit.src_start)
    marked = [span for span, is_own in zip(words[0], own, strict=True) if is_own]
    return tuple(step for step in step_spans(chosen) if any(_overlap(step, span) for span in marked))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
