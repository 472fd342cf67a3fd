"""The stages of a recipe, trained in this process: `edit_trl.train_recipe`, and a launched `edit-trl train`.

This module connects training with the suite of `edit_trl.evaluation` and with the push of the result.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from transformers.utils import logging

from edit_trl.cli.launch_options import check_processes
from edit_trl.cli.push import find_evaluations
from edit_trl.common.files import naming
from edit_trl.common.run_file import read_run_file
from edit_trl.common.shipped import find_recipe
from edit_trl.data.views import PAIR_VIEWS
from edit_trl.evaluation.suite.callback import SuiteCallback
from edit_trl.hub.push import pushing
from edit_trl.training.recipe.resolving import Recipe, RunArguments, pick_run, read_recipe, resolve_run, resolve_runs
from edit_trl.training.recipe.run_checks import check_data, check_runs
from edit_trl.training.recipe.stage import find_start, is_last_stage, train_stage
from edit_trl.training.resuming.checkpoints import holding
from edit_trl.training.resuming.stopping import StopSignals

logger = logging.get_logger(__name__)


def train_recipe(recipe: str | os.PathLike[str] | None, *, stage: str | None = None, **options: Any) -> Path:
    """Train the stages of a recipe in this process, one after the other, as `edit-trl train` does.

    Each stage starts from what the stage before has saved, in `output_dir/STAGE`. Finished stages are
    skipped and a stage that was cut off is resumed from its last checkpoint, so the same call continues an
    interrupted run. Suites are run and the last stage is pushed to the Hub if the recipe says so. The memory
    of a stage's model is freed before the next stage loads its own. Signal handlers are left alone: unlike
    the command, a run that receives SIGTERM does not save first.

    Args:
        recipe: The recipe's YAML file, or the name of one that comes with the package; None for a run given by options
            alone.
        stage: Train only this stage of the recipe.
        options: Options that win over the recipe and its stages, as on the command line: those of the
            recipe, of `DualCoTConfig` (or of the stage's trainer) and of TRL's `ModelConfig`.

    Returns:
        The folder of the last trained stage, with its student.

    Raises:
        InputError: All problems of the recipe and the options, before any stage starts; or what a stage
            finds wrong with its rows, its student or its folder, before it writes anything.
        FloatingPointError: The loss is not finite; names the rows.

    Example:
        ```python
        from edit_trl import train_recipe

        folder = train_recipe("recipe.yaml", dataset_name="pairs.jsonl", learning_rate=1e-4)
        ```
    """
    outline = read_recipe(recipe and find_recipe(os.fspath(recipe)))
    _set_environment(outline)
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    runs = resolve_runs(outline, values)
    check_runs(outline, runs)
    chosen = runs if stage is None else [pick_run(outline, runs, stage)]
    for number, run in enumerate(chosen, 1):
        folder = run_stage(outline, resolve_run(outline, values, run.stage), later=chosen[number:])
        release_memory()  # the trainer is in reference cycles with its callbacks
    return folder


def _set_environment(recipe: Recipe) -> None:
    """Set the recipe's `env` in this process, which has imported torch: what is read at import has no effect."""
    changed = [name for name, value in recipe.env.items() if os.environ.get(name) != value]
    os.environ.update(recipe.env)
    if changed:
        logger.warning(
            f"{recipe.path}: {', '.join(changed)} of `env` {'is' if len(changed) == 1 else 'are'} set after torch was "
            "imported, which may be too late; use `edit-trl train`, or export them before you start Python"
        )


def run_stage(
    recipe: Recipe,
    run: RunArguments,
    stop_signals: StopSignals | None = None,
    later: Sequence[RunArguments] = (),
) -> Path:
    """Train one stage with its suite, and push it if it is the last; a finished stage is left as it is.

    Args:
        recipe: The recipe.
        run: The stage's arguments, made by `resolve_run`.
        stop_signals: If given, the run saves and raises `TrainingStopped` once a signal is received.
        later: The runs that follow. Their data are checked before this stage trains.

    Returns:
        The stage's folder.

    Raises:
        InputError: As in `train_recipe`.
        TrainingStopped: See `stop_signals`.
    """
    check_processes(run.training)
    if run.note and run.training.process_index == 0:
        print(run.note, file=sys.stderr)
    # A finished run is not written to: its folder may be read-only.
    folder = run.training.output_dir
    finished = read_run_file(Path(folder)).get("finished")
    with nullcontext() if finished else holding(folder, run.training), naming(Path(folder)):
        return _run_stage(recipe, run, stop_signals, later)


def _run_stage(
    recipe: Recipe, run: RunArguments, stop_signals: StopSignals | None, later: Sequence[RunArguments]
) -> Path:
    start = find_start(recipe, run)
    if start.finished:
        print(f"{start.folder} is finished ({start.finished}), nothing to do")
        return start.folder
    # Of a last stage the data are checked as they are loaded, and the warnings were given before the first.
    if later or run.stage is None:
        check_data(recipe, [run, *later])
    is_pushed = run.training.push_to_hub and is_last_stage(recipe, run)
    run.training.push_to_hub = False  # the trainer pushes nothing; the finished result is pushed as a whole
    with _pushing(run, start.folder) if is_pushed else nullcontext():
        train_stage(run, start, stop_signals, _suite_callbacks(run))
    return start.folder


def _pushing(run: RunArguments, folder: Path) -> AbstractContextManager[None]:
    training = run.training
    return pushing(
        folder,
        (folder if run.stage is None else folder.parent).resolve().name,
        find_evaluations,
        hub_model_id=training.hub_model_id,
        private=training.hub_private_repo,
        revision=training.hub_revision,
        token=training.hub_token,
    )


def _suite_callbacks(run: RunArguments) -> list[SuiteCallback]:
    data = run.data
    if data.suite_eval_steps is None:
        return []
    method = run.training.key_step_method
    # A random mask is no key step, and a view of single chains has spans that its suite does not have.
    if method == "random" or not {*data.view_names} <= {*PAIR_VIEWS}:
        method = "words"
    return [
        SuiteCallback(
            data.suite_source.load(),
            steps=data.suite_eval_steps,
            rows=data.suite_rows,
            accuracy_rows=data.suite_accuracy_rows,
            max_new_tokens=data.suite_max_new_tokens,
            stop_at_plateau=data.stop_at_plateau,
            key_step_method=method,
            chat_template_kwargs=run.training.chat_template_kwargs,
        )
    ]
