"""`edit-trl train`: the stages of a recipe in order, each as its own `accelerate launch`.

`main` is the command. Run as a module (`accelerate launch -m edit_trl.cli.train --config ...`) this
file trains one stage in the process it is given.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.cli.dry_run import dry_run
from edit_trl.cli.launching import check_processes, launch_options, shards
from edit_trl.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel

    from edit_trl.config import DualCoTConfig
    from edit_trl.recipe import Recipe, RunArguments

RUN_FILE = "run.json"
"""Left in a run's folder: what it was run with, and whether it is finished."""

# Options that do not change what is trained: a run may be taken up again with others.
INCIDENTAL = {
    *("output_dir", "report_to", "run_name", "logging_dir", "logging_steps", "logging_strategy"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_token", "log_level"),
    *("save_steps", "save_strategy", "save_total_limit", "resume_from_checkpoint", "disable_tqdm"),
    *(
        "dataset_num_proc",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "eval_steps",
        "trackio_space_id",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run every stage that is not finished; return the exit code of the first that fails."""
    argv = sys.argv[1:] if argv is None else argv
    own, rest = _own_parser().parse_known_args(argv)
    if own.help:
        _print_help()
        return 0
    file = _accelerate_config(own.accelerate_config, own.config) if own.accelerate_config else None
    if own.dry_run:
        return dry_run(own.config, own.stage, rest, shards(file, own.num_processes))
    launch = launch_options(file, own.num_processes, own.config, rest)
    for stage in _stage_names(own.config, own.stage):
        options = ["--config", own.config] if own.config else []
        options += ["--stage", stage] if stage else []
        code = _launch(launch, [*options, *rest])
        if code:
            return code
    return 0


def _own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edit-trl train", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    parser.add_argument("--config", metavar="RECIPE.yaml", help="The recipe; options given here win over it.")
    parser.add_argument("--stage", metavar="NAME", help="Run one stage of the recipe instead of all.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print what each stage will take of memory, and which cards hold it; load and train nothing.",
    )
    group = parser.add_argument_group("launch")
    group.add_argument(
        "--accelerate_config",
        metavar="FILE|NAME",
        help="An accelerate configuration file, or the name of one beside the recipe or in "
        "recipes/accelerate.",
    )
    group.add_argument(
        "--num_processes", type=int, metavar="N", help="Processes to launch, as in accelerate launch."
    )
    return parser


def _print_help() -> None:
    from edit_trl.recipe import make_parser

    _own_parser().print_help()
    print("\nEvery option of a recipe, here as --key value:\n")
    make_parser(prog="edit-trl train").print_help()


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


def _accelerate_config(name: str, recipe: str | None) -> Path:
    """A file, or a name looked up in `accelerate/` folders above the recipe and in recipes/."""
    if Path(name).is_file():
        return Path(name)
    above = Path(recipe).resolve().parents if recipe else ()
    folders = [folder / "accelerate" for folder in above] + [Path("recipes/accelerate")]
    known = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name not in known:
        names = ", ".join(sorted(known)) or "none found beside the recipe or in recipes/accelerate"
        raise InputError(f"no accelerate configuration {name!r}: not a file, and the names are: {names}")
    return known[name]


def _launch(launch_options: list[str], options: list[str]) -> int:
    import subprocess

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = [*launch_options, "-m", "edit_trl.cli.train", *options]
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except subprocess.CalledProcessError as error:
        return error.returncode  # the process has said what was wrong
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode  # one of several has
    return 0


def train_stage(argv: list[str]) -> int:
    """Train one stage, or a recipe without stages, in this process."""
    from edit_trl.recipe import parse_options, read_recipe, resolve_runs

    own, rest = _own_parser().parse_known_args(argv)
    if own.help:
        _print_help()
        return 0
    recipe = read_recipe(own.config)
    run = _pick_run(recipe, resolve_runs(recipe, parse_options(rest)), own.stage)
    check_processes(run.training)
    folder = Path(run.training.output_dir)
    state = _check_run_folder(folder, run.values)
    if state.get("finished"):
        print(f"{folder} is finished ({state['finished']}), nothing to do")
        return 0
    _train(run, folder, student=_previous_output(recipe, run) or run.model.model_name_or_path)
    return 0


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
    if not _read_run_file(folder).get("finished"):
        raise InputError(
            f"stage {run.stage!r} starts from what stage {names[position - 1]!r} saved, but that is not "
            f"finished (looked in {folder}); run it first"
        )
    return str(folder)


def _read_run_file(folder: Path) -> dict[str, Any]:
    file = folder / RUN_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _check_run_folder(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What is known of the run in this folder.

    Raises:
        InputError: The folder holds another run, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file; choose another")
    state = _read_run_file(folder)
    if not state:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"output_dir {folder} is not empty and holds no run of edit-trl; choose another, or remove it"
            )
        return {}
    before, now = _essentials(state["options"]), _essentials(values)
    changed = [
        f"{k}: {before.get(k, 'not set')!r} there, {now.get(k, 'not set')!r} now"
        for k in sorted({*before, *now})
        if before.get(k) != now.get(k)
    ]
    if changed:
        raise InputError(
            f"output_dir {folder} holds another run ({'; '.join(changed)}); choose another output_dir, or "
            "remove that folder"
        )
    return state


def _essentials(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in INCIDENTAL}, default=str))


def _write_run_file(
    folder: Path, values: dict[str, Any], finished: str | None, results: dict[str, Any]
) -> None:
    import edit_trl

    folder.mkdir(parents=True, exist_ok=True)
    options = {k: v for k, v in values.items() if k != "hub_token"}
    state = {"edit_trl": edit_trl.__version__, "finished": finished, "options": options, "results": results}
    draft = folder / f"{RUN_FILE}.draft"
    draft.write_text(json.dumps(state, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(draft, folder / RUN_FILE)


def _train(run: "RunArguments", folder: Path, student: str) -> None:
    from transformers.trainer_utils import get_last_checkpoint

    from edit_trl.dual_cots import load_dual_cots
    from edit_trl.lora_targets import lora_config
    from edit_trl.quantization import check_bitsandbytes, quantization_config
    from edit_trl.trainer import DualCoTTrainer

    data, training, model = run.data, run.training, run.model
    started = time.perf_counter()
    check_bitsandbytes(model, training)

    def load(source: str, split: str | None):
        return load_dual_cots(
            source,
            name=data.dataset_config,
            split=split,
            revision=data.dataset_revision,
            column_mapping=data.column_mapping,
        )

    train_dataset = load(data.dataset_name, data.dataset_train_split)
    eval_dataset = None
    if training.eval_strategy != "no":
        source = data.eval_dataset_name or data.dataset_name
        eval_dataset = load(source, None if data.eval_dataset_name else data.dataset_test_split)

    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    _check_student(student, training)
    quantization = quantization_config(model, training)
    # What an earlier stage, or an earlier run, has saved of an adapter goes on training.
    loaded = _load_adapter(student, training, quantization)
    adapter = None if loaded is not None else lora_config(model, student, training.trust_remote_code)
    if loaded is not None:
        training.model_init_kwargs = None  # used; the trainer would warn that it does not use them
    trainer = DualCoTTrainer(
        model=student if loaded is None else loaded,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=quantization if loaded is None else None,
        peft_config=adapter,
    )
    # Only now: until here nothing of the folder is touched, so a bad recipe leaves nothing behind.
    if trainer.is_world_process_zero():
        _write_run_file(folder, run.values, None, {})
    # The other processes look into it too, and on another node it may be another folder.
    folder.mkdir(parents=True, exist_ok=True)
    trainer.accelerator.wait_for_everyone()
    checkpoint = training.resume_from_checkpoint or get_last_checkpoint(str(folder))
    if checkpoint:
        trainer.accelerator.print(f"Resuming from {checkpoint}")
    output = trainer.train(resume_from_checkpoint=checkpoint)
    results = dict(output.metrics)
    if eval_dataset is not None:
        results |= trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card(dataset_name=data.dataset_name)
    trainer.accelerator.print(f"Saved to {folder} after {time.perf_counter() - started:.0f} s")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)
    if trainer.is_world_process_zero():
        _write_run_file(folder, run.values, time.strftime("%Y-%m-%d %H:%M:%S"), results)
    trainer.end()


def _check_student(student: str, training: "DualCoTConfig") -> None:
    """Say in one line what the Hub client says in fifty: no such model, no access, no network."""
    from transformers import AutoConfig

    if (Path(student) / "adapter_config.json").is_file():
        return
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
    from peft import PeftConfig, PeftModel
    from trl.trainer.utils import create_model_from_path

    if not (Path(student) / "adapter_config.json").is_file():
        return None
    base = PeftConfig.from_pretrained(student).base_model_name_or_path
    options = {**training.model_init_kwargs, "trust_remote_code": training.trust_remote_code}
    if quantization is not None:
        options["quantization_config"] = quantization
    if training.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # each process holds the whole model
    return PeftModel.from_pretrained(create_model_from_path(base, **options), student, is_trainable=True)


if __name__ == "__main__":
    from edit_trl.cli.main import run_command

    sys.exit(run_command(train_stage, sys.argv[1:]))
