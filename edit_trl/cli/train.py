"""`edit-trl train`: the stages of a recipe in order, each as its own `accelerate launch`.

`main` is the command. Run as a module (`accelerate launch -m edit_trl.cli.train --config ...`) this
file trains one stage in the process it is given.
"""

import argparse
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.cached_help import cached_help
from edit_trl.cli.dry_run import dry_run
from edit_trl.cli.launch import (
    SignalRelay,
    accelerate_config,
    add_launch_options,
    end_with_launcher,
    launch,
)
from edit_trl.cli.launch_options import check_processes, shards
from edit_trl.common.errors import InputError
from edit_trl.common.run_file import check_run_folder
from edit_trl.training.recipe.stage import find_checkpoint, load_source, pick_run, previous_output, train_run
from edit_trl.training.resuming.stopping import EXIT_CODE, StopSignals, TrainingStopped, handled

if TYPE_CHECKING:
    from edit_trl.key_steps import KeyStepMethod
    from edit_trl.training.config import DualCoTConfig
    from edit_trl.training.recipe.data_arguments import DataArguments
    from edit_trl.training.recipe.resolving import RunArguments

STOPPING = (
    "Told to stop by SIGTERM or SIGUSR1 (a spot instance; Slurm, with --signal=B:USR1@90), a run saves after "
    f"the step it is at and exits with code {EXIT_CODE}; the same command goes on from there. Bad input is "
    "code 2."
)


def main(argv: list[str] | None = None) -> int:
    """Run every stage that is not finished; return the exit code of the first that fails or is stopped."""
    argv = sys.argv[1:] if argv is None else argv
    own, rest = _own_parser().parse_known_args(argv)
    if own.help:
        _print_help()
        return 0
    if own.dry_run:
        return dry_run(own.config, own.stage, rest, shards(accelerate_config(own), own.num_processes))
    relay = SignalRelay()
    try:
        with handled(relay.pass_on):
            code = _run_stages(own, rest, relay)
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        code = EXIT_CODE
    if code == EXIT_CODE:
        print(f"to go on: {shlex.join(['edit-trl', 'train', *argv])}", file=sys.stderr)
    return code


def _run_stages(own: argparse.Namespace, rest: list[str], relay: SignalRelay) -> int:
    stages = _stage_names(own.config, own.stage)
    for stage in stages:
        options = ["--config", own.config] if own.config else []
        options += ["--stage", stage] if stage else []
        code = relay.exit_code(launch(own, [*options, *rest]))
        if relay.received and stage != stages[-1]:
            code = code or EXIT_CODE
        if code:
            return code
    return 0


def _own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edit-trl train", add_help=False, allow_abbrev=False, epilog=STOPPING
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    parser.add_argument("--config", metavar="RECIPE.yaml", help="The recipe; options given here win over it.")
    parser.add_argument("--stage", metavar="NAME", help="Run one stage of the recipe instead of all.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print what each stage will take of memory, and which cards hold it; load and train nothing.",
    )
    add_launch_options(parser)
    return parser


def _print_help() -> None:
    package = Path(__file__).parents[1]
    recipe, training = package / "training" / "recipe", package / "training"
    sources = [*recipe.glob("*.py"), *training.glob("*config.py"), *Path(__file__).parent.glob("*.py")]
    print(cached_help(_make_help, ("trl", "transformers"), sorted(sources)))


def _make_help() -> str:
    from edit_trl.training.recipe.resolving import make_parser

    ours, recipe = _own_parser().format_help(), make_parser(prog="edit-trl train").format_help()
    return f"{ours}\nEvery option of a recipe, here as --key value:\n\n{recipe}"


def _stage_names(config: str | None, stage: str | None) -> list[str | None]:
    # Only the outline of the recipe: checking it takes the libraries that the launched process imports.
    import yaml

    if stage or not config or not Path(config).is_file():
        return [stage]
    try:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not YAML: {error}") from error
    stages = values.get("stages") if isinstance(values, dict) else None
    named = isinstance(stages, list) and all(isinstance(s, dict) and s.get("name") for s in stages)
    return [s["name"] for s in stages] if named else [None]


def train_stage(argv: list[str]) -> int:
    """Train one stage, or a recipe without stages, in this process."""
    stop_signals = StopSignals()
    try:
        with handled(stop_signals.receive):
            return _train_stage(argv, stop_signals)
    except TrainingStopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return EXIT_CODE


def _train_stage(argv: list[str], stop_signals: StopSignals) -> int:
    from edit_trl.training.recipe.resolving import parse_options, read_recipe, resolve_runs

    own, rest = _own_parser().parse_known_args(argv)
    if own.help:
        _print_help()
        return 0
    recipe = read_recipe(own.config)
    run = pick_run(recipe, resolve_runs(recipe, parse_options(rest, recipe)), own.stage)
    check_processes(run.training)
    if run.note and run.training.process_index == 0:
        print(run.note, file=sys.stderr)
    folder = Path(run.training.output_dir)
    state = check_run_folder(folder, run.values)
    if state.get("finished"):
        print(f"{folder} is finished ({state['finished']}), nothing to do")
        return 0
    previous = previous_output(recipe, run)
    is_last = run.stage == (recipe.stages[-1][0] if recipe.stages else None)
    checkpoint = find_checkpoint(run, folder)
    push = run.training.push_to_hub and is_last
    run.training.push_to_hub = False  # the trainer pushes nothing; the finished result is pushed as a whole
    with _pushing(run, folder) if push else nullcontext():
        callbacks = _suite_callbacks(run.data, run.training)
        student = previous or run.model.model_name_or_path
        train_run(run, folder, student, checkpoint, stop_signals, callbacks)
    return 0


def _pushing(run: "RunArguments", folder: Path) -> AbstractContextManager[None]:
    """Around the training: push what it saved to the repository that its options name."""
    from edit_trl.cli.push import find_evaluations
    from edit_trl.hub.push import pushing

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


def _suite_callbacks(data: "DataArguments", training: "DualCoTConfig") -> list:
    """What runs a suite while training, where one is asked for."""
    if data.suite_eval_steps is None:
        return []
    from edit_trl.evaluation.suite.callback import SuiteCallback

    return [
        SuiteCallback(
            load_source(data, *data.suite_source),
            steps=data.suite_eval_steps,
            rows=data.suite_rows,
            accuracy_rows=data.suite_accuracy_rows,
            max_new_tokens=data.suite_max_new_tokens,
            key_step_method=_suite_method(data, training),
        )
    ]


def _suite_method(data: "DataArguments", training: "DualCoTConfig") -> "KeyStepMethod":
    """How the suite's pairs are marked: as those that are trained on, where those are marks of key steps."""
    from edit_trl.data.views import PAIR_VIEWS

    # A random mask is no key step, and a view of chains alone gives spans that its suite does not have.
    no_steps = training.key_step_method == "random" or data.view not in PAIR_VIEWS
    return "words" if no_steps else training.key_step_method


if __name__ == "__main__":
    from edit_trl.cli.main import run_command

    end_with_launcher()
    sys.exit(run_command(train_stage, sys.argv[1:]))
