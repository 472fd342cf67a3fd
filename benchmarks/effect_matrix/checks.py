"""What can be known before anything runs: options that exist, and differences that can be seen."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from effect_matrix.cells import recipe_text
from effect_matrix.matrix import Matrix, Source
from effect_matrix.work import training_options


def check_options(matrix: Matrix) -> None:
    """See that every method's options, at every point of its grid, are a configuration of the trainer.

    Raises:
        InputError: All that is wrong, by method.
    """
    problems = list(_refused("warm_up", None, matrix.warm_up))
    for name, method in matrix.methods.items():
        if method.recipe and not Path(method.recipe).is_file():
            problems.append(f"`methods.{name}`: no recipe at {method.recipe}")
            continue
        recipe = recipe_text(method.recipe)
        points = [(f"methods.{name}", point) for point in method.points]
        if matrix.collapse and matrix.collapse.method == name:
            first = method.points[0]
            points += [(f"collapse.{key}", first | of) for key, of in matrix.collapse.variants.items()]
        for where, point in points:
            problems += _refused(where, recipe, matrix.stage_2, method.options, point)
    if problems:
        raise InputError(list(dict.fromkeys(problems)), heading=f"{matrix.path}:")


def _refused(where: str, recipe: str | None, *over: Mapping[str, Any]) -> list[str]:
    import torch

    from edit_trl.training.recipe.resolving import Recipe, resolve_runs

    options = training_options(recipe, *over)
    options |= {"model_name_or_path": "student", "dataset_name": "pairs", "output_dir": "runs/never"}
    options["use_cpu"] = not torch.cuda.is_available()
    try:
        resolve_runs(Recipe(None, options), {})
    except InputError as error:
        return [f"`{where}`: {problem}" for problem in error.problems]
    return []


def detectable(matrix: Matrix) -> dict[str, float]:
    """The smallest true difference of accuracy that each test shows 4 times in 5, before any run.

    Supposed: two runs differ in `power.discordant` of the items, by chance alone, and seeds in
    `power.seed_sd`. What was really detectable is in the tables, from the runs themselves.
    """
    from edit_trl.evaluation.statistics import Difference, minimum_detectable_effect

    power, seeds = matrix.power, len(matrix.seeds)
    found = {}
    for name, source in matrix.data.tests.items():
        items = items_of(source)
        if items is None:
            continue
        parts = [(power.discordant / (items * seeds), items - 1)]
        if seeds > 1:
            parts.append((2 * power.seed_sd**2 / seeds, 2 * (seeds - 1)))
        total = sum(variance for variance, _ in parts)
        freedom = total**2 / sum(variance**2 / max(of, 1) for variance, of in parts)
        found[name] = minimum_detectable_effect(Difference(0.0, 0.0, 0.0, math.sqrt(total), freedom))
    return found


def items_of(source: Source) -> int | None:
    """How many items a set has, as far as it is said."""
    return (source.rows or 0) + (source.recorded_rows or 0) or None


def check_power(matrix: Matrix, effects: Mapping[str, float]) -> None:
    """Refuse a matrix that cannot show the difference that it is asked to show.

    Raises:
        InputError: Too few items or seeds.
    """
    wanted = matrix.power.difference
    test = matrix.power.test or next(iter(matrix.data.tests))
    if wanted is None:
        return
    if test not in effects:
        raise InputError(f"{matrix.path}: `power.difference` needs `rows` of the test `{test}`")
    if effects[test] > wanted:
        raise InputError(
            f"{matrix.path}: `power.difference: {wanted}`, but {items_of(matrix.data.tests[test])} items of "
            f"`{test}` x {len(matrix.seeds)} seeds show a difference of {effects[test]:.3f} at best (4 times "
            "in 5); take more items or seeds, or a larger difference"
        )
