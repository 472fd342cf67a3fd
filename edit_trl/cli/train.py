"""`edit-trl train`: the stages of a recipe in order, each as its own `accelerate launch`.

`main` is the command. Run as a module (`accelerate launch -m edit_trl.cli.train --config ...`) this
file trains one stage in the process it is given.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import edit_trl
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
from edit_trl.common.run_file import check_run_folder, check_same_run, read_run_file, write_run_file
from edit_trl.training.resuming.stopping import EXIT_CODE, StopSignals, TrainingStopped, handled

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments

    from edit_trl.key_steps import KeyStepMethod
    from edit_trl.training.config import DualCoTConfig
    from edit_trl.training.recipe.resolving import DataArguments, Recipe, RunArguments
    from edit_trl.training.trainer import DualCoTTrainer

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
    package = Path(edit_trl.__file__).parent
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
    from edit_trl.cli.push import pushing
    from edit_trl.training.recipe.resolving import parse_options, read_recipe, resolve_runs

    own, rest = _own_parser().parse_known_args(argv)
    if own.help:
        _print_help()
        return 0
    recipe = read_recipe(own.config)
    run = _pick_run(recipe, resolve_runs(recipe, parse_options(rest, recipe)), own.stage)
    check_processes(run.training)
    if run.note and run.training.process_index == 0:
        print(run.note, file=sys.stderr)
    folder = Path(run.training.output_dir)
    state = check_run_folder(folder, run.values)
    if state.get("finished"):
        print(f"{folder} is finished ({state['finished']}), nothing to do")
        return 0
    previous = _previous_output(recipe, run)
    is_last = run.stage == (recipe.stages[-1][0] if recipe.stages else None)
    checkpoint = _find_checkpoint(run, folder)
    with pushing(run, folder, wanted=run.training.push_to_hub and is_last):
        _train(run, folder, previous or run.model.model_name_or_path, checkpoint, stop_signals)
    return 0


def _find_checkpoint(run: "RunArguments", folder: Path) -> str | None:
    """What the run goes on from, seen to be of this run as far as can be told before anything is loaded."""
    from transformers.trainer_utils import get_last_checkpoint

    from edit_trl.training.resuming.checkpoints import check_checkpoint, describe_run, last_checkpoint

    named = run.training.resume_from_checkpoint
    ours = run.data.trainer == "dual_cot"
    if ours:
        checkpoint = named or last_checkpoint(folder)
    else:
        checkpoint = named or (get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    if checkpoint and ours:
        check_checkpoint(checkpoint, describe_run(run.training))
    if named:
        # The checkpoint may be of another run's folder.
        check_same_run(Path(named).parent, run.values, f"resume_from_checkpoint {named} is of")
    return checkpoint


def _pick_run(recipe: "Recipe", runs: list["RunArguments"], stage: str | None) -> "RunArguments":
    names = [run.stage for run in runs]
    if stage in names:
        return runs[names.index(stage)]
    if stage is None:
        raise InputError(
            f"{recipe.path} has the stages {', '.join(map(str, names))}; name one with --stage, or use "
            "`edit-trl train`, which launches each in turn"
        )
    raise InputError(f"no stage {stage!r} in {recipe.path}; it has: {', '.join(map(str, names))}")


def _previous_output(recipe: "Recipe", run: "RunArguments") -> str | None:
    """The folder of the stage before, which this one starts from."""
    names = [name for name, _ in recipe.stages]
    position = names.index(run.stage) if run.stage else 0
    if not position:
        return None
    folder = Path(run.training.output_dir).parent / names[position - 1]
    if not read_run_file(folder).get("finished"):
        raise InputError(
            f"stage {run.stage!r} starts from what stage {names[position - 1]!r} saved, but that is not "
            f"finished (looked in {folder}); run it first"
        )
    return str(folder)


def _train(
    run: "RunArguments", folder: Path, student: str, checkpoint: str | None, stop_signals: StopSignals
) -> None:
    from edit_trl.hub.model_card import include_earlier_stages
    from edit_trl.training.baselines import drop_reference
    from edit_trl.training.memory.heap import map_large_blocks
    from edit_trl.training.quantization import check_bitsandbytes
    from edit_trl.training.resuming.checkpoints import written_whole

    started = time.perf_counter()
    check_bitsandbytes(run.model, run.training)
    if run.training.device.type == "cpu" and run.model.use_peft:
        map_large_blocks()
    train_rows, eval_rows = _load_rows(run.data, run.training)
    trainer = _make_trainer(run, student, train_rows, eval_rows, stop_signals)
    # Only now: until here nothing of the folder is touched, so a bad recipe leaves nothing behind.
    if trainer.is_world_process_zero():
        write_run_file(folder, run.values, None, {})
    # The other processes look into it too, and on another node it may be another folder.
    folder.mkdir(parents=True, exist_ok=True)
    trainer.accelerator.wait_for_everyone()
    if checkpoint:
        trainer.accelerator.print(f"Resuming from {checkpoint}")
    output = trainer.train(resume_from_checkpoint=checkpoint)
    results = dict(output.metrics)
    if eval_rows is not None:
        results |= trainer.evaluate()
    if run.data.trainer != "dual_cot":
        drop_reference(trainer)
    trainer.save_model()
    with written_whole("the state and the card", folder):
        trainer.save_state()
        trainer.create_model_card(dataset_name=run.data.dataset_name)
    trainer.accelerator.print(f"Saved to {folder} after {time.perf_counter() - started:.0f} s")
    if trainer.is_world_process_zero():
        include_earlier_stages(folder, Path(student))
        write_run_file(folder, run.values, time.strftime("%Y-%m-%d %H:%M:%S"), results)
    trainer.end()


def _load_rows(data: "DataArguments", training: "TrainingArguments") -> tuple["Dataset", "Dataset | None"]:
    """The rows to train on, and those to evaluate on where that is asked for."""
    from edit_trl.data.views import select_rows

    train_rows = select_rows(
        _load(data, data.dataset_name, data.dataset_train_split),
        data.view,
        mistake=data.mistake,
        rows=data.rows,
        seed=training.seed,
        source=data.dataset_name,
    )
    if training.eval_strategy == "no":
        return train_rows, None
    source = data.eval_dataset_name or data.dataset_name
    split = None if data.eval_dataset_name else data.dataset_test_split
    return train_rows, select_rows(_load(data, source, split), data.view, source=source)


def _load(data: "DataArguments", source: str, split: str | None) -> "Dataset":
    from edit_trl.data.dual_cots import load_dual_cots

    return load_dual_cots(
        source,
        name=data.dataset_config,
        split=split,
        revision=data.dataset_revision,
        column_mapping=data.column_mapping,
    )


def _make_trainer(
    run: "RunArguments",
    student: str,
    train_rows: "Dataset",
    eval_rows: "Dataset | None",
    stop_signals: StopSignals,
) -> "DualCoTTrainer | Trainer":
    """The run's trainer with its student: the model, or the adapter of an earlier stage that goes on."""
    from edit_trl.training.baselines import preference_trainer
    from edit_trl.training.lora_targets import lora_config
    from edit_trl.training.quantization import quantization_config
    from edit_trl.training.trainer import DualCoTTrainer

    data, training, model = run.data, run.training, run.model
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "use_safetensors": True,  # pickles are not loaded
        **(training.model_init_kwargs or {}),
    }
    _check_student(student, training)
    quantization = quantization_config(model, training)
    # What an earlier stage, or an earlier run, has saved of an adapter goes on training.
    loaded = _load_adapter(student, training, quantization)
    adapter = None if loaded is not None else lora_config(model, student, training.trust_remote_code)
    if loaded is not None:
        training.model_init_kwargs = None  # used; the trainer would warn that it does not use them
        quantization = None
    if data.trainer != "dual_cot":
        return preference_trainer(
            data.trainer,
            student,
            loaded,
            training,
            train_rows,
            eval_rows,
            quantization_config=quantization,
            peft_config=adapter,
            stop_signals=stop_signals,
        )
    trainer = DualCoTTrainer(
        model=student if loaded is None else loaded,
        args=training,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        quantization_config=quantization,
        peft_config=adapter,
        callbacks=_suite_callbacks(data, training),
    )
    trainer.stop_signals = stop_signals
    return trainer


def _suite_callbacks(data: "DataArguments", training: "DualCoTConfig") -> list:
    """What runs a suite while training, where one is asked for."""
    if data.suite_eval_steps is None:
        return []
    from edit_trl.evaluation.suite.callback import SuiteCallback

    return [
        SuiteCallback(
            _load(data, *data.suite_source),
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


def _check_student(student: str, training: "DualCoTConfig") -> None:
    """Say in one line what the Hub client says in fifty: no such model, no access, no network."""
    from transformers import AutoConfig

    from edit_trl.weights import refuse_pickled_model

    if (Path(student) / "adapter_config.json").is_file():
        return
    refuse_pickled_model(student)
    try:
        AutoConfig.from_pretrained(
            student,
            revision=training.model_init_kwargs["revision"],
            trust_remote_code=training.trust_remote_code,
        )
    except OSError as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError(f"`model_name_or_path: {student}` cannot be loaded: {reason}") from error


def _load_adapter(student: str, training: "DualCoTConfig", quantization) -> "PeftModel | None":
    """The base model of an adapter folder with the adapter on it, trainable; None for other students."""
    from peft import PeftConfig
    from trl.trainer.utils import create_model_from_path

    from edit_trl.weights import put_on

    if not (Path(student) / "adapter_config.json").is_file():
        return None
    base = PeftConfig.from_pretrained(student).base_model_name_or_path
    options = {**training.model_init_kwargs, "trust_remote_code": training.trust_remote_code}
    if quantization is not None:
        options["quantization_config"] = quantization
    if training.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # each process holds the whole model
    return put_on(create_model_from_path(base, **options), student, is_trainable=True)


if __name__ == "__main__":
    from edit_trl.cli.main import run_command

    end_with_launcher()
    sys.exit(run_command(train_stage, sys.argv[1:]))
