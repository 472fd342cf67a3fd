"""Rollouts: chains that a student writes from the beginning, or continues from a prefix of its own chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import answer_part, without_opening
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse
from edit_trl.teachers.generation import Chain, Outcome
from edit_trl.teachers.prompts import read_chain
from edit_trl.teachers.requests import Requests, Slot, answer_outcome

Place = tuple[Question, str]
"""Where rollouts begin: a question and the prefix of a chain."""


# The number of questions after which a student that gets everything right, or nothing, is noticed.
_FIRST = 20


@dataclass
class Tally:
    """The rollouts from one place: those that reach the right answer, prefix included, and the number of all."""

    right: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, chain: Chain) -> None:
        """Count a rollout."""
        self.count += 1
        if chain.outcome == "correct":
            self.right.append(chain.text)

    def is_lost(self, right_after: float) -> bool:
        """Return whether at most the share `right_after` of the rollouts is right."""
        return len(self.right) <= right_after * self.count

    def is_decided(self, right_after: float, count: int) -> bool:
        """Return whether no more rollouts, up to `count` in all, can change whether the place is lost."""
        most, missing = right_after * count, max(0, count - self.count)
        return len(self.right) > most or len(self.right) + missing <= most


@dataclass
class Rollouts:
    """Draws chains and their continuations, for all questions at once; `count` rollouts from each place."""

    requests: Requests
    student: Dispatcher
    count: int
    _next_sample: Counter[Place] = field(default_factory=Counter)  # numbers of one place are all different

    async def sample_all(self, questions: Sequence[Question], count: int) -> list[Chain]:
        """Draw `count` chains of each question, of the first questions first.

        Raises:
            InputError: All chains of the first questions are right, or none is: there would be nothing to pair.
        """
        first, rest = questions[:_FIRST], questions[_FIRST:]
        chains = await self.sample(first, count, "samples")
        outcomes = Counter(chain.outcome for chain in chains)
        if rest and not (outcomes["correct"] and outcomes["wrong"]):
            counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())) or "no answer"
            way_out = "harder questions" if outcomes["correct"] else "easier questions, or a warm-up of the student"
            raise InputError(
                f"of {self.student.teacher.model}'s samples for the first {len(first)} of {len(questions)} questions: "
                f"{counts}. Pairs need right and wrong ones; take {way_out}"
            )
        return chains + await self.sample(rest, count, "samples")

    async def sample(self, questions: Iterable[Question], count: int, name: str) -> list[Chain]:
        """Draw `count` more chains of each question; `name` is the stage in counts and on the display."""
        return [chain for _, chain in await self._draw([(question, "") for question in questions], count, name)]

    async def draw(self, places: Sequence[Place], name: str, right_after: float | None = None) -> dict[Place, Tally]:
        """Draw rollouts from each place.

        With `right_after`, they are drawn in parts, until it is certain whether all of them would make the place lost.
        This curtailed test decides as all rollouts do, without an error of its own.

        Raises:
            InputError: No request was answered.
        """
        tallies = {place: Tally() for place in places}
        pending = list(places)
        for part in [self.count] if right_after is None else _parts(self.count):
            for place, chain in await self._draw(pending, part, name):
                tallies[place].add(chain)
            if places and not any(tally.count for tally in tallies.values()):
                raise InputError(
                    f"{self.student.teacher.model} continued no prefix of an answer "
                    f"({self.requests.generation.failures[-1][2]}); the model's context must have room for a "
                    "chain and `max_tokens` more, and an endpoint must accept `continue_final_message`, as vLLM "
                    "and SGLang do"
                )
            if right_after is not None:
                pending = [place for place in pending if not tallies[place].is_decided(right_after, self.count)]
        return tallies

    async def _draw(self, places: Sequence[Place], count: int, name: str) -> list[tuple[Place, Chain]]:
        """Draw `count` chains from each place; they begin with its prefix."""
        requests: dict[Slot, ChatRequest] = {}
        prefixes: dict[Slot, str] = {}
        for index, (question, prefix) in enumerate(places):
            for number in range(index * count, (index + 1) * count):
                sample = self._next_sample[question, prefix]
                self._next_sample[question, prefix] += 1
                request = self.requests.make("student", question, sample, number=number)
                if prefix:
                    request = replace(request, messages=(*request.messages, ("assistant", prefix)))
                requests[question, number], prefixes[question, number] = request, prefix
        if not requests:
            return []

        def outcome(slot: Slot, response: ChatResponse) -> Outcome:
            return answer_outcome(slot, replace(response, text=_continued(prefixes[slot], response.text)))

        rollouts = []
        for slot, response in (await self.requests.run(self.student, requests, name, outcome)).items():
            question, prefix = slot[0], prefixes[slot]
            text = _without_tail(_continued(prefix, response.text))
            chain = Chain(question, text, outcome(slot, response), "student", requests[slot].sample)
            rollouts.append(((question, prefix), chain))
        return rollouts


def _parts(count: int) -> list[int]:
    """Return a quarter of a number, as much again, and the rest."""
    quarter = -(-count // 4)
    ends = sorted({min(end, count) for end in (quarter, 2 * quarter, count)})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _without_tail(text: str) -> str:
    """Return a chain without what follows it. What precedes it stays: prefixes must be the student's own text."""
    answer, chain = answer_part(text), read_chain(text)
    return text[: text.index(chain, answer[0]) + len(chain)] if answer and chain else text


def _continued(prefix: str, text: str) -> str:
    """Return a prefix and its continuation; where thoughts have a field of their own, that opens them once more."""
    rest = without_opening(text) if answer_part(prefix) is None else text
    # Such a field has lost the space before its first word, where a prefix ends.
    return f"{prefix} {rest}" if rest != text and not prefix[-1].isspace() else prefix + rest
