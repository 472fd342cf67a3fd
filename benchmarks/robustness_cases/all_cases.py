"""All cases, by title."""

from functools import cache

from robustness_cases import (
    controls,
    data_files,
    endpoints,
    foreign_text,
    hub_ids,
    models,
    options,
    outputs,
    processes,
    run_folders,
    training_options,
    yaml_files,
)
from robustness_cases.case import Case

_MODULES = (
    *(controls, yaml_files, options, training_options, data_files, models),
    *(run_folders, outputs, processes, endpoints, foreign_text, hub_ids),
)


@cache
def all_cases() -> dict[str, Case]:
    """Return the cases of every module, by their titles."""
    cases = [case for module in _MODULES for case in module.cases()]
    found = {case.title: case for case in cases}
    if len(found) != len(cases):
        twice = sorted({case.title for case in cases if found[case.title] is not case})
        raise ValueError(f"cases of the same title: {', '.join(twice)}")
    return found
