"""`edit-trl generate --config`: asks a teacher about questions, as a recipe says (L4).

Or a student alone: `edit-trl generate --student MODEL --pivots`, which needs no recipe.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edit_trl.common.errors import InputError
from edit_trl.common.options import format_help, read_options
from edit_trl.models.chat.dispatch import Interrupted
from edit_trl.teachers.export import push_generation
from edit_trl.teachers.generate_config import (
    CLASSES,
    FLAGS,
    HIDDEN,
    OPTIONS,
    GenerateConfig,
    read_generate_config,
)
from edit_trl.teachers.generation import DUAL, Generation
from edit_trl.teachers.run import Prepared

USAGE = (
    "edit-trl generate --config RECIPE.yaml [--OPTION VALUE ...]\n"
    "       edit-trl generate --student MODEL --pivots [--OPTION VALUE ...]"
)
DESCRIPTION = (
    "Ask a teacher about questions and make dual CoTs of its answers, or of a student's own chains at the "
    "steps where they are lost (--pivots), which needs no teacher. Options, in the recipe or here:"
)


def main(argv: Sequence[str]) -> int:
    """Run a recipe.

    Args:
        argv: `--config RECIPE` and `--option value` over it, or options alone.

    Raises:
        InputError: Anything wrong with the recipe or what it names, before a request is sent; or a run that
            stopped.
    """
    if "--help" in argv or "-h" in argv:
        print(format_help(USAGE, DESCRIPTION, CLASSES, HIDDEN))
        return 0
    path, options = read_options(argv, OPTIONS, FLAGS)
    config = read_generate_config(path, options)
    command = f"edit-trl generate {' '.join(argv)}"
    try:
        if config.arguments.rounds > 1:
            _run_rounds(config)
        else:
            _run_once(config, Path(config.arguments.output_dir))
    except Interrupted as stopped:
        print(f"{stopped}:\n  {command}", file=sys.stderr)
        return 130
    return 0


def _run_once(config: GenerateConfig, folder: Path) -> Generation:
    prepared = Prepared(config)
    print(prepared, file=sys.stderr)
    generation, rows = asyncio.run(prepared.run(folder))
    print(_summary(generation, folder, rows))
    repository = config.arguments.push_to_hub
    if repository:
        push_generation(folder, repository, private=config.arguments.private)
        print(f"pushed to {repository}")
    return generation


def _run_rounds(config: GenerateConfig) -> None:
    """Generate with the student's mistakes, train on them, and again with the student that came of it."""
    from edit_trl.cli.train import main as train
    from edit_trl.training.recipe.resolving import read_recipe

    arguments = config.arguments
    stages = read_recipe(Path(arguments.train_recipe)).stages
    student = arguments.student
    for number in range(1, arguments.rounds + 1):
        folder = Path(arguments.output_dir) / f"round_{number}"
        print(f"round {number} of {arguments.rounds}: student {student}", file=sys.stderr)
        _run_once(replace(config, arguments=replace(arguments, student=student)), folder)
        output = folder / "student"
        code = train(
            [
                *("--config", arguments.train_recipe, "--model_name_or_path", str(student)),
                *("--dataset_name", str(folder / DUAL), "--output_dir", str(output)),
            ]
        )
        if code:
            raise InputError(
                f"training in round {number} ended with exit code {code}; run again to go on from it"
            )
        student = str(output / stages[-1][0] if stages else output)


def _summary(generation: Generation, folder: Path, rows: dict[str, int]) -> str:
    lines = [f"{folder / name}: {count} rows" for name, count in rows.items()]
    lines += [f"  dropped, {reason}: {len(ids)}" for reason, ids in sorted(generation.dropped.items())]
    if generation.failures:
        question, stage, reason = generation.failures[0]
        lines.append(
            f"  without an answer: {len(generation.failures)}, the first in {stage} of {question}: {reason} "
            f"(all in {folder / 'report.json'})"
        )
    return "\n".join(lines)
