"""One stage of a recipe: from resolved options to a trained and saved student."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.common.run_file import check_same_run, read_run_file, write_run_file
from edit_trl.training.resuming.stopping import StopSignals

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from edit_trl.training.config import DualCoTConfig
    from edit_trl.training.recipe.data_arguments import DataArguments
    from edit_trl.training.recipe.resolving import Recipe, RunArguments
    from edit_trl.training.trainer import DualCoTTrainer


def find_checkpoint(run: "RunArguments", folder: Path) -> str | None:
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


def pick_run(recipe: "Recipe", runs: list["RunArguments"], stage: str | None) -> "RunArguments":
    names = [run.stage for run in runs]
    if stage in names:
        return runs[names.index(stage)]
    if stage is None:
        raise InputError(
            f"{recipe.path} has the stages {', '.join(map(str, names))}; name one with --stage, or use "
            "`edit-trl train`, which launches each in turn"
        )
    raise InputError(f"no stage {stage!r} in {recipe.path}; it has: {', '.join(map(str, names))}")


def previous_output(recipe: "Recipe", run: "RunArguments") -> str | None:
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


def train_run(
    run: "RunArguments",
    folder: Path,
    student: str,
    checkpoint: str | None,
    stop_signals: StopSignals,
    callbacks: "Sequence[TrainerCallback]" = (),
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
    trainer = _make_trainer(run, student, train_rows, eval_rows, stop_signals, callbacks)
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
        load_source(data, data.dataset_name, data.dataset_train_split),
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
    return train_rows, select_rows(load_source(data, source, split), data.view, source=source)


def load_source(data: "DataArguments", source: str, split: str | None) -> "Dataset":
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
    callbacks: "Sequence[TrainerCallback]",
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
        callbacks=list(callbacks),
    )
    trainer.stop_signals = stop_signals
    return trainer


def _check_student(student: str, training: "DualCoTConfig") -> None:
    """Say in one line what the Hub client says in fifty: no such model, no access, no network."""
    from transformers import AutoConfig

    from edit_trl.models.loading import refuse_pickled_model

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

    from edit_trl.models.loading import put_on

    if not (Path(student) / "adapter_config.json").is_file():
        return None
    base = PeftConfig.from_pretrained(student).base_model_name_or_path
    options = {**training.model_init_kwargs, "trust_remote_code": training.trust_remote_code}
    if quantization is not None:
        options["quantization_config"] = quantization
    if training.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # each process holds the whole model
    return put_on(create_model_from_path(base, **options), student, is_trainable=True)
