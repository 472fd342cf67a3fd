"""The embedded teacher: makes problems with a correct and a wrong chain, without a network."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from edit_trl.common.errors import InputError
from edit_trl.common.options import nearest
from edit_trl.data.procedural.families import ANSWER_TYPES, MAKERS, Family
from edit_trl.data.procedural.problems import Problem, write_chains
from edit_trl.data.procedural.solvers import SOLVERS
from edit_trl.data.questions import Question
from edit_trl.data.row import DualCoT, column_types
from edit_trl.data.row_checks import validate_dual_cots

if TYPE_CHECKING:
    from datasets import Dataset


DIFFICULTIES = range(1, 6)
# A draw fails if the mistake does not change the answer (about half of all draws) or if the problem was drawn
# before. After so many failures in a row, all problems have been drawn.
_MAX_DRAWS = 2000


class ProceduralTeacher:
    """Makes dual CoTs of several families, with the exact spans of the injected mistake.

    The families take turns. Row i of a family depends only on the family, the difficulty, the seed and i, so
    more rows or other families never change it. A solver that only reads the question checks every row.

    Args:
        families: Names of families; all families by default.
        seed: Another seed gives other problems.
        difficulty: 1 to 5; sets the number of items and steps of a problem.

    Raises:
        InputError: An unknown or repeated family, or a seed or difficulty out of range.
    """

    def __init__(self, families: Sequence[Family] | None = None, *, seed: int = 0, difficulty: int = 1):
        families = get_args(Family) if families is None else families
        errors = _family_errors(families)
        if type(seed) is not int or seed < 0:
            errors.append(f"seed must be an integer of 0 or more, got {seed!r}")
        if type(difficulty) is not int or difficulty not in DIFFICULTIES:
            errors.append(f"difficulty must be an integer from 1 to 5, got {difficulty!r}")
        if errors:
            raise InputError(errors)
        self.families: tuple[Family, ...] = tuple(families)
        self.seed = seed
        self.difficulty = difficulty

    def rows(self, count: int) -> Iterator[DualCoT]:
        """Yield the first `count` rows, in plain text; no problem occurs twice.

        Raises:
            InputError: `count` is not a positive integer, or a family has too few problems of this difficulty.
            RuntimeError: The solver does not confirm a row: a bug in a family.
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
    """Return the question of a row from `ProceduralTeacher.rows`, with its answer and answer type."""
    return Question(row["id"], row["prompt"], row["answer"], ANSWER_TYPES[row["task"]], row["task"])


def generate_dual_cots(teacher: ProceduralTeacher, rows: int, *, conversational: bool = True) -> Dataset:
    """Make dual CoTs with the embedded teacher and validate them.

    Args:
        teacher: The teacher.
        rows: Number of rows.
        conversational: Whether rows hold messages, for a chat model, rather than plain strings. Spans refer to a
            message's text. A plain prompt ends with a newline, after which the chain begins.

    Returns:
        A dataset with all columns of a dual CoT.

    Raises:
        InputError: See `ProceduralTeacher.rows`.
    """
    from datasets import Dataset, Features

    items = [_as_messages(row) if conversational else _as_text(row) for row in teacher.rows(rows)]
    # In a small set all spans of one side may be empty, so their type cannot be inferred.
    dataset = Dataset.from_list(items, features=Features(column_types(conversational)))
    validate_dual_cots(dataset, source="procedural teacher")
    return dataset


def _family_errors(families: Sequence[str]) -> list[str]:
    names = get_args(Family)
    if isinstance(families, str) or not isinstance(families, Sequence):
        return [f"families must be a list of names, got {families!r}; try [{families!r}]"]
    listed = ", ".join(names)
    unknown = [name for name in families if name not in names]
    errors = [f"unknown family {name!r}{nearest(str(name), names)}; all families: {listed}" for name in unknown]
    repeated = sorted({str(name) for name in families if list(families).count(name) > 1})
    errors += [f"family {name!r} is named twice" for name in repeated]
    if not families:
        errors.append(f"no family named; choose from: {listed}")
    return errors


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


def _as_text(row: DualCoT) -> DualCoT:
    # Prompt and chain are concatenated as they are.
    return {**row, "prompt": f"{row['prompt']}\n"}
