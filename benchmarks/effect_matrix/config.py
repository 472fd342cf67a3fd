"""Reads the YAML file of a matrix and checks it. An example:

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

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from edit_trl.common.conversion import convert, nearest
from edit_trl.common.errors import InputError
from edit_trl.common.options import hints_of
from edit_trl.common.yaml_file import read_yaml
from effect_matrix.errors import matrix_errors, nearest_of
from effect_matrix.matrix import Collapse, Data, Evaluation, Matrix, Method, Power, Source, Student

_REQUIRED = ("students", "seeds", "data", "warm_up", "stage_2", "methods", "baseline")
_KEYS = (*_REQUIRED, "tuning_seed", "evaluation", "power", "collapse")


def read_matrix(path: Path, paths: Mapping[str, str] | None = None) -> Matrix:
    """Read a matrix. Whether the trainer accepts its options is up to `check_options`.

    Args:
        path: The file.
        paths: Replacements for the file's `paths`, whose names appear in braces in its other values.

    Raises:
        InputError: Everything that is wrong with the file.
    """
    values = read_yaml(path, "matrix")
    own_paths = values.pop("paths", {})
    unknown = [name for name in paths or {} if name not in own_paths]
    if unknown:
        raise InputError(f"{path} has no path {unknown[0]!r}{nearest_of(unknown[0], own_paths)}")
    all_paths = {**own_paths, **(paths or {})}
    values = _fill_in(values, all_paths)
    errors = [f"unknown key `{name}`{nearest(name, _KEYS)}" for name in values if name not in _KEYS]
    errors += [f"`{name}` is missing" for name in _REQUIRED if name not in values]
    if errors:
        raise InputError(errors, heading=f"{path}:")
    reader = _Reader()
    students = reader.each("students", values["students"], Student)
    methods = reader.each("methods", values["methods"], Method)
    data = reader.data(values["data"])
    parts = {
        name: reader.one(name, values.get(name, {}), kind)
        for name, kind in (("evaluation", Evaluation), ("power", Power))
    }
    collapse = reader.one("collapse", values["collapse"], Collapse) if values.get("collapse") else None
    if not reader.errors:
        seeds = values["seeds"] if isinstance(values["seeds"], list) else [values["seeds"]]
        tuning = values.get("tuning_seed", seeds[0] if seeds else 0)
        options = (values["warm_up"], values["stage_2"], methods, values["baseline"])
        matrix = Matrix(path, students, seeds, tuning, data, *options, **parts, collapse=collapse, paths=all_paths)
        reader.errors += matrix_errors(matrix)
    if reader.errors:
        raise InputError(reader.errors, heading=f"{path}:")
    return matrix


def _fill_in(value: Any, paths: Mapping[str, str]) -> Any:
    """The value with every {NAME} in its texts replaced by the path of that name."""
    if isinstance(value, Mapping):
        return {key: _fill_in(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_in(item, paths) for item in value]
    if isinstance(value, str):
        for name, path in paths.items():
            value = value.replace(f"{{{name}}}", path)
    return value


class _Reader:
    """Converts mappings to dataclasses and collects the errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def one(self, where: str, values: Any, kind: type) -> Any:
        if not isinstance(values, Mapping):
            self.errors.append(f"`{where}` must be a mapping, got {values!r}")
            return None
        converted, errors = convert(values, hints_of([kind]))
        missing = [f.name for f in fields(kind) if f.name not in values and _is_required(f)]
        errors += [f"`{name}` is missing" for name in missing]
        self.errors += [f"`{where}`: {error}" for error in errors]
        return None if errors else kind(**converted)

    def each(self, where: str, values: Any, kind: type) -> dict[str, Any]:
        if not isinstance(values, Mapping) or not values:
            self.errors.append(f"`{where}` must be a mapping of at least one name, got {values!r}")
            return {}
        bad_names = [name for name in values if not (isinstance(name, str) and name.isidentifier())]
        self.errors += [f"`{where}`: a name has letters, digits and _, got {name!r}" for name in bad_names]
        return {name: self.one(f"{where}.{name}", value, kind) for name, value in values.items()}

    def data(self, values: Any) -> Data | None:
        if not isinstance(values, Mapping):
            self.errors.append(f"`data` must be a mapping, got {values!r}")
            return None
        names = [f.name for f in fields(Data)]
        errors = [f"`data`: unknown set `{name}`{nearest(name, names)}" for name in values.keys() - {*names}]
        errors += [f"`data`: the set `{name}` is missing" for name in names if name not in values]
        self.errors += errors
        if errors:
            return None
        several = {name: self.each(f"data.{name}", values[name], Source) for name in ("tests", "pairs")}
        single = {name: self.one(f"data.{name}", values[name], Source) for name in ("warm_up", "dev", "held_out")}
        return Data(**single, **several)


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
