"""What a generation is asked for, and what comes of it (L3)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edit_trl.common.checks import at_least, share
from edit_trl.common.errors import InputError
from edit_trl.data.questions import Question
from edit_trl.teachers.filters import Bounds, Pair

if TYPE_CHECKING:
    pass

Rectify = Literal["hint", "minimal", "none"]

RectifyCheck = Literal["none", "self_consistency", "judge"]

Label = Literal["none", "paper", "fine"]

Outcome = Literal["correct", "wrong", "unparsed", "cut off", "refused"]


@dataclass(frozen=True)
class PipelineOptions:
    """How dual CoTs are made.

    Attributes:
        samples: Chains asked for per question.
        pairs_per_question: The most pairs of a question, of each source.
        exemplars_per_prompt: The most worked examples in a prompt.
        rectify: How wrong chains are mended: a new chain with a `hint` at the answer (the paper's AHP), the
            wrong one with `minimal` changes, or `none`.
        rectify_check: A second look at mended chains that is not told the answer: `self_consistency` lets
            the teacher draw the conclusion again, `judge` asks whether each step is sound.
        corrupt: Whether right chains are corrupted (CCP).
        label: Whether kinds of mistake are named: the `paper`'s four, or the `fine` set.
        temperature: Of annotating, rectifying and corrupting.
        student_temperature: Of the student's own chains.
        top_p: Nucleus sampling.
        max_tokens: Where an answer is cut off.
        system_prompt: Sent first, where given; not to the student.
        seed: Chooses exemplars; also sent to the teacher where `send_seed` is set.
        send_seed: Some endpoints refuse a seed.
        bounds: What pairs must keep to.

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
    temperature: float = 0.2
    student_temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    system_prompt: str | None = None
    seed: int = 0
    send_seed: bool = False
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        problems = [
            *at_least(1, samples=self.samples, pairs_per_question=self.pairs_per_question),
            *at_least(1, max_tokens=self.max_tokens),
            *at_least(0, exemplars_per_prompt=self.exemplars_per_prompt, temperature=self.temperature),
            *at_least(0, student_temperature=self.student_temperature),
            *share(top_p=self.top_p),
        ]
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class PivotOptions:
    """How the pivotal steps of a student's wrong chains are found.

    Attributes:
        rollouts: Continuations that are drawn from a prefix of a chain.
        right_after: The largest share of them that may reach the right answer after a pivotal step; before
            it, more do.
        confirm_pivots: Whether as many more are drawn on both sides of the step that was found. Searching
            picks steps after which none was right by chance; without new draws those stay in.

    Raises:
        InputError: A value out of range.
    """

    rollouts: int = 8
    right_after: float = 0.0
    confirm_pivots: bool = True

    def __post_init__(self) -> None:
        problems = at_least(1, rollouts=self.rollouts)
        if not 0 <= self.right_after < 1:
            problems.append(f"`right_after` must be at least 0 and below 1, got {self.right_after}")
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class Chain:
    """A chain that was written for a question, and what its answer is worth.

    Attributes:
        question: The question.
        text: The chain.
        outcome: What its answer is worth.
        source: How it came about: `annotated`, or the source of the pair it is for.
        sample: Which of several of this source and question.
    """

    question: Question
    text: str
    outcome: Outcome
    source: str
    sample: int

    @property
    def id(self) -> str:
        """Unique in a generation; that of its pair, if it is of one."""
        return f"{self.question.id}/{self.source}/{self.sample}"


@dataclass(frozen=True)
class Pivot:
    """Where a wrong chain was lost, as its rollouts show.

    Attributes:
        pair: The id of its pair.
        step: The pivotal step, from 1.
        steps: How many the chain has.
        right_before: Continuations from before the step that reach the right answer.
        drawn_before: Of how many.
        right_after: Those from after it.
        drawn_after: Of how many; 0 where the chain ends with the step.
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
    """What came of it.

    Attributes:
        pairs: The dual CoTs, by question, source and sample.
        correct: All correct chains of the teacher (D⁺), or of the student where there is no teacher.
        rectified: Mended chains that were verified, also of pairs that were dropped; without a teacher the
            student's own right continuations.
        counts: Outcomes by stage.
        dropped: Ids of pairs by the reason why they are none; of questions where none was made.
        failures: (question id, stage, reason) of requests without an answer.
        pivots: What was found in the student's own chains, by pair; None where it was not looked for.
    """

    pairs: list[Pair] = field(default_factory=list)
    correct: list[Chain] = field(default_factory=list)
    rectified: list[Chain] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    pivots: list[Pivot] | None = None


DUAL, WARM_UP = "dual.parquet", "warm_up.parquet"
