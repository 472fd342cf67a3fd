"""Makes dual CoTs from a student's own wrong chains, without a teacher, by searching for their pivotal steps.

Rollouts are continuations that the student draws from a prefix of a chain. A prefix is lost if at most the
share `right_after` of its rollouts reaches the right answer. Bisection over the ends of steps (sentences or
lines) finds the pivotal step of a wrong chain: the prefix before it is not lost, the prefix after it is. One
of the student's right continuations from before the step becomes the correct half of the pair. So rollouts
verify the key step; it is not guessed from how the two chains differ. They end as soon as those that are missing
cannot change whether the prefix is lost.

Bisection assumes that a lost prefix stays lost. Rollouts follow this only roughly: a student may correct an
earlier mistake, and a few rollouts may all be wrong by chance. The search then still ends at a step with evidence on
both sides, but there may be others, and it favours steps after which no rollout was right by chance. Therefore
`confirm_pivots` draws new rollouts on both sides; steps that these do not confirm are dropped and counted.

Rollouts as a verdict on steps: Math-Shepherd (arXiv 2312.08935); bisection for the first error: OmegaPRM
(arXiv 2406.06592). Everything is text. A prefix ends after a line break, or before the space in front of the next word,
since most tokenizers join the space with the word. The student's tokens of a prefix may differ from those it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from rapidfuzz.distance import Levenshtein

from edit_trl.common.steps import step_end
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.display import Watcher
from edit_trl.teachers.filters import ChainPair
from edit_trl.teachers.generation import Chain, Generation, PipelineOptions, Pivot, PivotOptions
from edit_trl.teachers.prompts import Templates
from edit_trl.teachers.requests import Requests, distinct_chains
from edit_trl.teachers.rollouts import Place, Rollouts, Tally

SOURCE = "pivot"
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
    """Make dual CoTs from a student's own chains.

    Args:
        questions: Questions with known answers and unique ids.
        student: Writes chains and continues the prefixes of wrong ones.
        options: `samples`, `pairs_per_question`, `student_temperature`, `top_p`, `max_tokens` (of a chain and
            of a continuation), `seed` and `bounds` are used as in `make_dual_cots`; the others are not.
        pivots: How pivotal steps are found.
        templates: The prompt templates; the package's own where None.
        watcher: Receives the progress.

    Returns:
        The pairs. `correct` has the student's right samples and `rectified` the correct halves of the pairs.

    Raises:
        InputError: Two questions have the same id, the student cannot continue a prefix, or it gets the first
            questions all right or all wrong.
        RunStopped: See `Dispatcher.run`; the journal holds every answer so far.
    """
    options, pivots = options or PipelineOptions(), pivots or PivotOptions()
    requests = Requests(questions, options, templates or Templates.load(), watcher)
    generation, rollouts = requests.generation, Rollouts(requests, student, pivots.rollouts)
    generation.thoughts = "keep"  # chains are searched as the student wrote them
    samples = await rollouts.sample_all(questions, options.samples)
    generation.correct = [chain for chain in samples if chain.outcome == "correct"]
    wrong = [chain for chain in samples if chain.outcome == "wrong"]
    wrong = distinct_chains(wrong, options.pairs_per_question)
    searchable = dict.fromkeys(chain.question for chain in wrong)
    tallies: dict[Place, Tally] = {(question, ""): Tally() for question in questions}
    for chain in samples:
        tallies[chain.question, ""].add(chain)
    # Samples are rollouts from the beginning of a chain; draw what is missing to as many as elsewhere.
    limits = pivots.right_after, pivots.rollouts
    open_starts = [question for question in searchable if not tallies[question, ""].is_decided(*limits)]
    missing = max(0, pivots.rollouts - options.samples)
    for chain in await rollouts.sample(open_starts, missing, "rollouts 0"):
        tallies[chain.question, ""].add(chain)
    for question in questions:
        start = tallies[question, ""]
        if question not in searchable:
            all_right = 0 < start.count == len(start.right)
            reason = "every sample is right" if all_right else "no sample ends in a wrong answer"
            generation.drop(reason, [question.id])
        elif start.is_lost(pivots.right_after):
            generation.drop("too few rollouts from the start are right", [question.id])
            del searchable[question]
    searches = [Search(chain, step_ends(chain.text)) for chain in wrong if chain.question in searchable]
    await _bisect(searches, tallies, rollouts, pivots.right_after)
    if pivots.confirm_pivots:
        await _confirm(searches, tallies, rollouts, pivots.right_after)
    _collect(searches, tallies, generation)
    generation.filter_pairs(questions, options.bounds)
    ids = {pair.id for pair in generation.pairs}
    generation.pivots = [pivot for pivot in generation.pivots or [] if pivot.pair in ids]
    return generation


def step_ends(chain: str) -> list[int]:
    """Return where each step of a chain ends: after its sentence and line breaks, the last at the end of the chain."""
    ends: list[int] = []
    start, last = 0, len(chain.rstrip())
    while start < last:
        first = _text_start(chain, start)
        end = step_end(chain, first)
        line_break = chain.rfind("\n", end, _text_start(chain, end))
        start = max(end, line_break + 1)
        ends.append(start)
    return [*ends[:-1], len(chain)] if ends else []


@dataclass
class Search:
    """The search in one wrong chain: its prefix of `low` steps is not lost, its prefix of `high` steps is."""

    chain: Chain
    ends: list[int]  # of its steps
    low: int = 0
    dropped: str | None = None  # why the chain gives no pair

    def __post_init__(self) -> None:
        self.high = len(self.ends)

    @property
    def id(self) -> str:
        """The id of the pair."""
        return f"{self.chain.question.id}/{SOURCE}/{self.chain.sample}"

    @property
    def is_open(self) -> bool:
        """Whether several steps may still be the pivotal one."""
        return self.high - self.low > 1 and not self.dropped

    @property
    def middle(self) -> int:
        """The number of steps whose prefix is tested next."""
        return (self.low + self.high) // 2

    def place(self, steps: int) -> Place:
        """Return the question and its prefix of that many steps."""
        return self.chain.question, self.chain.text[: self.ends[steps - 1]] if steps else ""

    def sides(self) -> list[int]:
        """Return the numbers of steps before and after the pivotal one; after the last step nothing can be drawn."""
        return [self.low] if self.high == len(self.ends) else [self.low, self.high]

    def pivot(self, tallies: Mapping[Place, Tally]) -> Pivot:
        """Return the pivotal step and its rollouts."""
        before, after = tallies[self.place(self.low)], Tally()
        if self.high in self.sides():
            after = tallies[self.place(self.high)]
        counts = (len(before.right), before.count, len(after.right), after.count)
        return Pivot(self.id, self.high, len(self.ends), *counts)

    def pair(self, tallies: Mapping[Place, Tally]) -> ChainPair | None:
        """Return the chain and its closest right continuation; None where every one repeats the whole step.

        A continuation that repeats the step and is right nevertheless does not show what is wrong with it.
        """
        wrong, (question, prefix) = self.chain.text, self.place(self.low)
        whole_step = self.place(self.high)[1].rstrip()
        right = {text for text in tallies[question, prefix].right if not text.startswith(whole_step)}
        if not right:
            return None
        chosen = min(right, key=lambda text: (Levenshtein.distance(text, wrong), text))
        return ChainPair(
            *(question, chosen, wrong, SOURCE, self.chain.sample),
            chosen_key_spans=_step_spans(chosen, len(prefix)),
            rejected_key_spans=_step_spans(wrong, len(prefix)),
        )


async def _bisect(
    searches: Sequence[Search], tallies: dict[Place, Tally], rollouts: Rollouts, right_after: float
) -> None:
    """Halve the open searches, all of them at each level, until one step is left in each."""
    for level in count(1):
        active = [search for search in searches if search.is_open]
        if not active:
            return
        places = dict.fromkeys(search.place(search.middle) for search in active)
        unknown = [place for place in places if place not in tallies]
        tallies |= await rollouts.draw(unknown, f"rollouts {level}", right_after)
        for search in active:
            tally = tallies[search.place(search.middle)]
            if not tally.count:
                search.dropped = _UNANSWERED
            elif tally.is_lost(right_after):
                search.high = search.middle
            else:
                search.low = search.middle


async def _confirm(
    searches: Sequence[Search], tallies: dict[Place, Tally], rollouts: Rollouts, right_after: float
) -> None:
    """Draw new rollouts on both sides of each step; drop the steps that these do not confirm."""
    candidates = [search for search in searches if not search.dropped]
    before = dict.fromkeys(search.place(search.low) for search in candidates)
    after = dict.fromkeys(search.place(search.high) for search in candidates if search.high in search.sides())
    # Before the step all rollouts are drawn: the right ones are candidates for the correct half.
    new = await rollouts.draw(list(before), "confirmation before")
    new |= await rollouts.draw([place for place in after if place not in new], "confirmation after", right_after)
    for search in candidates:
        sides = {steps: new[search.place(steps)] for steps in search.sides()}
        if not all(tally.count for tally in sides.values()):
            search.dropped = _UNANSWERED
        elif sides[search.low].is_lost(right_after):
            search.dropped = "not confirmed: lost before the step as well"
        elif search.high in sides and not sides[search.high].is_lost(right_after):
            search.dropped = "not confirmed: not lost after the step"
    for place, tally in new.items():
        tallies[place] = Tally(tallies[place].right + tally.right, tallies[place].count + tally.count)


def _collect(searches: Sequence[Search], tallies: Mapping[Place, Tally], generation: Generation) -> None:
    """Add the pairs and pivots of the searches to the generation, and the reasons of those without one."""
    generation.pivots = []
    for search in searches:
        pair = None if search.dropped else search.pair(tallies)
        if pair is None:
            generation.drop(search.dropped or "every right continuation repeats the step", [search.id])
            continue
        generation.pairs.append(pair)
        generation.pivots.append(search.pivot(tallies))
        generation.rectified.append(Chain(pair.question, pair.chosen, "correct", SOURCE, pair.sample))


def _step_spans(chain: str, start: int) -> tuple[tuple[int, int], ...]:
    """Return the spans of the step that begins at `start`; none at the end of the chain."""
    first = _text_start(chain, start)
    return ((first, step_end(chain, first)),) if first < len(chain) else ()


def _text_start(chain: str, start: int) -> int:
    return len(chain) - len(chain[start:].lstrip())
