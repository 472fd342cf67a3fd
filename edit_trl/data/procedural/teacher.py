"""The embedded teacher: problems with a correct and a wrong chain, made without a network (L3)."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from edit_trl.common.errors import InputError
from edit_trl.data.procedural.families import ANSWER_TYPES, MAKERS, Family
from edit_trl.data.procedural.problems import Problem, write_chains
from edit_trl.data.procedural.solvers import SOLVERS
from edit_trl.data.questions import Question

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from edit_trl.data.dual_cots import DualCoT

DIFFICULTIES = range(1, 6)
# A draw fails where the error does not change the answer (about half of all draws) or the problem
# was drawn before; this many failures in a row mean that the problems have run out.
_MAX_DRAWS = 2000


class ProceduralTeacher:
    """Makes dual CoTs of several families, with the exact spans of the injected error.

    The families take turns. Row i of a family depends on the family, the difficulty, the seed and
    i alone, so more rows or other families beside it never change it. Every row is checked by a
    solver that reads nothing but the question.

    Args:
        families: Names of families; all of them by default.
        seed: Another seed, other problems.
        difficulty: 1 to 5: the number of items and steps.

    Raises:
        InputError: An unknown family or one named twice, or a seed or difficulty out of range.
    """

    def __init__(self, families: Sequence[Family] | None = None, *, seed: int = 0, difficulty: int = 1):
        known = get_args(Family)
        families = known if families is None else families
        problems = _family_problems(families)
        if type(seed) is not int or seed < 0:
            problems.append(f"seed must be an integer of 0 or more, got {seed!r}")
        if type(difficulty) is not int or difficulty not in DIFFICULTIES:
            problems.append(f"difficulty must be an integer from 1 to 5, got {difficulty!r}")
        if problems:
            raise InputError(problems)
        self.families: tuple[Family, ...] = tuple(families)
        self.seed = seed
        self.difficulty = difficulty

    def rows(self, count: int) -> Iterator[DualCoT]:
        """Yields the first `count` rows, plain; no problem occurs twice.

        Raises:
            InputError: `count` is not a positive integer, or a family has too few problems of this
                difficulty.
            RuntimeError: A row that its solver does not confirm: a bug in a family.
        """
        if type(count) is not int or count < 1:
            raise InputError(f"rows must be an integer of 1 or more, got {count!r}")
        streams = [self._family_rows(family) for family in self.families]
        for index in range(count):
            yield next(streams[index % len(streams)])

    def _family_rows(self, family: Family) -> Iterator[DualCoT]:
        seen: set[str] = set()
        while True:
            row_id = f"procedural/{family}/d{self.difficulty}/s{self.seed}/{len(seen)}"
            problem = self._draw(family, random.Random(row_id), seen)
            seen.add(problem.core)
            row = _row(problem, family, row_id)
            _confirm(row, problem)
            yield row

    def _draw(self, family: Family, rng: random.Random, seen: set[str]) -> Problem:
        for _ in range(_MAX_DRAWS):
            problem = MAKERS[family](rng, self.difficulty)
            if problem is not None and problem.core not in seen:
                return problem
        raise InputError(
            f"family {family!r} has about {len(seen)} different problems at difficulty "
            f"{self.difficulty}, and more were asked for; ask for fewer rows, for more families "
            "or for a higher difficulty"
        )


def question_of(row: DualCoT) -> Question:
    """The question of a row of `ProceduralTeacher.rows`, with its answer and answer type."""
    return Question(row["id"], row["prompt"], row["answer"], ANSWER_TYPES[row["task"]], row["task"])


def generate_dual_cots(teacher: ProceduralTeacher, rows: int, *, conversational: bool = False) -> Dataset:
    """Lets the teacher make dual CoTs and validates them.

    Args:
        teacher: Who makes them.
        rows: How many.
        conversational: Messages instead of plain strings; the spans count in the message's text.

    Returns:
        A dataset with all columns of a dual CoT.

    Raises:
        InputError: As `ProceduralTeacher.rows`.
    """
    from datasets import Dataset

    from edit_trl.data.dual_cots import validate_dual_cots

    made = [_as_messages(row) if conversational else row for row in teacher.rows(rows)]
    # Named features: in a small set all spans of one side may be empty, which has no type.
    dataset = Dataset.from_list(made, features=_features(conversational))
    validate_dual_cots(dataset, source="procedural teacher")
    return dataset


def _family_problems(families: Sequence[str]) -> list[str]:
    known = get_args(Family)
    if isinstance(families, str):
        return [f"families must be a list of names, got {families!r}; try [{families!r}]"]
    problems = [_unknown_family(name) for name in families if name not in known]
    twice = sorted({str(name) for name in families if list(families).count(name) > 1})
    problems += [f"family {name!r} is named twice" for name in twice]
    if not families:
        problems.append(f"no family named; choose from: {', '.join(known)}")
    return problems


def _unknown_family(name: str) -> str:
    known = get_args(Family)
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"unknown family {name!r}; {hint}All families: {', '.join(known)}"


def _row(problem: Problem, family: Family, row_id: str) -> DualCoT:
    chains = write_chains(problem)
    return {
        "prompt": problem.question,
        "chosen": chains.chosen,
        "rejected": chains.rejected,
        "answer": "".join(problem.answer),
        "task": family,
        "mistake": [problem.mistake],
        "source": "procedural",
        "id": row_id,
        "chosen_key_spans": chains.chosen_key_spans,
        "rejected_key_spans": chains.rejected_key_spans,
    }


def _confirm(row: DualCoT, problem: Problem) -> None:
    solved = SOLVERS[row["task"]](row["prompt"])
    if solved != row["answer"] or solved == "".join(problem.wrong_answer):
        raise RuntimeError(
            f"row {row['id']} is not sound: its solver says {solved!r}, its correct chain "
            f"{row['answer']!r} and its wrong one {''.join(problem.wrong_answer)!r}; question: "
            f"{row['prompt']!r}"
        )


def _as_messages(row: DualCoT) -> DualCoT:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    turns = {column: [{"role": role, "content": row[column]}] for column, role in roles.items()}
    return {**row, **turns}


def _features(conversational: bool) -> Features:
    from datasets import Features, List, Value

    text, spans = Value("string"), List(List(Value("int64")))
    turns = List({"role": text, "content": text}) if conversational else text
    return Features(
        {
            **dict.fromkeys(("prompt", "chosen", "rejected"), turns),
            "answer": text,
            "task": text,
            "mistake": List(text),
            "source": text,
            "id": text,
            "chosen_key_spans": spans,
            "rejected_key_spans": spans,
        }
    )
