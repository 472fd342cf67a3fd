"""The errors of a matrix that its file alone shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edit_trl.common.conversion import convert, nearest
from edit_trl.common.options import hints_of
from effect_matrix.matrix import Matrix, Source, Student
from effect_matrix.student import FromScratch


def matrix_errors(matrix: Matrix) -> Iterator[str]:
    """Every error that can be detected without the trainer."""
    for name, student in matrix.students.items():
        yield from _student_errors(name, student)
    if not matrix.seeds or any(type(seed) is not int or seed < 0 for seed in matrix.seeds):
        yield f"`seeds` must be a list of integers of 0 or more, got {matrix.seeds!r}"
    elif matrix.tuning_seed not in matrix.seeds:
        yield f"`tuning_seed: {matrix.tuning_seed}` is none of `seeds` {matrix.seeds}"
    for name, options in (("warm_up", matrix.warm_up), ("stage_2", matrix.stage_2)):
        if not isinstance(options, dict):
            yield f"`{name}` must be options of `edit-trl train`, got {options!r}"
    if matrix.baseline not in matrix.methods:
        hint = nearest_of(matrix.baseline, matrix.methods)
        yield f"`baseline: {matrix.baseline}` is none of the methods{hint}"
    for name, method in matrix.methods.items():
        if method.pairs not in matrix.data.pairs:
            hint = nearest_of(method.pairs, matrix.data.pairs)
            yield f"`methods.{name}`: `pairs: {method.pairs}` is none of `data.pairs`{hint}"
        if method.control is not None and (method.control == name or method.control not in matrix.methods):
            hint = nearest_of(method.control, matrix.methods)
            yield f"`methods.{name}`: `control: {method.control}` is none of the other methods{hint}"
        above = list(matrix.methods)[: list(matrix.methods).index(name)]
        if method.start is not None and method.start not in above:
            hint = nearest_of(method.start, above) if above else ""
            yield f"`methods.{name}`: `start: {method.start}` must be a method above it{hint}"
        if method.measures is not None:
            if method.measures not in above:
                hint = nearest_of(method.measures, above) if above else ""
                yield f"`methods.{name}`: `measures: {method.measures}` must be a method above it{hint}"
            if method.options or method.grid or method.recipe or method.start:
                yield f"`methods.{name}`: `measures` trains nothing, so leave out its options and grid"
            if not method.evaluation:
                yield f"`methods.{name}`: `measures` needs `evaluation`, how the model is measured instead"
        for option, values in method.grid.items():
            if not isinstance(values, list) or not values:
                yield f"`methods.{name}`: the grid's `{option}` must be a list of values, got {values!r}"
    for name, source in matrix.data.named().items():
        yield from (f"data set `{name}`: {error}" for error in _source_errors(name, source, matrix))
    if matrix.power.test is not None and matrix.power.test not in matrix.data.tests:
        hint = nearest_of(matrix.power.test, matrix.data.tests)
        yield f"`power.test: {matrix.power.test}` is none of `data.tests`{hint}"
    if matrix.collapse and matrix.collapse.method not in matrix.methods:
        hint = nearest_of(matrix.collapse.method, matrix.methods)
        yield f"`collapse.method: {matrix.collapse.method}` is none of the methods{hint}"


def _student_errors(name: str, student: Student) -> Iterator[str]:
    if (student.path is None) == (student.from_scratch is None):
        yield f"student `{name}` needs one of `path` and `from_scratch`"
    elif student.path is not None:
        local = Path(student.path)
        looks_local = student.path.startswith((".", "/", "~")) or student.path.count("/") != 1
        if looks_local and not (local / "config.json").is_file():
            yield f"student `{name}`: no model at {student.path} (no config.json there)"
    else:
        values, errors = convert(student.from_scratch, hints_of([FromScratch]))
        yield from (f"student `{name}`: {error}" for error in errors)
        sizes = FromScratch(**values)
        if sizes.heads < 1 or sizes.hidden_size % sizes.heads:
            yield f"student `{name}`: `heads: {sizes.heads}` must divide `hidden_size: {sizes.hidden_size}`"


def _source_errors(name: str, source: Source, matrix: Matrix) -> Iterator[str]:
    kinds = ("families", "recorded", "path", "tasks", "of", "generate")
    given = [kind for kind in kinds if getattr(source, kind) is not None]
    if len(given) != 1 and given not in (["families", "of"], ["families", "recorded"]):
        yield f"needs one of {', '.join(kinds)}, got {', '.join(given) or 'none'}"
        return
    if source.families and source.of is None and not source.rows:
        yield "needs `rows`, how many problems"
    if source.recorded and not source.recorded_rows:
        yield "needs `recorded_rows`, how many questions"
    if source.recorded and not Path(source.recorded).is_file():
        yield f"no file at {source.recorded}; say where it is with --path NAME=FILE"
    if source.tasks is not None and not name.startswith("test_"):
        yield "`tasks` are for tests"
    if (source.of is not None or source.generate is not None) and not name.startswith("pairs_"):
        yield "only `pairs` can be a part of another set, or be generated"
    if source.of is not None and source.of not in ("warm_up", *matrix.data.pairs):
        yield f"`of: {source.of}` is no set of pairs, nor warm_up{nearest_of(source.of, matrix.data.pairs)}"
    if source.hardest is not None and not (source.of and 0 < source.hardest <= 1):
        yield f"`hardest: {source.hardest}` must be a share above 0 of a set `of`"
    for option in ("problems_of", "wrong_chains_of"):
        other = getattr(source, option)
        if other is not None and not (source.of and other in matrix.data.pairs):
            hint = nearest_of(other, matrix.data.pairs)
            yield f"`{option}: {other}` must be a set of pairs, beside `of`{hint}"
    order = [f"pairs_{key}" for key in matrix.data.pairs]
    for option in ("of", "problems_of", "wrong_chains_of"):
        other = f"pairs_{getattr(source, option)}"
        if name in order and other in order and order.index(other) >= order.index(name):
            yield f"`{option}: {getattr(source, option)}` must stand above it in `data.pairs`"
    if source.student_of is not None:
        first = matrix.methods.get(source.student_of)
        if source.generate is None or first is None:
            hint = nearest_of(source.student_of, matrix.methods)
            yield f"`student_of: {source.student_of}` must be a method, beside `generate`{hint}"
        elif f"pairs_{first.pairs}" in order[order.index(name) :]:
            yield f"`student_of: {source.student_of}` trains on `{first.pairs}`, which must stand above it"
    if source.problems_of and source.wrong_chains_of:
        yield "needs one of problems_of and wrong_chains_of"
    if source.path is not None and "{" not in source.path and not Path(source.path).exists():
        yield f"no file or folder at {source.path}"


def nearest_of(name: Any, names: Any) -> str:
    """A hint at the nearest name, or the list of all names."""
    return nearest(str(name), names) or f"; there are: {', '.join(names)}"
