"""`edit-trl train`: the stages of a recipe in order, each in processes of its own.

`main` is the command. Run as a module (`accelerate launch -m edit_trl.cli.train --config ...`) this file
trains one stage in the process that it is given.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from edit_trl.cli.launch import SignalRelay, accelerate_config, end_with_launcher, launch
from edit_trl.cli.launch_options import check_process_count, shards
from edit_trl.cli.parser import Parser, RecipeAction
from edit_trl.cli.train_help import full_help, short_help
from edit_trl.common.environment import read_recipe_words
from edit_trl.common.errors import InputError
from edit_trl.training.recipe.finished import find_finished
from edit_trl.training.recipe.option_table import read_options, refresh_table
from edit_trl.training.recipe.outline import Recipe, read_recipe
from edit_trl.training.resuming.stopping import (
    EXIT_CODE,
    INTERRUPTED,
    StopSignals,
    TrainingStopped,
    exit_code_of,
    handled,
)

STOPPING = (
    "A run that receives SIGTERM, SIGUSR1 (spot instances; Slurm, with --signal=B:USR1@90) or Ctrl-C saves after "
    f"its step and exits with code {EXIT_CODE} (Ctrl-C: 130); the same command resumes it. Bad input exits with code 2."
)


def main(argv: list[str] | None = None) -> int:
    """Run every stage that is not finished.

    Returns:
        The exit code of the first stage that fails or is stopped; 0 if there is none.
    """
    argv = sys.argv[1:] if argv is None else argv
    own, options = _parser().parse_known_args(argv)
    if _print_help(own):
        return 0
    recipe = _read_recipe(own)
    if own.dry_run:
        devices = shards(accelerate_config(own), own.num_processes)
        _read_options(own, options)  # refuses unknown ones at once
        if sys.stderr.isatty():
            print("Reading the recipe, its rows and the configuration of the student ...", file=sys.stderr)
        from edit_trl.cli.dry_run import dry_run

        return dry_run(own.config, own.stage, options, devices)
    relay = SignalRelay()
    try:
        with handled(relay.pass_on):
            code = _launch_stages(own, options, _stage_names(recipe, own.stage), relay)
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        code = stopped.code
    if code in (EXIT_CODE, INTERRUPTED):
        print(f"to resume: {shlex.join(['edit-trl', 'train', *argv])}", file=sys.stderr)
    return code


def _read_recipe(own: argparse.Namespace) -> dict[str, Any]:
    """Read the recipe's options and set its `env`, before libraries are imported and processes started."""
    return read_recipe_words(own.config, again=True) if own.config else {}


def _launch_stages(own: argparse.Namespace, options: list[str], stages: list[str | None], relay: SignalRelay) -> int:
    check_process_count(own.num_processes)
    accelerate_config(own)  # refuses a name that there is not
    recipe, given = _read_options(own, options)
    for stage in stages:
        if given is not None and (line := find_finished(recipe, stage, given)) is not None:
            print(line)
            continue
        chosen = ["--config", own.config] if own.config else []
        chosen += ["--stage", stage] if stage else []
        chosen += ["--no_legend"] if own.no_legend or stage != stages[-1] else []
        code = relay.exit_code(launch(own, [*chosen, *options]))
        if relay.received and stage != stages[-1]:
            code = code or exit_code_of(relay.received)
        if code:
            return code
    return 0


def _read_options(own: argparse.Namespace, options: list[str]) -> tuple[Recipe, dict[str, Any] | None]:
    """Return the recipe and the options that win over it; None where only a process that imports TRL can read them.

    Raises:
        InputError: An option does not exist.
    """
    try:
        recipe = read_recipe(own.config)
    except InputError:
        return Recipe(None, {}), None  # that process says what is wrong with the recipe
    return recipe, read_options(options, recipe)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl train",
        usage="edit-trl train [--config RECIPE.yaml] [--OPTION VALUE ...]",
        description="Train the stages of a recipe in order. Options given here win over the recipe.",
        epilog=STOPPING,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 28, shutil.get_terminal_size((110, 24)).columns),
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show our own options and exit.")
    parser.add_argument("--help-all", action="store_true", help="Show every option of every trainer and exit.")
    parser.add_argument(
        "--config",
        action=RecipeAction,
        metavar="RECIPE",
        help="The recipe: a YAML file, or a name in `edit-trl recipes`.",
    )
    parser.add_argument("--stage", metavar="NAME", help="Train one stage of the recipe instead of all.")
    parser.add_argument(
        "--dry_run", action="store_true", help="Print how much memory each stage will need and which GPUs have it."
    )
    parser.add_argument(
        "--accelerate_config",
        metavar="FILE",
        help="An accelerate configuration: a file, or a name such as ddp.",
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="Processes to launch, as in accelerate launch.")
    # For the stages before the last one, and for training that is a part of another command.
    parser.add_argument("--no_legend", action="store_true", help=argparse.SUPPRESS)
    return parser


def _print_help(own: argparse.Namespace) -> bool:
    """Print the help that the options request; return whether they request any."""
    if own.help_all:
        print(full_help(_parser()))
    elif own.help:
        print(short_help(_parser()))
    return own.help_all or own.help


def _stage_names(recipe: Mapping[str, Any], stage: str | None) -> list[str | None]:
    # The names alone: the checks need the libraries that the launched process imports.
    stages = None if stage else recipe.get("stages")
    if isinstance(stages, list) and all(isinstance(s, dict) and _is_name(s.get("name")) for s in stages):
        return [s["name"] for s in stages]
    return [stage]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def train_stage(argv: list[str]) -> int:
    """Train one stage, or a recipe without stages, in this process.

    Returns:
        0, or the code of a run that was stopped by a signal.
    """
    own, options = _parser().parse_known_args(argv)
    if _print_help(own):
        return 0
    _read_recipe(own)
    stop_signals = StopSignals()
    try:
        with handled(stop_signals.receive):
            from edit_trl.cli.train_recipe import run_stage
            from edit_trl.training.recipe.resolving import (
                all_names,
                make_parser,
                parse_options,
                pick_run,
                resolve_run,
                resolve_runs,
            )
            from edit_trl.training.recipe.run_checks import check_runs

            recipe = read_recipe(own.config)
            refresh_table(make_parser, all_names)
            values = parse_options(options, recipe)
            runs = resolve_runs(recipe, values)
            check_runs(recipe, runs)
            place = [run.stage for run in runs].index(pick_run(recipe, runs, own.stage).stage)
            run = resolve_run(recipe, values, own.stage)
            run_stage(recipe, run, stop_signals, runs[place + 1 :], legend=not own.no_legend)
    except TrainingStopped as stopped:
        print(f"{stopped}; the same command resumes it", file=sys.stderr)
        return stopped.code
    return 0


if __name__ == "__main__":
    from edit_trl.cli.main import run_command
    from edit_trl.common.terminal import clean_streams

    clean_streams()
    end_with_launcher()
    sys.exit(run_command(train_stage, sys.argv[1:]))
