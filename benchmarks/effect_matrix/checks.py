"""Checks before anything runs: whether options exist, and which differences are detectable."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from effect_matrix.cells import recipe_text
from effect_matrix.matrix import Matrix, Source
from effect_matrix.work import training_options


def check_options(matrix: Matrix) -> None:
    """Check that the trainer accepts every method's options, at every point of its grid.

    Raises:
        InputError: All errors, by method.
    """
    errors = list(_refused("warm_up", None, matrix.warm_up))
    for name, method in matrix.methods.items():
        if method.recipe and not Path(method.recipe).is_file():
            errors.append(f"`methods.{name}`: no recipe at {method.recipe}")
            continue
        recipe = recipe_text(method.recipe)
        points = [(f"methods.{name}", point) for point in method.points]
        if matrix.collapse and matrix.collapse.method == name:
            first = method.points[0]
            points += [(f"collapse.{key}", first | options) for key, options in matrix.collapse.variants.items()]
        for where, point in points:
            errors += _refused(where, recipe, matrix.stage_2, method.options, point)
    if errors:
        raise InputError(list(dict.fromkeys(errors)), heading=f"{matrix.path}:")


def _refused(where: str, recipe: str | None, *over: Mapping[str, Any]) -> list[str]:
    import torch

    from edit_trl.training.recipe.outline import Recipe
    from edit_trl.training.recipe.resolving import resolve_runs

    options = training_options(recipe, *over)
    options |= {"model_name_or_path": "student", "dataset_name": "pairs", "output_dir": "runs/never"}
    options["use_cpu"] = not torch.cuda.is_available()
    try:
        resolve_runs(Recipe(None, options), {})
    except InputError as error:
        return [f"`{where}`: {problem}" for problem in error.problems]
    return []


def detectable(matrix: Matrix) -> dict[str, float]:
    """The smallest true difference of accuracy that each test would detect with a power of 80%.

    Assumes that two runs differ by chance in a share `power.discordant` of the items, and that the standard
    deviation between seeds is `power.seed_sd`. The tables have the detectable difference of the actual runs.
    """
    from edit_trl.evaluation.statistics import Difference, minimum_detectable_effect

    power, seeds = matrix.power, len(matrix.seeds)
    effects = {}
    for name, source in matrix.data.tests.items():
        items = items_of(source)
        if items is None:
            continue
        parts = [(power.discordant / (items * seeds), items - 1)]
        if seeds > 1:
            parts.append((2 * power.seed_sd**2 / seeds, 2 * (seeds - 1)))
        total = sum(variance for variance, _ in parts)
        freedom = total**2 / sum(variance**2 / max(degrees, 1) for variance, degrees in parts)
        effects[name] = minimum_detectable_effect(Difference(0.0, 0.0, 0.0, math.sqrt(total), freedom))
    return effects


def items_of(source: Source) -> int | None:
    """The number of items of a set; None if its source does not say."""
    return (source.rows or 0) + (source.recorded_rows or 0) or None


def check_power(matrix: Matrix, effects: Mapping[str, float]) -> None:
    """Refuse a matrix that cannot detect the difference that it should.

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
