"""The options of a generation, and its result: chains, pairs and what was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edit_trl.common.checks import at_least, positive, seed_range, share
from edit_trl.common.options import Options
from edit_trl.common.thoughts import Thoughts
from edit_trl.data.questions import Question
from edit_trl.teachers.filters import Bounds, ChainPair, filter_pairs

DUAL, WARM_UP = "dual.parquet", "warm_up.parquet"
"""The files of a generation: the pairs, and the correct chains for the warm-up."""

Rectify = Literal["hint", "minimal", "none"]
RectifyCheck = Literal["none", "self_consistency", "judge"]
Label = Literal["none", "paper", "fine", "steps"]
Outcome = Literal["correct", "wrong", "unparsed", "cut off", "refused"]


@dataclass(frozen=True)
class PipelineOptions(Options):
    """How dual CoTs are made.

    Attributes:
        samples: Number of chains per question.
        pairs_per_question: Maximum number of pairs per question and source.
        exemplars_per_prompt: Maximum number of worked examples in a prompt.
        rectify: How wrong chains are rectified: a new chain with a `hint` at the answer (the paper's AHP),
            the wrong chain with `minimal` changes, or `none`.
        rectify_check: A second check of rectified chains, whose prompt does not tell the answer:
            `self_consistency` lets the teacher draw the conclusion again, `judge` asks whether every step is sound.
        corrupt: Whether correct chains are corrupted (CCP).
        label: What is named of each mistake: its kinds, by the `paper`'s four or the `fine` set, or the `steps` that
            carry it, which become the key steps of `key_step_method: spans`. Pairs whose steps cannot be read, or do
            not differ between the chains, are dropped.
        critique: Whether a critique of each wrong chain is written, for the views `critique` and `lema`. One that
            finds no mistake, or has no verdict, is left out; its pair stays.
        temperature: Temperature for annotating, rectifying and corrupting. An endpoint is sent none if it is null.
        student_temperature: Temperature of the student's own chains; also null.
        top_p: Nucleus sampling; also null.
        max_tokens: Maximum number of tokens in an answer, thoughts included.
        thoughts: What becomes of the thoughts of a reasoning model: a chain has them before its answer, between
            `<think>` and `</think>` (`keep`), it is the answer alone (`drop`), or the thoughts alone, with the
            sentence that states the result (`only`). What is verified is the answer, in any case.
        max_thinking_tokens: Number of tokens of thoughts above which an answer counts as cut off. An endpoint must
            report the number (`reasoning_tokens`).
        system_prompt: System prompt for the teacher; the student gets none.
        seed: Seed for choosing exemplars; also sent to the teacher if `send_seed` is set.
        send_seed: Whether to send the seed; some endpoints refuse one.
        bounds: Limits that every pair must respect.

    Raises:
        InputError: A value out of range.
    """

    samples: int = 1
    pairs_per_question: int = 1
    exemplars_per_prompt: int = 3
    rectify: Rectify = "hint"
    rectify_check: RectifyCheck = "none"
    corrupt: bool = True
    label: Label = "none"
    critique: bool = False
    temperature: float | None = 0.2
    student_temperature: float | None = 0.7
    top_p: float | None = 1.0
    max_tokens: int = 1024
    thoughts: Thoughts = "drop"
    max_thinking_tokens: int | None = None
    system_prompt: str | None = None
    seed: int = 0
    send_seed: bool = False
    bounds: Bounds = field(default_factory=Bounds)

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from at_least(
            1, samples=self.samples, pairs_per_question=self.pairs_per_question, max_tokens=self.max_tokens
        )
        yield from positive(max_thinking_tokens=self.max_thinking_tokens)
        if (self.max_thinking_tokens or 0) >= self.max_tokens:
            yield (
                f"`max_thinking_tokens: {self.max_thinking_tokens}` has no effect with `max_tokens: "
                f"{self.max_tokens}`, which limits thoughts and answer together; set it lower"
            )
        yield from at_least(0, exemplars_per_prompt=self.exemplars_per_prompt)
        yield from at_least(0, temperature=self.temperature, student_temperature=self.student_temperature)
        yield from share(top_p=self.top_p)
        yield from seed_range(seed=self.seed)


@dataclass(frozen=True)
class PivotOptions(Options):
    """How the pivotal steps of a student's wrong chains are found.

    Attributes:
        rollouts: The most continuations drawn from a prefix of a chain. Fewer are drawn where the others cannot change
            whether the prefix is lost.
        right_after: The largest share of continuations that may reach the right answer after a pivotal step;
            before the step, more do.
        confirm_pivots: Whether to draw as many rollouts again on both sides of each step found. A search also
            finds steps after which no rollout was right by chance; only new rollouts sort these out.

    Raises:
        InputError: A value out of range.
    """

    rollouts: int = 8
    right_after: float = 0.0
    confirm_pivots: bool = True

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from at_least(1, rollouts=self.rollouts)
        if not 0 <= self.right_after < 1:
            yield f"`right_after` must be at least 0 and below 1, got {self.right_after}"


@dataclass(frozen=True)
class Chain:
    """A chain that a model wrote for a question.

    Attributes:
        question: The question.
        text: The chain.
        outcome: Whether its final answer is correct, or why there is none.
        source: The chain's origin: `annotated`, or the source of the pair it is made for.
        sample: Number of the chain among those of the same source and question.
        has_thoughts: Whether the text has thoughts, or consists of them.
    """

    question: Question
    text: str
    outcome: Outcome
    source: str
    sample: int
    has_thoughts: bool = False

    @property
    def id(self) -> str:
        """Unique in a generation; equal to the id of the chain's pair."""
        return f"{self.question.id}/{self.source}/{self.sample}"

    @property
    def slot(self) -> tuple[Question, int]:
        """Identifies the request that the chain answers."""
        return self.question, self.sample


@dataclass(frozen=True)
class Pivot:
    """The pivotal step of a wrong chain, and the rollouts that show it.

    Attributes:
        pair: The id of the chain's pair.
        step: Number of the pivotal step, from 1.
        steps: Number of steps of the chain.
        right_before: Continuations from before the step that reach the right answer.
        drawn_before: All continuations from before the step.
        right_after: Continuations from after the step that reach the right answer.
        drawn_after: All continuations from after the step; 0 where the chain ends with the step.
    """

    pair: str
    step: int
    steps: int
    right_before: int
    drawn_before: int
    right_after: int
    drawn_after: int


@dataclass
class Generation:
    """The result of a generation.

    Attributes:
        pairs: The dual CoTs, in the order of question, source and sample.
        correct: All correct chains of the teacher (D⁺), or of the student where there is no teacher.
        rectified: Rectified chains that were verified, also those of dropped pairs; without a teacher, the
            student's own right continuations.
        counts: Number of answers by stage and outcome.
        dropped: Ids of dropped pairs, and of questions without a pair, by reason.
        failures: (question id, stage, reason) of every request without an answer.
        pivots: The pivotal step of each pair; None where there was no search for them.
        thoughts: What became of thoughts; see `PipelineOptions`.
        with_thoughts: Number of answers that had thoughts.
    """

    pairs: list[ChainPair] = field(default_factory=list)
    correct: list[Chain] = field(default_factory=list)
    rectified: list[Chain] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    pivots: list[Pivot] | None = None
    thoughts: Thoughts = "drop"
    with_thoughts: int = 0

    def filter_pairs(self, questions: Sequence[Question], bounds: Bounds) -> None:
        """Sort the pairs by question, keep those within the bounds and record why the others were dropped."""
        order = {question.id: number for number, question in enumerate(questions)}
        # The sort is stable: pairs of one question stay in the order of source and sample.
        self.pairs.sort(key=lambda pair: order[pair.question.id])
        self.pairs, dropped = filter_pairs(self.pairs, bounds)
        for reason, ids in dropped.items():
            self.drop(reason, ids)

    def drop(self, reason: str, ids: Sequence[str]) -> None:
        """Record why questions or pairs are dropped."""
        if ids:
            self.dropped.setdefault(reason, []).extend(ids)
