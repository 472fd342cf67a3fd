"""The stages of a recipe, trained in this process: `edit_trl.train_recipe`, and a launched `edit-trl train`.

This module connects training with the suite of `edit_trl.evaluation` and with the push of the result.
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from transformers.utils import logging

from edit_trl.cli.launch_options import check_processes
from edit_trl.cli.push import find_evaluations
from edit_trl.common.files import naming
from edit_trl.common.json_text import read_json_file
from edit_trl.common.metric_names import explained
from edit_trl.common.run_file import read_run_file
from edit_trl.common.shipped import find_recipe
from edit_trl.common.terminal import visible_line
from edit_trl.data.views import PAIR_VIEWS
from edit_trl.evaluation.suite.callback import SuiteCallback
from edit_trl.hub.push import pushing
from edit_trl.training.recipe.data_checks import check_data
from edit_trl.training.recipe.finished import finished_line
from edit_trl.training.recipe.outline import Recipe, read_recipe
from edit_trl.training.recipe.resolving import RunArguments, pick_run, resolve_run, resolve_runs
from edit_trl.training.recipe.run_checks import check_runs
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
    outline = read_recipe(None if recipe is None else find_recipe(os.fspath(recipe)))
    _set_environment(outline)
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    runs = resolve_runs(outline, values)
    check_runs(outline, runs)
    chosen = runs if stage is None else [pick_run(outline, runs, stage)]
    for number, run in enumerate(chosen, 1):
        later = chosen[number:]
        folder = run_stage(outline, resolve_run(outline, values, run.stage), later=later, legend=not later)
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
    *,
    legend: bool = False,
) -> Path:
    """Train one stage with its suite, and push it if it is the last; a finished stage is left as it is.

    Args:
        recipe: The recipe.
        run: The stage's arguments, made by `resolve_run`.
        stop_signals: If given, the run saves and raises `TrainingStopped` once a signal is received.
        later: The runs that follow. Their data are checked before this stage trains.
        legend: Whether to explain the lines about the training after it, those of earlier stages too.

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
        return _run_stage(recipe, run, stop_signals, later, legend)


def _run_stage(
    recipe: Recipe, run: RunArguments, stop_signals: StopSignals | None, later: Sequence[RunArguments], legend: bool
) -> Path:
    start = find_start(recipe, run)
    if start.finished:
        print(finished_line(start.folder, start.finished))
        return start.folder
    # Of a last stage the data are checked as they are loaded, and the warnings were given before the first.
    if later or run.stage is None:
        check_data(recipe, [run, *later])
    is_pushed = run.training.push_to_hub and is_last_stage(recipe, run)
    if run.stage is not None and run.training.process_index == 0:
        names = [name for name, _ in recipe.runs]
        print(f"stage {visible_line(run.stage)} ({names.index(run.stage) + 1} of {len(names)})", file=sys.stderr)
    run.training.push_to_hub = False  # the trainer pushes nothing; the finished result is pushed as a whole
    with _pushing(run, start.folder) if is_pushed else nullcontext():
        train_stage(run, start, stop_signals, _suite_callbacks(run))
    if legend and run.training.process_index == 0:
        _print_legend(recipe, run)
    return start.folder


def _print_legend(recipe: Recipe, last: RunArguments) -> None:
    """Explain the names in the lines about the stages up to the last one, and say where all metrics are."""
    folder = Path(last.training.output_dir)
    names = [name for name, _ in recipe.runs]
    folders = [folder] if last.stage is None else [folder.parent / str(n) for n in names[: names.index(last.stage) + 1]]
    files = [file for one in folders if (file := one / "trainer_state.json").is_file()]
    logs = [entry for file in files for entry in read_json_file(file, finite=False)["log_history"]]
    meanings = explained(name for entry in logs for name in entry)
    if not meanings:
        return
    width = max(len(label) for label, _ in meanings)
    lines = [f"  {label:<{width}}  {meaning}" for label, meaning in meanings]
    trackers = [name for name in last.training.report_to if name != "none"]
    reported = f", and in {', '.join(trackers)}" if trackers else ""
    print("What the lines show:", file=sys.stderr)
    for line in lines:
        print(textwrap.fill(line, 80, subsequent_indent=" " * (width + 4)), file=sys.stderr)
    print(f"All metrics: `log_history` in {' and '.join(map(visible_line, files))}{reported}", file=sys.stderr)


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
