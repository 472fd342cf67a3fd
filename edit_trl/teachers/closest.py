"""Pairs the wrong chains of a student with its own right ones of the same question, without a teacher.

Both chains are the student's own and whole: the wrong one is what it would really write, and the right one is within
its reach (Iterative RPO, arXiv 2404.19733; REDI, arXiv 2505.24850). The most similar right chain is taken, so that the
two differ in as few steps as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.display import Watcher
from edit_trl.teachers.filters import ChainPair
from edit_trl.teachers.generation import Chain, Generation, PipelineOptions
from edit_trl.teachers.prompts import Templates
from edit_trl.teachers.requests import Requests, distinct_chains
from edit_trl.teachers.rollouts import Rollouts

SOURCE = "own"


async def make_closest(
    questions: Sequence[Question],
    student: Dispatcher,
    *,
    options: PipelineOptions | None = None,
    templates: Templates | None = None,
    watcher: Watcher | None = None,
) -> Generation:
    """Sample a student's chains and pair the wrong ones with its own right ones.

    Args:
        questions: Questions with known answers and unique ids.
        student: Writes the chains.
        options: `samples`, `pairs_per_question`, `student_temperature`, `top_p`, `max_tokens`, `seed` and `bounds` are
            used as in `make_dual_cots`; the others are not.
        templates: The prompt templates; the package's own where None.
        watcher: Receives the progress.

    Returns:
        The pairs. `correct` has all right chains, each text of a question once: what rejection sampling fine-tuning
        (arXiv 2308.01825) trains on.

    Raises:
        InputError: Two questions have the same id, or the student gets the first questions all right or all wrong.
        RunStopped: See `Dispatcher.run`; the journal holds every answer so far.
    """
    options = options or PipelineOptions()
    requests = Requests(questions, options, templates or Templates.load(), watcher)
    generation = requests.generation
    generation.thoughts = "keep"  # chains are compared as the student wrote them
    samples = await Rollouts(requests, student, count=0).sample_all(questions, options.samples)
    right = [chain for chain in samples if chain.outcome == "correct"]
    wrong = [chain for chain in samples if chain.outcome == "wrong"]
    generation.correct = distinct_chains(right, options.samples)
    generation.pairs = closest_pairs(right, wrong, options.pairs_per_question)
    _record_the_others(questions, right, wrong, generation)
    generation.filter_pairs(questions, options.bounds)
    return generation


def closest_pairs(right: Sequence[Chain], wrong: Sequence[Chain], most: int) -> list[ChainPair]:
    """Pair wrong chains with the most similar right chain of the same question.

    The distance is the edit distance over words, divided by the number of words of the longer chain; of equally similar
    chains, the one that was sampled first is taken.

    Args:
        right: Chains that end in the right answer.
        wrong: Chains that end in a wrong one.
        most: Number of different wrong chains of each question, the first ones.
    """
    by_question: dict[str, list[Chain]] = {}
    for chain in right:
        by_question.setdefault(chain.question.id, []).append(chain)
    pairs = []
    for chain in distinct_chains(wrong, most):
        words = chain.text.split()
        candidates = by_question.get(chain.question.id, ())
        distances = [Levenshtein.normalized_distance(words, other.text.split()) for other in candidates]
        if distances:
            closest = candidates[distances.index(min(distances))]
            pairs.append(ChainPair(chain.question, closest.text, chain.text, SOURCE, chain.sample))
    return pairs


def _record_the_others(
    questions: Sequence[Question], right: Sequence[Chain], wrong: Sequence[Chain], generation: Generation
) -> None:
    """Record the questions without a pair, by reason."""
    some_right, some_wrong = ({chain.question.id for chain in chains} for chains in (right, wrong))
    for question in questions:
        if question.id not in some_wrong:
            reason = "every sample is right" if question.id in some_right else "no sample ends in an answer"
            generation.drop(reason, [question.id])
        elif question.id not in some_right:
            generation.drop("no sample is right", [question.id])
