"""Makes dual CoTs from questions: annotate, verify, rectify, corrupt, verify, filter, label, criticise.

Each stage runs over all questions before the next one starts. Every choice (which exemplars a prompt has,
which chains are paired, the order of the rows) depends on ids and the seed only, never on when an answer
arrives, so that the same answers make the same dataset.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.display import Watcher
from edit_trl.models.chat.protocol import ChatResponse
from edit_trl.teachers.filters import ChainPair
from edit_trl.teachers.generation import Chain, Generation, PipelineOptions
from edit_trl.teachers.labelling import Labelling
from edit_trl.teachers.prompts import (
    TemplateName,
    Templates,
    read_verdict,
    without_conclusion,
)
from edit_trl.teachers.requests import Requests, Slot, answer_outcome, distinct_chains

# The number of conclusions that a self-consistency check draws, and their temperature.
_DRAWS, _DRAW_TEMPERATURE = 3, 0.7


async def make_dual_cots(
    questions: Sequence[Question],
    teacher: Dispatcher,
    *,
    options: PipelineOptions | None = None,
    templates: Templates | None = None,
    exemplars: Sequence[Exemplar] = (),
    student: Dispatcher | None = None,
    labeller: Dispatcher | None = None,
    watcher: Watcher | None = None,
) -> Generation:
    """Make dual CoTs from questions.

    Args:
        questions: Questions with known answers and unique ids.
        teacher: Writes, rectifies and corrupts chains.
        options: How dual CoTs are made.
        templates: The prompt templates; the package's own where None.
        exemplars: Worked examples for the teacher's prompts. Those with a wrong chain are also used to corrupt.
        student: Where given, the teacher also rectifies the student's own wrong chains (`on_policy`).
        labeller: Names the kinds or steps of mistakes, and criticises wrong chains; the teacher where None.
        watcher: Receives the progress.

    Raises:
        InputError: Two questions have the same id.
        RunStopped: See `Dispatcher.run`; the journal holds every answer so far.
    """
    options = options or PipelineOptions()
    requests = Requests(questions, options, templates or Templates.load(), watcher)
    pipeline, generation = Pipeline(requests, exemplars), requests.generation
    chains = await pipeline.annotate(teacher)
    generation.correct = [chain for chain in chains if chain.outcome == "correct"]
    if options.rectify != "none":
        generation.pairs += await pipeline.rectify(teacher, chains, minimal=options.rectify == "minimal")
    if options.corrupt:
        generation.pairs += await pipeline.corrupt(teacher, chains)
    if student is not None:
        chains = await pipeline.annotate(student, by_student=True)
        generation.pairs += await pipeline.rectify(teacher, chains, minimal=True, source="on_policy")
    generation.filter_pairs(questions, options.bounds)
    labelling = Labelling(requests, labeller or teacher)
    if options.label == "steps":
        await labelling.label_steps()
    elif options.label != "none":
        await labelling.label_kinds(options.label)
    if options.critique:
        await labelling.criticise()
    return generation


@dataclass
class Pipeline:
    """The stages of one generation; each makes its prompts and turns the answers into chains or pairs."""

    requests: Requests
    exemplars: Sequence[Exemplar]

    async def annotate(self, writer: Dispatcher, *, by_student: bool = False) -> list[Chain]:
        """Ask for `samples` chains of every question; return them in the order of the questions."""
        template: TemplateName = "student" if by_student else "annotate"
        requests = {
            (question, sample): self.requests.make(template, question, sample, exemplars=self._exemplars_for(question))
            for question in self.requests.questions
            for sample in range(self.requests.options.samples)
        }
        answers = await self.requests.run(writer, requests, template)
        return self.requests.chains_of(answers, "on_policy" if by_student else "annotated")

    async def rectify(
        self, teacher: Dispatcher, chains: Sequence[Chain], minimal: bool, source: str | None = None
    ) -> list[ChainPair]:
        """Pair wrong chains with their rectifications, where these end in the known answer."""
        template: TemplateName = "rectify_minimal" if minimal else "rectify"
        wrong = self._by_slot(chains, "wrong")
        requests = {}
        for slot, chain in wrong.items():
            exemplars = self._exemplars_for(chain.question)
            requests[slot] = self.requests.make(template, *slot, exemplars=exemplars, like=chain)
        stage = f"{template} ({source})" if source else template
        answers = await self.requests.run(teacher, requests, stage)
        source = source or ("rectified_minimal" if minimal else "rectified")
        rectified = [chain for chain in self.requests.chains_of(answers, source, wrong) if chain.outcome == "correct"]
        rectified = await self._confirmed(teacher, rectified, source)
        self.requests.generation.rectified += rectified
        return [
            ChainPair(chain.question, chain.text, wrong[chain.slot].text, source, chain.sample) for chain in rectified
        ]

    async def corrupt(self, teacher: Dispatcher, chains: Sequence[Chain]) -> list[ChainPair]:
        """Pair correct chains with similar wrong ones, where these end in another answer."""
        examples: dict[str | None, list[Exemplar]] = {}
        for pair in self.requests.generation.pairs:
            question = pair.question
            examples.setdefault(question.task, []).append(
                Exemplar(question.question, pair.chosen, question.answer, pair.rejected, question.task)
            )
        correct = self._by_slot(chains, "correct")
        requests = {}
        for slot, chain in correct.items():
            contrasts = self._contrasts(chain, examples.get(chain.question.task, ()))
            requests[slot] = self.requests.make("corrupt", *slot, exemplars=contrasts, like=chain)
        answers = await self.requests.run(teacher, requests, "corrupt")
        return [
            ChainPair(chain.question, correct[chain.slot].text, chain.text, "corrupted", chain.sample)
            for chain in self.requests.chains_of(answers, "corrupted", correct)
            if chain.outcome == "wrong"
        ]

    def _by_slot(self, chains: Sequence[Chain], outcome: str) -> dict[Slot, Chain]:
        """Return the chains of an outcome that are used, at most `pairs_per_question` of each question."""
        matches = (chain for chain in chains if chain.outcome == outcome)
        return {chain.slot: chain for chain in distinct_chains(matches, self.requests.options.pairs_per_question)}

    async def _confirmed(self, teacher: Dispatcher, chains: Sequence[Chain], source: str) -> list[Chain]:
        """Return the rectified chains that `rectify_check` confirms; its prompts do not tell the known answer."""
        check = self.requests.options.rectify_check
        if check == "none":
            return list(chains)
        by_judge = check == "judge"
        draws = 1 if by_judge else _DRAWS
        requests = {}
        for number, chain in enumerate(chains):
            question = chain.question
            text = chain.text if by_judge else without_conclusion(chain.text, question.kind)
            for draw in range(draws):
                slot = question, number * draws + draw
                requests[slot] = self.requests.make(
                    "judge" if by_judge else "conclude",
                    question,
                    draw,
                    number=slot[1],
                    temperature=0.0 if by_judge else _DRAW_TEMPERATURE,
                    chain=text,
                )

        def outcome(slot: Slot, response: ChatResponse) -> str:
            if not by_judge:
                return answer_outcome(slot, response)
            verdict = read_verdict(response.text)
            return "unparsed" if verdict is None else "sound" if verdict else "flawed"

        answers = await self.requests.run(teacher, requests, f"check ({source})", outcome)
        votes: Counter[int] = Counter()
        for slot, answer in answers.items():
            votes[slot[1] // draws] += outcome(slot, answer) in ("sound", "correct")
        confirmed = [chain for number, chain in enumerate(chains) if 2 * votes[number] > draws]
        ids = [chain.id for number, chain in enumerate(chains) if 2 * votes[number] <= draws]
        self.requests.generation.drop(f"the {check} check disagrees", ids)
        return confirmed

    def _exemplars_for(self, question: Question, *, pairs: bool = False) -> list[Exemplar]:
        """Return the exemplars of the question's task, else those of no task; never the question itself."""
        others = [
            exemplar
            for exemplar in self.exemplars
            if exemplar.question != question.question and (exemplar.wrong_chain is not None or not pairs)
        ]
        same_task = [exemplar for exemplar in others if exemplar.task == question.task]
        exemplars = same_task or [exemplar for exemplar in others if exemplar.task is None]
        return exemplars[: self.requests.options.exemplars_per_prompt]

    def _contrasts(self, chain: Chain, examples: Sequence[Exemplar]) -> list[Exemplar]:
        """Return exemplars with both chains: a draw from the task's own pairs, filled up with given exemplars."""
        count = self.requests.options.exemplars_per_prompt
        pool = [example for example in examples if example.question != chain.question.question]
        rng = random.Random(f"{self.requests.options.seed}/{chain.question.id}/{chain.sample}")
        sample = rng.sample(pool, min(count, len(pool)))
        return sample + self._exemplars_for(chain.question, pairs=True)[: count - len(sample)]
