"""What a matrix asks for: its YAML file, read and checked.

students: {scratch_2m: {from_scratch: {hidden_size: 192}}}
seeds: [0, 1, 2]
data:
  warm_up: {families: [arithmetic], rows: 4000}
  pairs: {new: {families: [arithmetic], rows: 1600}, hard: {of: new, hardest: 0.5}}
  dev: {families: [arithmetic], rows: 300}
  held_out: {families: [arithmetic], rows: 300}
  tests: {in_domain: {families: [arithmetic], rows: 600}}
warm_up: {learning_rate: 2.0e-3, num_train_epochs: 3}
stage_2: {max_steps: 150}
methods:
  sft: {options: {chosen_key_weight: 1.0, preference_weight: 0.0}, grid: {learning_rate: [1.0e-4, 3.0e-4]}}
baseline: sft
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.options import convert, hints_of, nearest, read_yaml
from effect_matrix.problems import matrix_problems, nearest_of
from effect_matrix.student import FromScratch

Options = dict[str, Any]


@dataclass(frozen=True)
class Student:
    """A student: one that exists, or one that is made.

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
    """Where rows come from: the procedural teacher, a file, or another set.

    Attributes:
        families: Families of the procedural teacher's problems, in turn.
        difficulty: Of these problems.
        rows: How many; of a file, the first so many.
        problem_seed: Of these problems. Sets of one seed and difficulty never share a problem.
        recorded: A JSON Lines file of questions with a teacher's responses (`question`, `answer`,
            `teacher_response`), alone or beside `families`; training sets take the right ones alone.
        recorded_rows: How many of its questions, in a fixed random order; as of families, no question is in
            two sets.
        path: Dual CoTs in a file or folder; {student} and {seed} stand for the cell's.
        split: Of `path`.
        tasks: Task files of `edit-trl evaluate`; tests only.
        of: Another set, of which this one is a part.
        hardest: Share of the pairs of `of` whose fork the warmed-up student decides least surely.
        problems_of: Only the problems of `of` that are in this other set of pairs, for a control.
        wrong_chains_of: As `problems_of`, and each with the wrong chain of that other set: where that is of
            the student's own chains, its mistakes beside the teacher's right chains.
        generate: A recipe of `edit-trl generate`: {model} is the warmed-up student of the cell, {data} the
            folder of the sets, each with its `questions.jsonl`, {output} where the pairs go; {student} and
            {seed} are filled in too.
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

    @property
    def by_student(self) -> bool:
        """Whether each warmed-up student has pairs of its own."""
        return self.hardest is not None or self.beside is not None or self.generate is not None

    @property
    def beside(self) -> str | None:
        """The other set of pairs that this one takes problems or wrong chains from."""
        return self.problems_of or self.wrong_chains_of


@dataclass(frozen=True)
class Method:
    """A way to train the second stage.

    Attributes:
        recipe: A recipe of `edit-trl train`, beside the options; of its stages the last counts.
        options: Options of `edit-trl train`, over the recipe's.
        grid: Option -> the values tried; the best on the dev set is taken.
        pairs: The set that it is trained on.
        label: What tables call it.
        control: Another method, which it is compared with too: SFT on the same pairs, where those are not the
            baseline's.
    """

    recipe: str | None = None
    options: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    pairs: str = "new"
    label: str | None = None
    control: str | None = None

    @property
    def points(self) -> list[Options]:
        """Every combination of the grid's values."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Power:
    """What a difference must be to be seen, from what is supposed of the runs.

    Attributes:
        difference: The smallest true difference of accuracy that must be detectable; not asked where None.
        test: The test set that counts; the first where None.
        discordant: Share of the items in which two runs are supposed to differ.
        seed_sd: Standard deviation of accuracy between seeds of one warm-up, as supposed.
    """

    difference: float | None = None
    test: str | None = None
    discordant: float = 0.3
    seed_sd: float = 0.01


@dataclass(frozen=True)
class Collapse:
    """Whether a method holds at other strengths and seeds.

    Attributes:
        method: The method; its learning rate is the one chosen on dev.
        variants: Name -> options over the method's.
        seeds: How many seeds of the second stage, starting from the warm-ups in turn.
    """

    method: str
    variants: dict
    seeds: int = 10


@dataclass(frozen=True)
class Evaluation:
    """How answers are drawn, always greedily.

    Attributes:
        batch_size: Responses at once.
        max_new_tokens: Where a response is cut off.
    """

    batch_size: int = 100
    max_new_tokens: int = 200


@dataclass(frozen=True)
class Data:
    """The sets, by their use; see `Source`."""

    warm_up: Source
    dev: Source
    tests: dict[str, Source]
    pairs: dict[str, Source]
    held_out: Source

    def named(self) -> dict[str, Source]:
        """Every set by the name of its folder, in the order in which problems are dealt."""
        sets = {"warm_up": self.warm_up, "dev": self.dev, "held_out": self.held_out}
        sets |= {f"test_{name}": source for name, source in self.tests.items()}
        return sets | {f"pairs_{name}": source for name, source in self.pairs.items()}


@dataclass(frozen=True)
class Matrix:
    """A matrix as its file has it; see the module."""

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


_REQUIRED = ("students", "seeds", "data", "warm_up", "stage_2", "methods", "baseline")
_KEYS = (*_REQUIRED, "tuning_seed", "evaluation", "power", "collapse")


def read_matrix(path: Path, paths: Mapping[str, str] | None = None) -> Matrix:
    """Read a matrix; what its options mean to the trainer is checked by `check_options`.

    Args:
        path: Its file.
        paths: Instead of those in the file's `paths`, whose names stand in braces elsewhere.

    Raises:
        InputError: All that is wrong with it at once.
    """
    values = read_yaml(path, "matrix")
    known = values.pop("paths", {})
    unknown = [name for name in paths or {} if name not in known]
    if unknown:
        raise InputError(f"{path} has no path {unknown[0]!r}{nearest_of(unknown[0], known)}")
    values = _filled(values, {**known, **(paths or {})})
    problems = [f"unknown key `{name}`{nearest(name, _KEYS)}" for name in values if name not in _KEYS]
    problems += [f"`{name}` is missing" for name in _REQUIRED if name not in values]
    if problems:
        raise InputError(problems, heading=f"{path}:")
    reader = _Reader()
    students = reader.each("students", values["students"], Student)
    methods = reader.each("methods", values["methods"], Method)
    data = reader.data(values["data"])
    parts = {
        name: reader.one(name, values.get(name, {}), kind)
        for name, kind in (("evaluation", Evaluation), ("power", Power))
    }
    collapse = reader.one("collapse", values["collapse"], Collapse) if values.get("collapse") else None
    if not reader.problems:
        seeds = values["seeds"] if isinstance(values["seeds"], list) else [values["seeds"]]
        tuning = values.get("tuning_seed", seeds[0] if seeds else 0)
        options = (values["warm_up"], values["stage_2"], methods, values["baseline"])
        matrix = Matrix(path, students, seeds, tuning, data, *options, **parts, collapse=collapse)
        reader.problems += matrix_problems(matrix)
    if reader.problems:
        raise InputError(reader.problems, heading=f"{path}:")
    return matrix


def _filled(value: Any, paths: Mapping[str, str]) -> Any:
    """A value with {NAME} replaced by the path of that name, wherever it stands."""
    if isinstance(value, Mapping):
        return {key: _filled(of, paths) for key, of in value.items()}
    if isinstance(value, list):
        return [_filled(of, paths) for of in value]
    if isinstance(value, str):
        for name, path in paths.items():
            value = value.replace(f"{{{name}}}", path)
    return value


class _Reader:
    """Turns mappings into dataclasses and gathers what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def one(self, where: str, values: Any, kind: type) -> Any:
        if not isinstance(values, Mapping):
            self.problems.append(f"`{where}` must be a mapping, got {values!r}")
            return None
        converted, problems = convert(values, hints_of([kind]))
        lacking = [f.name for f in fields(kind) if f.name not in values and _is_required(f)]
        problems += [f"`{name}` is missing" for name in lacking]
        self.problems += [f"`{where}`: {problem}" for problem in problems]
        return None if problems else kind(**converted)

    def each(self, where: str, values: Any, kind: type) -> dict[str, Any]:
        if not isinstance(values, Mapping) or not values:
            self.problems.append(f"`{where}` must be a mapping of at least one name, got {values!r}")
            return {}
        odd = [name for name in values if not (isinstance(name, str) and name.isidentifier())]
        self.problems += [f"`{where}`: a name has letters, digits and _, got {name!r}" for name in odd]
        return {name: self.one(f"{where}.{name}", of, kind) for name, of in values.items()}

    def data(self, values: Any) -> Data | None:
        if not isinstance(values, Mapping):
            self.problems.append(f"`data` must be a mapping, got {values!r}")
            return None
        names = [f.name for f in fields(Data)]
        problems = [
            f"`data`: unknown set `{name}`{nearest(name, names)}" for name in values.keys() - {*names}
        ]
        problems += [f"`data`: the set `{name}` is missing" for name in names if name not in values]
        self.problems += problems
        if problems:
            return None
        several = {name: self.each(f"data.{name}", values[name], Source) for name in ("tests", "pairs")}
        single = {
            name: self.one(f"data.{name}", values[name], Source) for name in ("warm_up", "dev", "held_out")
        }
        return Data(**single, **several)


def _is_required(of: Any) -> bool:
    from dataclasses import MISSING

    return of.default is MISSING and of.default_factory is MISSING
