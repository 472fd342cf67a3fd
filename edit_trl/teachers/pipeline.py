"""Questions -> dual CoTs (L3): annotate, verify, rectify, corrupt, verify, filter, label.

Stages run one after another over all questions. Every choice (which exemplars are shown, which chains are
paired, the order of the rows) follows from ids and the seed and never from when an answer came, so that the
same answers make the same dataset.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from edit_trl.common.errors import InputError
from edit_trl.data.answers import AnswerType, check_answer, extract_answer, infer_answer_type
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Answer, Dispatcher
from edit_trl.models.chat.display import Watcher
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, Sampling, Stage
from edit_trl.teachers.filters import Pair, filter_pairs
from edit_trl.teachers.generation import Chain, Generation, Outcome, PipelineOptions
from edit_trl.teachers.prompts import (
    LabelSet,
    TemplateName,
    Templates,
    read_chain,
    read_kinds,
    read_verdict,
    without_conclusion,
)

Slot = tuple[Question, int]
"""What a request of a stage is known by: its question, and a number among those of the question."""
# Answers a self-consistency check draws, and at what temperature.
_CHECKS, _CHECK_TEMPERATURE = 3, 0.7


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
    """Make dual CoTs of questions.

    Args:
        questions: With known answers; ids are unique.
        teacher: Writes, mends and corrupts chains.
        options: See `PipelineOptions`.
        templates: The prompts; the package's own where None.
        exemplars: Shown to the teacher; those with a wrong chain also for corrupting.
        student: Where given, its own wrong chains are mended by the teacher too (`on_policy`).
        labeller: Names mistakes; the teacher where None.
        watcher: Is told of progress.

    Raises:
        InputError: Two questions of one id.
        RunStopped: See `Dispatcher.run`; what was answered is in the journal.
    """
    run = Run(questions, options or PipelineOptions(), templates or Templates.load(), exemplars, watcher)
    made = run.made
    chains = await run.annotate(teacher)
    made.correct = [chain for chain in chains if chain.outcome == "correct"]
    wrong = run.some(chain for chain in chains if chain.outcome == "wrong")
    if run.options.rectify != "none":
        made.pairs += await run.rectify(teacher, wrong, run.options.rectify == "minimal")
    if run.options.corrupt:
        made.pairs += await run.corrupt(teacher, run.some(made.correct), made.pairs)
    if student is not None:
        own = await run.annotate(student, by_student=True)
        wrong = run.some(chain for chain in own if chain.outcome == "wrong")
        made.pairs += await run.rectify(teacher, wrong, minimal=True, source="on_policy")
    run.filter()
    if run.options.label != "none":
        made.pairs = await run.label(labeller or teacher, made.pairs, run.options.label)
    return made


class Run:
    """One generation: the stages, each from its prompts to what is made of the answers.

    Raises:
        InputError: Two questions of one id.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        options: PipelineOptions,
        templates: Templates,
        exemplars: Sequence[Exemplar],
        watcher: Watcher | None,
    ):
        counts = Counter(question.id for question in questions)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise InputError(
                f"question ids must be unique; these are not: {', '.join(map(repr, twice[:10]))}"
            )
        self.questions = questions
        self.options = options
        self.made = Generation()
        self.templates = templates
        self._exemplars = exemplars
        self._watcher = watcher

    async def annotate(self, writer: Dispatcher, *, by_student: bool = False) -> list[Chain]:
        """Chains for all questions, by question and sample."""
        template: TemplateName = "student" if by_student else "annotate"
        requests = {}
        for question in self.questions:
            if by_student:
                prompt = self.templates.student(question)
            else:
                prompt = self.templates.annotate(question, self._shown(question))
            for sample in range(self.options.samples):
                stage: Stage = "student" if by_student else "annotate"
                requests[question, sample] = self.request(stage, template, question, prompt, sample)
        answers = await self.answers(writer, requests, template)
        return _chains(answers, "on_policy" if by_student else "annotated")

    async def rectify(
        self, teacher: Dispatcher, wrong: Sequence[Chain], minimal: bool, source: str | None = None
    ) -> list[Pair]:
        """Pairs of wrong chains and their mended ones, where these end in the known answer."""
        template: TemplateName = "rectify_minimal" if minimal else "rectify"
        requests = {}
        for chain in wrong:
            if minimal:
                prompt = self.templates.rectify_minimal(chain.question, chain.text)
            else:
                prompt = self.templates.rectify(chain.question, self._shown(chain.question))
            request = self.request("rectify", template, chain.question, prompt, chain.sample)
            requests[chain.question, chain.sample] = request
        texts = {(chain.question, chain.sample): chain.text for chain in wrong}
        name = f"{template} ({source})" if source else template
        answers = await self.answers(teacher, requests, name)
        source = source or ("rectified_minimal" if minimal else "rectified")
        mended = [chain for chain in _chains(answers, source) if chain.outcome == "correct"]
        mended = await self._checked(teacher, mended, source)
        self.made.rectified += mended
        return [
            Pair(chain.question, chain.text, texts[chain.question, chain.sample], source, chain.sample)
            for chain in mended
        ]

    async def corrupt(
        self, teacher: Dispatcher, correct: Sequence[Chain], pairs: Sequence[Pair]
    ) -> list[Pair]:
        """Pairs of right chains and similar wrong ones, where these end in another answer."""
        collected: dict[str | None, list[Exemplar]] = {}
        for pair in pairs:
            question = pair.question
            collected.setdefault(question.task, []).append(
                Exemplar(question.question, pair.chosen, question.answer, pair.rejected, question.task)
            )
        requests = {
            (chain.question, chain.sample): self.request(
                "corrupt",
                "corrupt",
                chain.question,
                self.templates.corrupt(chain.question, chain.text, self._contrasts(chain, collected)),
                chain.sample,
            )
            for chain in correct
        }
        texts = {(chain.question, chain.sample): chain.text for chain in correct}
        answers = await self.answers(teacher, requests, "corrupt")
        return [
            Pair(chain.question, texts[chain.question, chain.sample], chain.text, "corrupted", chain.sample)
            for chain in _chains(answers, "corrupted")
            if chain.outcome == "wrong"
        ]

    def filter(self) -> None:
        """Keep the sound pairs, by question, and note the others."""
        made = self.made
        order = {question.id: number for number, question in enumerate(self.questions)}
        made.pairs.sort(key=lambda pair: order[pair.question.id])  # stable: by source and sample within one
        made.pairs, dropped = filter_pairs(made.pairs, self.options.bounds)
        for reason, ids in dropped.items():
            made.dropped.setdefault(reason, []).extend(ids)

    async def label(self, labeller: Dispatcher, pairs: Sequence[Pair], kinds: LabelSet) -> list[Pair]:
        """The pairs with the kinds of mistake; None where the answer was not in the form asked for."""
        requests = {}
        for number, pair in enumerate(pairs):
            prompt = self.templates.label(pair.question, pair.chosen, pair.rejected, kinds)
            requests[pair.question, number] = self.request("label", "label", pair.question, prompt, 0, number)

        def outcome(_: Slot, response: ChatResponse) -> str:
            return "unparsed" if read_kinds(response.text, kinds) is None else "labelled"

        answers = await self.answers(labeller, requests, "label", outcome)
        labelled = list(pairs)
        for (_, number), answer in answers.items():
            named = read_kinds(answer.text, kinds)
            labelled[number] = replace(
                pairs[number], mistake=None if named is None else tuple(named), mistake_text=answer.text
            )
        return labelled

    def some(self, chains: Iterable[Chain]) -> list[Chain]:
        """Of each question, the first few that differ."""
        taken: dict[str, list[Chain]] = {}
        for chain in chains:
            of_question = taken.setdefault(chain.question.id, [])
            known = {other.text for other in of_question}
            if len(of_question) < self.options.pairs_per_question and chain.text not in known:
                of_question.append(chain)
        return [chain for of_question in taken.values() for chain in of_question]

    async def _checked(self, teacher: Dispatcher, chains: Sequence[Chain], source: str) -> list[Chain]:
        """Those that a second look, which is not told the answer, agrees with."""
        check = self.options.rectify_check
        if check == "none":
            return list(chains)
        template: TemplateName = "judge" if check == "judge" else "conclude"
        draws = 1 if check == "judge" else _CHECKS
        temperature = 0.0 if check == "judge" else _CHECK_TEMPERATURE
        requests = {}
        for number, chain in enumerate(chains):
            if check == "judge":
                prompt = self.templates.judge(chain.question, chain.text)
            else:
                beginning = without_conclusion(chain.text, _answer_type(chain.question))
                prompt = self.templates.conclude(chain.question, beginning)
            for draw in range(draws):
                request = self.request(
                    "check", template, chain.question, prompt, draw, number * draws + draw, temperature
                )
                requests[chain.question, number * draws + draw] = request

        def outcome(slot: Slot, response: ChatResponse) -> str:
            if check == "judge":
                verdict = read_verdict(response.text)
                return "unparsed" if verdict is None else "sound" if verdict else "flawed"
            return answer_outcome(slot, response)

        answers = await self.answers(teacher, requests, f"check ({source})", outcome)
        votes: Counter[int] = Counter()
        for slot, answer in answers.items():
            votes[slot[1] // draws] += outcome(slot, answer) in ("sound", "correct")
        agreed = [chain for number, chain in enumerate(chains) if 2 * votes[number] > draws]
        ids = [chain.id for number, chain in enumerate(chains) if 2 * votes[number] <= draws]
        if ids:
            self.made.dropped.setdefault(f"the {check} check disagrees", []).extend(ids)
        return agreed

    def request(
        self,
        stage: Stage,
        template: TemplateName,
        question: Question,
        prompt: str,
        sample: int,
        slot: int | None = None,
        temperature: float | None = None,
    ) -> ChatRequest:
        options = self.options
        # Not to the student: rows have no system prompt, and its mistakes are those it makes on rows.
        system = [("system", options.system_prompt)] if options.system_prompt and stage != "student" else []
        if temperature is None:
            temperature = options.student_temperature if stage == "student" else options.temperature
            temperature = 0.0 if stage == "label" else temperature
        return ChatRequest(
            stage=stage,
            # The slot tells requests of one question apart; it is not sent and not part of the key.
            row_id=f"{sample if slot is None else slot}\t{question.id}",
            template=self.templates.version(template),
            messages=(*system, ("user", prompt)),
            sampling=Sampling(temperature, options.top_p, options.max_tokens),
            sample=sample,
            seed=options.seed + sample if options.send_seed else None,
        )

    async def answers(
        self,
        dispatcher: Dispatcher,
        requests: Mapping[Slot, ChatRequest],
        name: str,
        outcome: Callable[[Slot, ChatResponse], str] | None = None,
    ) -> dict[Slot, ChatResponse]:
        """Answers in the order of the requests, whenever they came; failures are noted.

        Args:
            dispatcher: Who is asked.
            requests: By slot; their row ids differ.
            name: What the stage is called.
            outcome: What an answer is counted as; by the answer it ends in where None.
        """
        counts = self.made.counts.setdefault(name, Counter())
        if self._watcher:
            self._watcher.stage(name, len(requests))
        slots = {request.row_id: slot for slot, request in requests.items()}
        answers: dict[Slot, ChatResponse] = {}
        failures = []
        async for result in dispatcher.run(requests.values()):
            slot = slots[result.request.row_id]
            if isinstance(result, Answer):
                answers[slot] = result.response
                seen = (outcome or answer_outcome)(slot, result.response)
            else:
                seen = "failed"
                failures.append((slot[0].id, name, result.reason))
            counts[seen] += 1
            if self._watcher:
                self._watcher.step(seen, isinstance(result, Answer) and result.fresh)
        self.made.failures += sorted(failures)
        return {slot: answers[slot] for slot in requests if slot in answers}

    def _shown(self, question: Question) -> list[Exemplar]:
        return self._given(question)[: self.options.exemplars_per_prompt]

    def _given(self, question: Question, *, pairs: bool = False) -> list[Exemplar]:
        """Exemplars of the question's task, else those of no task; never the question itself."""
        given = [
            exemplar
            for exemplar in self._exemplars
            if exemplar.question != question.question and (exemplar.wrong_chain is not None or not pairs)
        ]
        own = [exemplar for exemplar in given if exemplar.task == question.task]
        return own or [exemplar for exemplar in given if exemplar.task is None]

    def _contrasts(self, chain: Chain, collected: Mapping[str | None, Sequence[Exemplar]]) -> list[Exemplar]:
        """Contrastive exemplars: collected ones of the task, and given ones until there are enough."""
        wanted = self.options.exemplars_per_prompt
        pool = [e for e in collected.get(chain.question.task, ()) if e.question != chain.question.question]
        rng = random.Random(f"{self.options.seed}/{chain.question.id}/{chain.sample}")
        chosen = rng.sample(pool, min(wanted, len(pool)))
        return chosen + self._given(chain.question, pairs=True)[: wanted - len(chosen)]


def _chains(answers: Mapping[Slot, ChatResponse], source: str) -> list[Chain]:
    return [
        Chain(slot[0], read_chain(response.text), answer_outcome(slot, response), source, slot[1])
        for slot, response in answers.items()
    ]


def _answer_type(question: Question) -> AnswerType:
    return question.answer_type or infer_answer_type(question.answer)


def answer_outcome(slot: Slot, response: ChatResponse, begun: str = "") -> Outcome:
    """What the answer is worth that a response ends in, where it goes on from `begun`."""
    if response.finish_reason == "refused":
        return "refused"
    if response.finish_reason == "length":
        return "cut off"
    question = slot[0]
    kind = _answer_type(question)
    text = read_chain(begun + response.text)
    if extract_answer(text, kind) is None:
        return "unparsed"
    return check_answer(text, question.answer, kind).verdict
