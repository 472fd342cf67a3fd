"""Sends the requests of a stage and reads the answers; their order does not depend on when they arrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.answers import check_answer
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Answer, Dispatcher
from edit_trl.models.chat.display import Watcher
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, Sampling, Stage
from edit_trl.teachers.chain_text import chain_text
from edit_trl.teachers.generation import Chain, Generation, Outcome, PipelineOptions
from edit_trl.teachers.prompts import WITH_THOUGHTS, TemplateName, Templates, read_chain

_STAGES: dict[TemplateName, Stage] = {
    "annotate": "annotate",
    "rectify": "rectify",
    "rectify_minimal": "rectify",
    "corrupt": "corrupt",
    "conclude": "check",
    "judge": "check",
    "label": "label",
    "label_steps": "label",
    "critique": "critique",
    "student": "student",
}

Slot = tuple[Question, int]
"""Identifies a request of a stage: its question, and its number among the requests of that question."""


def answer_outcome(slot: Slot, response: ChatResponse) -> Outcome:
    """Return the outcome of a response, whose answer is graded without its thoughts."""
    if response.finish_reason == "refused":
        return "refused"
    if response.finish_reason == "length":
        return "cut off"
    question = slot[0]
    return check_answer(read_chain(response.text), question.answer, question.answer_type).verdict


@dataclass
class Requests:
    """Makes the requests of one generation and runs them, stage by stage; the ids of questions tell them apart.

    `generation` is the result so far, with the outcomes and failures of every stage; `watcher` receives the progress.

    Raises:
        InputError: Two questions have the same id.
    """

    questions: Sequence[Question]
    options: PipelineOptions
    templates: Templates
    watcher: Watcher | None = None
    generation: Generation = field(default_factory=Generation)

    def __post_init__(self) -> None:
        counts = Counter(question.id for question in self.questions)
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise InputError(f"question ids must be unique; these are not: {', '.join(map(repr, repeated[:10]))}")
        self.generation.thoughts = self.options.thoughts

    def make(
        self,
        template: TemplateName,
        question: Question,
        sample: int,
        *,
        number: int | None = None,
        temperature: float | None = None,
        exemplars: Iterable[Exemplar] = (),
        like: Chain | None = None,
        **values: str,
    ) -> ChatRequest:
        """Make a request.

        Args:
            template: The template of the prompt.
            question: The question.
            sample: The number of the answer among several to the same prompt.
            number: That of the request's slot, `sample` by default.
            temperature: In place of that of the options.
            exemplars: See `Templates.fill`.
            like: The chain that the answer rewrites or replaces, which the prompt may show.
            values: See `Templates.fill`.
        """
        options, is_student = self.options, template == "student"
        # No system prompt for the student: rows have none, and its mistakes should be those it makes on rows.
        system = [("system", options.system_prompt)] if options.system_prompt and not is_student else []
        chosen = options.student_temperature if is_student else options.temperature
        # A teacher that takes no temperature takes none in any stage.
        temperature = chosen if temperature is None or chosen is None else temperature
        prompt = self.templates.fill(template, question, exemplars, **({"chain": like.text} if like else {}), **values)
        if options.thoughts == "keep" and like and like.has_thoughts:
            prompt = WITH_THOUGHTS + prompt
        return ChatRequest(
            stage=_STAGES[template],
            # The number tells requests of one question apart; it is neither sent nor part of the journal's key.
            row_id=f"{sample if number is None else number}\t{question.id}",
            template=self.templates.version(template),
            messages=(*system, ("user", prompt)),
            sampling=Sampling(
                temperature, options.top_p, options.max_tokens, max_thinking_tokens=options.max_thinking_tokens
            ),
            sample=sample,
            seed=options.seed + sample if options.send_seed else None,
        )

    async def run(
        self,
        dispatcher: Dispatcher,
        requests: Mapping[Slot, ChatRequest],
        name: str,
        outcome: Callable[[Slot, ChatResponse], str] = answer_outcome,
    ) -> dict[Slot, ChatResponse]:
        """Send requests; outcomes are counted and failures recorded in the generation, under the stage's `name`.

        Returns:
            The answers, in the order of the requests; requests that failed are missing.
        """
        counts = self.generation.counts.setdefault(name, Counter())
        if self.watcher:
            self.watcher.stage(name, len(requests))
        slots = {request.row_id: slot for slot, request in requests.items()}
        answers: dict[Slot, ChatResponse] = {}
        failures = []
        async for result in dispatcher.run(requests.values()):
            slot = slots[result.request.row_id]
            if isinstance(result, Answer):
                answers[slot] = result.response
                self.generation.with_thoughts += bool(split_thoughts(result.response.text).thoughts)
                label = outcome(slot, result.response)
            else:
                label = "failed"
                failures.append((slot[0].id, name, result.reason))
            counts[label] += 1
            if self.watcher:
                self.watcher.step(label, result.fresh)
        self.generation.failures += sorted(failures)
        return {slot: answers[slot] for slot in requests if slot in answers}

    def chains_of(
        self, answers: Mapping[Slot, ChatResponse], source: str, like: Mapping[Slot, Chain] | None = None
    ) -> list[Chain]:
        """Return the chains that answers consist of, with their outcomes.

        Args:
            answers: The answers to a stage's requests.
            source: See `Chain`.
            like: The chains that they rewrite or replace, if there are such.
        """
        chains = []
        for slot, response in answers.items():
            old = None if like is None else like[slot]
            text, has_thoughts = chain_text(
                response.text,
                self.options.thoughts,
                slot[0].kind,
                None if old is None else old.text,
                has_thoughts=old is None or old.has_thoughts,
            )
            chains.append(Chain(slot[0], text, answer_outcome(slot, response), source, slot[1], has_thoughts))
        return chains


def distinct_chains(chains: Iterable[Chain], most: int) -> list[Chain]:
    """Return the first `most` chains of each question that differ in text."""
    by_question: dict[str, dict[str, Chain]] = {}
    for chain in chains:
        texts = by_question.setdefault(chain.question.id, {})
        if len(texts) < most:
            texts.setdefault(chain.text, chain)
    return [chain for texts in by_question.values() for chain in texts.values()]
