"""Rollouts: chains that a student writes from the beginning, or continues from a prefix of its own chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edit_trl.common.errors import InputError
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse
from edit_trl.teachers.generation import Chain, Outcome
from edit_trl.teachers.prompts import read_chain
from edit_trl.teachers.requests import Requests, Slot, answer_outcome

Place = tuple[Question, str]
"""Where rollouts begin: a question and the prefix of a chain."""


@dataclass
class Tally:
    """The result of the rollouts from one place.

    Attributes:
        right: The whole chains, prefix included, that reach the right answer.
        count: Number of rollouts, right or wrong.
    """

    right: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, chain: str, outcome: str) -> None:
        """Count a rollout."""
        self.count += 1
        if outcome == "correct":
            self.right.append(chain)

    def is_lost(self, right_after: float) -> bool:
        """Whether at most the share `right_after` of the rollouts is right."""
        return len(self.right) <= right_after * self.count


@dataclass
class Rollouts:
    """Draws chains and their continuations, for all questions at once.

    Attributes:
        requests: Makes and runs the requests.
        student: The model that writes the chains.
        count: Number of rollouts from each place.
    """

    requests: Requests
    student: Dispatcher
    count: int
    _next_sample: Counter[Place] = field(default_factory=Counter)  # numbers of one place are all different

    async def sample(self, questions: Iterable[Question], count: int, name: str) -> list[Chain]:
        """Draw `count` more chains of each question; `name` is the stage in counts and on the display."""
        requests = self._make([(question, "") for question in questions], count)
        answers = await self._run(requests, name)
        return [
            Chain(slot[0], text, outcome, "student", requests[slot][1].sample)
            for slot, (text, outcome) in answers.items()
        ]

    async def draw(self, places: Sequence[Place], name: str) -> dict[Place, Tally]:
        """Draw rollouts from each place.

        Raises:
            InputError: No request was answered.
        """
        tallies = {place: Tally() for place in places}
        requests = self._make(places, self.count)
        answers = await self._run(requests, name)
        if requests and not answers:
            raise InputError(
                f"{self.student.teacher.model} continued no prefix of an answer "
                f"({self.requests.generation.failures[-1][2]}); the model's context must have room for a "
                "chain and `max_tokens` more, and an endpoint must accept `continue_final_message`, as vLLM "
                "and SGLang do"
            )
        for slot, (text, outcome) in answers.items():
            tallies[requests[slot][0]].add(text, outcome)
        return tallies

    def _make(self, places: Sequence[Place], count: int) -> dict[Slot, tuple[Place, ChatRequest]]:
        requests: dict[Slot, tuple[Place, ChatRequest]] = {}
        for index, (question, prefix) in enumerate(places):
            first = self._next_sample[question, prefix]
            for draw in range(count):
                number = index * count + draw
                request = self.requests.make("student", question, first + draw, number=number)
                if prefix:
                    request = replace(request, messages=(*request.messages, ("assistant", prefix)))
                requests[question, number] = (question, prefix), request
            self._next_sample[question, prefix] += count
        return requests

    async def _run(
        self, requests: Mapping[Slot, tuple[Place, ChatRequest]], name: str
    ) -> dict[Slot, tuple[str, Outcome]]:
        """The whole chains, prefix included, and their outcomes."""
        if not requests:
            return {}

        def outcome(slot: Slot, response: ChatResponse) -> Outcome:
            return answer_outcome(slot, response, prefix=requests[slot][0][1])

        messages = {slot: request for slot, (_, request) in requests.items()}
        answers = await self.requests.run(self.student, messages, name, outcome)
        return {
            slot: (_without_tail(requests[slot][0][1] + response.text), outcome(slot, response))
            for slot, response in answers.items()
        }


def _without_tail(text: str) -> str:
    """A chain without what follows it. What precedes it stays: prefixes must be the student's own text."""
    chain = read_chain(text)
    return chain if text.startswith(chain) else text
