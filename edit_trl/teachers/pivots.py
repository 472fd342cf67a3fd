"""A student's own wrong chains -> dual CoTs that part at the step where they are lost (L3); no teacher.

For a wrong chain the pivotal step is looked for by rollouts: continuations that the student draws from a
prefix of the chain. A prefix is lost if no more than `right_after` of them reach the right answer. Bisection
over the ends of steps (sentences or lines) finds a step before which the chain is not lost and after which it
is; the student's own continuation from before it that does reach the right answer is the other half of the
pair. Its key step is so verified rather than guessed from how the two chains differ.

Bisection takes for granted that what is lost stays lost. Rollouts hold to that only about: a student may mend
an earlier mistake, and of few rollouts from a prefix with a small chance none may be right. The search then
still ends at a step with rollouts for it on both sides, but it need not be the only one or the first; and as
it picks steps after which none was right, it picks chance as well. So both sides are drawn anew
(`confirm_pivots`), and what does not hold then is dropped and counted.

Rollouts as a verdict on steps: Math-Shepherd (arXiv 2312.08935); bisection for the first error: OmegaPRM
(arXiv 2406.06592). Everything is text: a prefix ends before the space in front of the next word, which most
tokenizers make one token with it, and after the line break where there is one. The student reads the prefix
as it is tokenized anew, which need not be how it was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from rapidfuzz.distance import Levenshtein

from edit_trl.common.errors import InputError
from edit_trl.common.steps import step_end
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.display import Watcher
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse
from edit_trl.teachers.filters import Pair
from edit_trl.teachers.generation import Chain, Generation, Outcome, PipelineOptions, Pivot, PivotOptions
from edit_trl.teachers.pipeline import Run, Slot, answer_outcome
from edit_trl.teachers.prompts import Templates, read_chain

SOURCE, SAMPLED = "pivot", "student"
_UNANSWERED = "rollouts without an answer"


async def make_pivots(
    questions: Sequence[Question],
    student: Dispatcher,
    *,
    options: PipelineOptions | None = None,
    pivots: PivotOptions | None = None,
    templates: Templates | None = None,
    watcher: Watcher | None = None,
) -> Generation:
    """Make dual CoTs of a student's own chains.

    Args:
        questions: With known answers; ids are unique.
        student: Writes chains, and goes on from the prefixes of wrong ones.
        options: `samples`, `pairs_per_question`, `student_temperature`, `top_p`, `max_tokens` (of a chain,
            and of a continuation), `seed` and `bounds` are as elsewhere; the others are not read.
        pivots: See `PivotOptions`.
        templates: The prompt; the package's own where None.
        watcher: Is told of progress.

    Returns:
        The pairs; `correct` has the student's right samples and `rectified` the right halves of the pairs.

    Raises:
        InputError: Two questions of one id, or a student that does not go on from a prefix.
        RunStopped: See `Dispatcher.run`; what was answered is in the journal.
    """
    pivots = pivots or PivotOptions()
    run = Run(questions, options or PipelineOptions(), templates or Templates.load(), (), watcher)
    made = run.made
    rollouts = _Rollouts(run, student, pivots.rollouts)
    searches, drawn = await _begin(run, rollouts, pivots)
    await _search(searches, drawn, rollouts, pivots.right_after)
    if pivots.confirm_pivots:
        await _confirm(searches, drawn, rollouts, pivots.right_after)
    made.pivots = []
    for search in searches:
        pair = None if search.dropped else search.pair(drawn)
        if pair is None:
            reason = search.dropped or "every right continuation repeats the step"
            made.dropped.setdefault(reason, []).append(search.id)
            continue
        made.pairs.append(pair)
        made.pivots.append(search.pivot(drawn))
        made.rectified.append(Chain(pair.question, pair.chosen, "correct", SOURCE, pair.sample))
    run.filter()
    kept = {pair.id for pair in made.pairs}
    made.pivots = [pivot for pivot in made.pivots if pivot.pair in kept]
    return made


def step_ends(chain: str) -> list[int]:
    """Where each step of a chain ends: after its sentence, and after the line breaks that follow it.

    The last is the chain's end.
    """
    ends: list[int] = []
    start, last = 0, len(chain.rstrip())
    while start < last:
        begin = _text_start(chain, start)
        end = step_end(chain, begin)
        line = chain.rfind("\n", end, _text_start(chain, end))
        start = max(end, line + 1)
        ends.append(start)
    return [*ends[:-1], len(chain)] if ends else []


Place = tuple[Question, str]
"""A question and the prefix of a chain: where rollouts begin."""


@dataclass
class _Drawn:
    """What came of the rollouts from a place: the whole chains that are right, and of how many."""

    right: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, chain: str, outcome: str) -> None:
        self.count += 1
        if outcome == "correct":
            self.right.append(chain)

    def lost(self, right_after: float) -> bool:
        return len(self.right) <= right_after * self.count


@dataclass
class _Search:
    """The search in one wrong chain: after `low` steps it is not lost, after `high` it is.

    Attributes:
        chain: The wrong chain.
        ends: The ends of its steps.
        dropped: Why there can be no pair.
    """

    chain: Chain
    ends: list[int]
    low: int = 0
    dropped: str | None = None

    def __post_init__(self) -> None:
        self.high = len(self.ends)

    @property
    def id(self) -> str:
        return f"{self.chain.question.id}/{SOURCE}/{self.chain.sample}"

    @property
    def open(self) -> bool:
        return self.high - self.low > 1 and not self.dropped

    @property
    def middle(self) -> int:
        return (self.low + self.high) // 2

    def place(self, steps: int) -> Place:
        return self.chain.question, self.chain.text[: self.ends[steps - 1]] if steps else ""

    def sides(self) -> list[int]:
        """Before and after the step; after the last step the chain has ended, wrongly."""
        return [self.low] if self.high == len(self.ends) else [self.low, self.high]

    def pivot(self, drawn: Mapping[Place, _Drawn]) -> Pivot:
        before, after = drawn[self.place(self.low)], _Drawn()
        if self.high in self.sides():
            after = drawn[self.place(self.high)]
        counts = (len(before.right), before.count, len(after.right), after.count)
        return Pivot(self.id, self.high, len(self.ends), *counts)

    def pair(self, drawn: Mapping[Place, _Drawn]) -> Pair | None:
        """The chain and the right continuation that is closest to it; None where none leaves it at the step.

        One that goes through the whole step and is right all the same does not show what is wrong with it.
        """
        wrong, (question, begun) = self.chain.text, self.place(self.low)
        through = self.place(self.high)[1].rstrip()
        right = {text for text in drawn[question, begun].right if not text.startswith(through)}
        if not right:
            return None
        chosen = min(right, key=lambda text: (Levenshtein.distance(text, wrong), text))
        return Pair(
            *(question, chosen, wrong, SOURCE, self.chain.sample),
            chosen_key_spans=_step_at(chosen, len(begun)),
            rejected_key_spans=_step_at(wrong, len(begun)),
        )


async def _begin(
    run: Run, rollouts: _Rollouts, pivots: PivotOptions
) -> tuple[list[_Search], dict[Place, _Drawn]]:
    """Wrong chains that can be searched, and what is known; other questions are noted with the reason."""
    samples = await rollouts.sample(run.questions, run.options.samples, "samples")
    run.made.correct = [chain for chain in samples if chain.outcome == "correct"]
    wrong = run.some(chain for chain in samples if chain.outcome == "wrong")
    asked = list(dict.fromkeys(chain.question for chain in wrong))
    # Samples are rollouts from the start, where there are to be as many as elsewhere.
    missing = max(0, pivots.rollouts - run.options.samples)
    drawn: dict[Place, _Drawn] = {(question, ""): _Drawn() for question in run.questions}
    for chain in samples + await rollouts.sample(asked, missing, "rollouts 0"):
        drawn[chain.question, ""].add(chain.text, chain.outcome)
    lost = {question for question in asked if drawn[question, ""].lost(pivots.right_after)}
    for question in run.questions:
        if question not in asked:
            start = drawn[question, ""]
            all_right = 0 < start.count == len(start.right)
            reason = "every sample is right" if all_right else "no sample ends in a wrong answer"
        elif question in lost:
            reason = "too few rollouts from the start are right"
        else:
            continue
        run.made.dropped.setdefault(reason, []).append(question.id)
    searches = [_Search(chain, step_ends(chain.text)) for chain in wrong if chain.question not in lost]
    return searches, drawn


async def _search(
    searches: Sequence[_Search], drawn: dict[Place, _Drawn], rollouts: _Rollouts, right_after: float
) -> None:
    """Bisect all chains, a level at a time, until one step is left of each."""
    for level in count(1):
        active = [search for search in searches if search.open]
        if not active:
            return
        places = dict.fromkeys(search.place(search.middle) for search in active)
        new = [place for place in places if place not in drawn]
        drawn |= await rollouts.draw(new, f"rollouts {level}")
        for search in active:
            here = drawn[search.place(search.middle)]
            if not here.count:
                search.dropped = _UNANSWERED
            elif here.lost(right_after):
                search.high = search.middle
            else:
                search.low = search.middle


async def _confirm(
    searches: Sequence[_Search], drawn: dict[Place, _Drawn], rollouts: _Rollouts, right_after: float
) -> None:
    """Draw anew on both sides of the steps that were found; those that do not hold are dropped."""
    found = [search for search in searches if not search.dropped]
    places = dict.fromkeys(search.place(steps) for search in found for steps in search.sides())
    new = await rollouts.draw(list(places), "confirmation")
    for search in found:
        sides = {steps: new[search.place(steps)] for steps in search.sides()}
        if not all(here.count for here in sides.values()):
            search.dropped = _UNANSWERED
        elif sides[search.low].lost(right_after):
            search.dropped = "not confirmed: lost before the step as well"
        elif search.high in sides and not sides[search.high].lost(right_after):
            search.dropped = "not confirmed: not lost after the step"
    for place, here in new.items():
        known = drawn[place]
        drawn[place] = _Drawn(known.right + here.right, known.count + here.count)


class _Rollouts:
    """Draws chains and continuations of them, for all questions at once."""

    def __init__(self, run: Run, student: Dispatcher, count: int):
        self._run = run
        self._student = student
        self._count = count
        self._next: Counter[Place] = Counter()  # no two draws from a place have the same number

    async def sample(self, questions: Iterable[Question], count: int, name: str) -> list[Chain]:
        """So many chains more of each question."""
        requests = self._requests([(question, "") for question in questions], count)
        answers = await self._answers(requests, name)
        return [
            Chain(slot[0], text, outcome, SAMPLED, requests[slot][1].sample)
            for slot, (text, outcome) in answers.items()
        ]

    async def draw(self, places: Sequence[Place], name: str) -> dict[Place, _Drawn]:
        """Rollouts from each of the places.

        Raises:
            InputError: None was answered.
        """
        drawn = {place: _Drawn() for place in places}
        requests = self._requests(places, self._count)
        answers = await self._answers(requests, name)
        if requests and not answers:
            raise InputError(
                f"{self._student.teacher.model} went on from no prefix of an answer "
                f"({self._run.made.failures[-1][2]}); the model's context must have room for a chain and "
                "`max_tokens` more, and an endpoint must take `continue_final_message`, as those of vLLM and "
                "SGLang do"
            )
        for slot, (text, outcome) in answers.items():
            drawn[requests[slot][0]].add(text, outcome)
        return drawn

    def _requests(self, places: Sequence[Place], count: int) -> dict[Slot, tuple[Place, ChatRequest]]:
        requests: dict[Slot, tuple[Place, ChatRequest]] = {}
        for number, (question, prefix) in enumerate(places):
            prompt = self._run.templates.student(question)
            first = self._next[question, prefix]
            for draw in range(count):
                slot = question, number * count + draw
                request = self._run.request("student", "student", question, prompt, first + draw, slot[1])
                if prefix:
                    request = replace(request, messages=(*request.messages, ("assistant", prefix)))
                requests[slot] = (question, prefix), request
            self._next[question, prefix] += count
        return requests

    async def _answers(
        self, requests: Mapping[Slot, tuple[Place, ChatRequest]], name: str
    ) -> dict[Slot, tuple[str, Outcome]]:
        """Whole chains and what they are worth."""
        if not requests:
            return {}

        def outcome(slot: Slot, response: ChatResponse) -> Outcome:
            return answer_outcome(slot, response, requests[slot][0][1])

        asked = {slot: request for slot, (_, request) in requests.items()}
        answers = await self._run.answers(self._student, asked, name, outcome)
        return {
            slot: (_as_written(requests[slot][0][1] + response.text), outcome(slot, response))
            for slot, response in answers.items()
        }


def _as_written(text: str) -> str:
    """A chain without what follows it, but with what precedes it: prefixes must be the student's own."""
    chain = read_chain(text)
    return chain if text.startswith(chain) else text


def _step_at(chain: str, start: int) -> tuple[tuple[int, int], ...]:
    """The step that begins there, as spans; none where the chain ends there."""
    begin = _text_start(chain, start)
    return ((begin, step_end(chain, begin)),) if begin < len(chain) else ()


def _text_start(chain: str, start: int) -> int:
    return len(chain) - len(chain[start:].lstrip())
