"""The families of procedural problems.

Each family has a function `make(rng, difficulty)`, which draws a problem with both chains, or None where the
injected mistake does not change the answer, and a solver in `edit_trl.data.procedural.solvers`.
"""

import random
from collections.abc import Callable, Mapping
from typing import Literal

from edit_trl.data.answers import AnswerType
from edit_trl.data.procedural.families import (
    date_understanding,
    expressions,
    navigate,
    object_counting,
    shuffled_objects,
    word_sorting,
)
from edit_trl.data.procedural.problems import Problem

Family = Literal[
    "object_counting",
    "arithmetic",
    "shuffled_objects",
    "boolean_expressions",
    "word_sorting",
    "navigate",
    "date_understanding",
]

MAKERS: Mapping[Family, Callable[[random.Random, int], Problem | None]] = {
    "object_counting": object_counting.make,
    "arithmetic": expressions.make_arithmetic,
    "shuffled_objects": shuffled_objects.make,
    "boolean_expressions": expressions.make_boolean,
    "word_sorting": word_sorting.make,
    "navigate": navigate.make,
    "date_understanding": date_understanding.make,
}

ANSWER_TYPES: Mapping[Family, AnswerType] = {
    "object_counting": "number",
    "arithmetic": "number",
    "shuffled_objects": "choice",
    "boolean_expressions": "boolean",
    "word_sorting": "list",
    "navigate": "yes_no",
    "date_understanding": "text",
}
