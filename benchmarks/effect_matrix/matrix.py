"""The matrix: students, sets of rows, methods and measurements, as dataclasses."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effect_matrix.student import FromScratch

Options = dict[str, Any]


@dataclass(frozen=True)
class Student:
    """A student: an existing model, or one with random weights.

    Attributes:
        path: A folder or Hub id.
        from_scratch: Sizes of a student with random weights; see `FromScratch`.
    """

    path: str | None = None
    from_scratch: dict | None = None

    @property
    def sizes(self) -> FromScratch:
        return FromScratch(**(self.from_scratch or {}))


@dataclass(frozen=True)
class Source:
    """The source of a set's rows: the procedural teacher, a file, or another set.

    Attributes:
        families: Families of the procedural teacher's problems, in turn.
        difficulty: Difficulty of these problems.
        rows: Number of problems; of a file, the number of rows from its beginning.
        problem_seed: Seed of these problems. Sets of the same seed and difficulty never share a problem.
        recorded: A JSON Lines file of questions with a teacher's responses (`question`, `answer`,
            `teacher_response`), alone or beside `families`. Training sets take only the right responses.
        recorded_rows: Number of questions of that file, in a fixed random order. No question is in two sets.
        path: Dual CoTs in a file or folder; {student} and {seed} are those of the cell.
        split: Split of `path`.
        tasks: Task files of `edit-trl evaluate`; tests only.
        of: Another set, of which this one is a part.
        hardest: Share of the pairs of `of` that is kept: those whose fork the warmed-up student is least
            confident about.
        problems_of: Another set of pairs; keep only the problems of `of` that it contains, for a control.
        wrong_chains_of: Like `problems_of`, but each problem also gets its wrong chain of that other set. If
            the student wrote that set, its mistakes stand beside the teacher's right chains.
        generate: A recipe of `edit-trl generate`. {model} is the warmed-up student of the cell, {data} the
            folder of the sets, each with a `questions.jsonl`, and {output} the folder for the pairs;
            {student} and {seed} are those of the cell.
        student_of: A method whose final model of the seed is {model} in `generate`, instead of the warm-up: the
            pairs of a second round.
    """

    families: list[str] | None = None
    difficulty: int = 1
    rows: int | None = None
    problem_seed: int = 0
    recorded: str | None = None
    recorded_rows: int | None = None
    path: str | None = None
    split: str | None = None
    tasks: list[str] | None = None
    of: str | None = None
    hardest: float | None = None
    problems_of: str | None = None
    wrong_chains_of: str | None = None
    generate: dict | None = None
    student_of: str | None = None

    @property
    def by_student(self) -> bool:
        """Whether the pairs differ between students and seeds."""
        return self.hardest is not None or self.beside is not None or self.generate is not None

    @property
    def beside(self) -> str | None:
        """The other set of pairs that gives the problems or wrong chains."""
        return self.problems_of or self.wrong_chains_of


@dataclass(frozen=True)
class Method:
    """A method for the second stage of training.

    Attributes:
        recipe: A recipe of `edit-trl train`, whose last stage is used.
        options: Options of `edit-trl train`, which override the recipe's.
        grid: Option -> the values to try; the best on the dev set is used.
        pairs: The set of pairs to train on.
        label: Name of the method in tables.
        control: Another method to compare with, beside the baseline: SFT on the same pairs, if these are not
            the baseline's.
        start: Another method, whose final model of the seed is trained further; the warm-up where None.
        evaluation: Options of `edit-trl evaluate` for the tests, which override the matrix's. Where `votes` weighs the
            samples, their plain majority is a row of its own in the tables.
        measures: Another method, whose final model of the seed is measured with `evaluation`; nothing is trained.
    """

    recipe: str | None = None
    options: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    pairs: str = "new"
    label: str | None = None
    control: str | None = None
    start: str | None = None
    evaluation: dict = field(default_factory=dict)
    measures: str | None = None

    @property
    def points(self) -> list[Options]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Power:
    """The difference that must be detectable, and assumptions about the runs.

    Attributes:
        difference: Smallest true difference of accuracy that must be detectable; no check where None.
        test: The test set that must show it; the first one where None.
        discordant: Assumed share of items in which two runs differ.
        seed_sd: Assumed standard deviation of accuracy between seeds of one warm-up.
    """

    difference: float | None = None
    test: str | None = None
    discordant: float = 0.3
    seed_sd: float = 0.01


@dataclass(frozen=True)
class Collapse:
    """A check whether a method also works with other strengths and seeds.

    Attributes:
        method: The method, with the learning rate chosen on the dev set.
        variants: Name -> options that override the method's.
        seeds: Number of seeds of the second stage; they start from the warm-ups in turn.
    """

    method: str
    variants: dict
    seeds: int = 10


@dataclass(frozen=True)
class Evaluation:
    """How answers are generated, always greedily.

    Attributes:
        batch_size: Number of responses per batch.
        max_new_tokens: Maximum number of tokens in a response.
        dtype: Number format of the weights.
    """

    batch_size: int = 100
    max_new_tokens: int = 200
    dtype: str = "float32"


@dataclass(frozen=True)
class Data:
    """The sets of rows, by their use; see `Source`."""

    warm_up: Source
    dev: Source
    tests: dict[str, Source]
    pairs: dict[str, Source]
    held_out: Source

    def named(self) -> dict[str, Source]:
        """Every set by the name of its folder, in the order in which they get their problems."""
        sets = {"warm_up": self.warm_up, "dev": self.dev, "held_out": self.held_out}
        sets |= {f"test_{name}": source for name, source in self.tests.items()}
        return sets | {f"pairs_{name}": source for name, source in self.pairs.items()}


@dataclass(frozen=True)
class Matrix:
    """Everything that a matrix file asks for."""

    path: Path
    students: dict[str, Student]
    seeds: list[int]
    tuning_seed: int
    data: Data
    warm_up: Options
    stage_2: Options
    methods: dict[str, Method]
    baseline: str
    evaluation: Evaluation
    power: Power
    collapse: Collapse | None
    paths: dict[str, str] = field(default_factory=dict)
