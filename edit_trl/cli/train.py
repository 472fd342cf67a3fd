"""`edit-trl train`: the stages of a recipe in order, each in processes of its own.

`main` is the command. Run as a module (`accelerate launch -m edit_trl.cli.train --config ...`) this file
trains one stage in the process that it is given.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from edit_trl.cli.launch import SignalRelay, accelerate_config, add_launch_options, end_with_launcher, launch
from edit_trl.cli.launch_options import shards
from edit_trl.cli.train_help import full_help, short_help
from edit_trl.cli.train_recipe import run_stage
from edit_trl.common.errors import InputError
from edit_trl.training.resuming.stopping import EXIT_CODE, StopSignals, TrainingStopped, handled

STOPPING = (
    "A run that receives SIGTERM or SIGUSR1 (a spot instance; Slurm, with --signal=B:USR1@90) saves after "
    f"its step and exits with code {EXIT_CODE}; the same command resumes it. Bad input exits with code 2."
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
    if own.dry_run:
        from edit_trl.cli.dry_run import dry_run

        return dry_run(own.config, own.stage, options, shards(accelerate_config(own), own.num_processes))
    relay = SignalRelay()
    try:
        with handled(relay.pass_on):
            code = _launch_stages(own, options, relay)
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        code = EXIT_CODE
    if code == EXIT_CODE:
        print(f"to go on: {shlex.join(['edit-trl', 'train', *argv])}", file=sys.stderr)
    return code


def _launch_stages(own: argparse.Namespace, options: list[str], relay: SignalRelay) -> int:
    stages = _stage_names(own.config, own.stage)
    for stage in stages:
        chosen = ["--config", own.config] if own.config else []
        chosen += ["--stage", stage] if stage else []
        code = relay.exit_code(launch(own, [*chosen, *options]))
        if relay.received and stage != stages[-1]:
            code = code or EXIT_CODE
        if code:
            return code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edit-trl train",
        usage="edit-trl train [--config RECIPE.yaml] [--OPTION VALUE ...]",
        description="Train the stages of a recipe in order. Options given here win over the recipe.",
        epilog=STOPPING,
        add_help=False,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 28, shutil.get_terminal_size().columns),
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show our own options and exit.")
    parser.add_argument("--help-all", action="store_true", help="Show every option of every trainer and exit.")
    parser.add_argument("--config", metavar="RECIPE", help="The recipe, a YAML file.")
    parser.add_argument("--stage", metavar="NAME", help="Train one stage of the recipe instead of all.")
    parser.add_argument(
        "--dry_run", action="store_true", help="Print how much memory each stage will need and which GPUs have it."
    )
    add_launch_options(parser)
    return parser


def _print_help(own: argparse.Namespace) -> bool:
    """Print the help that was asked for, if any was."""
    if own.help_all:
        print(full_help(_parser()))
    elif own.help:
        print(short_help(_parser()))
    return own.help_all or own.help


def _stage_names(config: str | None, stage: str | None) -> list[str | None]:
    # Reads the recipe's outline alone: checks need the libraries that the launched process imports.
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
    """Train one stage, or a recipe without stages, in this process.

    Returns:
        0, or `EXIT_CODE` for a run that was stopped by a signal.
    """
    from edit_trl.training.recipe.resolving import parse_options, read_recipe, resolve_run

    own, options = _parser().parse_known_args(argv)
    if _print_help(own):
        return 0
    stop_signals = StopSignals()
    try:
        with handled(stop_signals.receive):
            recipe = read_recipe(own.config)
            run = resolve_run(recipe, parse_options(options, recipe), own.stage)
            run_stage(recipe, run, stop_signals)
    except TrainingStopped as stopped:
        print(f"{stopped}; the same command resumes it", file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    from edit_trl.cli.main import run_command

    end_with_launcher()
    sys.exit(run_command(train_stage, sys.argv[1:]))
