"""Checkpoints that are written whole or not at all, and checked before a run resumes from them.

A checkpoint is written below `_unfinished/` in the run's folder and renamed to `checkpoint-STEP` when it is
complete, so that every folder of that name can be resumed. Its file `edit_trl.json`, written last, describes
the run that it belongs to.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from trl import SFTConfig

from edit_trl.common.errors import InputError
from edit_trl.common.locks import FOLDER_LOCK, hold_folder
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.resuming.manifest import MANIFEST, WEIGHTS_ALONE, fault_of, read_manifest, write_manifest

logger = logging.get_logger(__name__)

UNFINISHED = "_unfinished"
"""The folder of unfinished files. Names that begin with an underscore are never uploaded to the Hub."""

# Options of `DualCoTConfig` that do not change the weights.
_ONLY_WATCHED = {"displacement_warning", "logging_nan_inf_filter"}
DECISIVE = (
    *("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("train_sampling_strategy", "dataloader_drop_last", "max_length", "num_train_epochs", "max_steps"),
    *("optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha"),
    *("bf16", "fp16", "eos_token"),
    *sorted(
        {field.name for field in fields(DualCoTConfig)} - {field.name for field in fields(SFTConfig)} - _ONLY_WATCHED
    ),
)
"""The options of a `DualCoTConfig` that decide which weights a run ends with."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# In the messages of safetensors and torch about a file that cannot be written; neither raises an OSError.
_DISK_WORDS = ("os error", "StorageFull", "FileTooLarge", "PytorchStreamWriter", "inline_container")


def describe_run(args: DualCoTConfig, adapter: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the options that must be equal for a run to resume from a checkpoint, as JSON values.

    Args:
        args: The configuration of the run.
        adapter: The options of the trained adapter; None without one.
    """
    run = {"processes": args.world_size, **{name: getattr(args, name) for name in DECISIVE}}
    if adapter is not None:
        run |= {f"adapter {name}": value for name, value in adapter.items()}
    return json.loads(json.dumps(run, default=_plain))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def describe_rows(dataset: Dataset) -> dict[str, Any]:
    """Return the number of pairs of a prepared dataset and a hash of their order and lengths."""
    columns = json.dumps([dataset[name][:] for name in ("row", "unique_length", "fork")])
    return {"pairs": len(dataset), "rows": sha256(columns.encode()).hexdigest()[:16]}


def last_checkpoint(folder: str | Path, described: bool = True) -> str | None:
    """Return the newest checkpoint in a run's folder that can be resumed; warn of newer ones that cannot.

    Args:
        folder: The run's folder.
        described: Whether checkpoints must have a manifest. Those of TRL's trainers have none; one of theirs that is
            not complete is left by a run that was killed, so a run without another one starts anew.

    Raises:
        InputError: There are checkpoints, and all are damaged.
    """
    newest, faults = _newest_checkpoint(folder, described)
    if PartialState().is_main_process and (newest or not faults or not described):
        for path, fault in faults.items():
            logger.warning(f"{path} {fault}; not resumed from")
    damaged = [f"{path.name} {fault}" for path, fault in faults.items() if fault != WEIGHTS_ALONE]
    if newest is None and damaged and described:
        raise InputError(
            f"no checkpoint in {folder} can be resumed from: {'; '.join(damaged)}. Put back what is missing, or remove "
            "the checkpoints to start from the beginning"
        )
    return newest


def _newest_checkpoint(folder: str | Path, described: bool = True) -> tuple[str | None, dict[Path, str]]:
    """Return the newest checkpoint that can be resumed, and what is wrong with each newer one."""
    paths = (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir())
    steps = {path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path for path in paths}
    faults: dict[Path, str] = {}
    for step in sorted(filter(str.isdecimal, steps), key=int, reverse=True):
        fault = fault_of(steps[step], described)
        if fault is None:
            return str(steps[step]), faults
        faults[steps[step]] = fault
    return None, faults


def check_checkpoint(path: str | Path, run: Mapping[str, Any]) -> None:
    """Check that a run, with its `describe_run` and `describe_rows`, can resume from a checkpoint.

    Entries that the description lacks are not compared.

    Raises:
        InputError: The checkpoint is missing, incomplete, damaged or belongs to another run (names what differs).
    """
    path = Path(path)
    if not (path / "trainer_state.json").is_file():
        reason = "holds no trainer_state.json" if path.is_dir() else "does not exist"
        raise InputError(f"resume_from_checkpoint {path} is no checkpoint: it {reason}")
    manifest, fault = read_manifest(path), fault_of(path)
    if manifest is None:
        raise InputError(
            f"resume_from_checkpoint {path} is not complete, or not a checkpoint of edit_trl: it holds no "
            f"{MANIFEST}; name another, or start from its weights with `model_name_or_path`"
        )
    if fault == WEIGHTS_ALONE:
        raise InputError(
            f"resume_from_checkpoint {path} has weights alone (`save_only_model`), no optimizer; start from "
            "them with `model_name_or_path`"
        )
    if fault is not None:
        raise InputError(f"resume_from_checkpoint {path} {fault}; name another checkpoint")
    there = manifest["run"]
    changed = [f"{k}: {there[k]!r} there, {now!r} now" for k, now in run.items() if k in there and there[k] != now]
    if changed:
        raise InputError(
            f"checkpoint {path} belongs to another run ({'; '.join(changed)}) and cannot be resumed with these "
            "options; use the options it was made with, or another output_dir"
        )


def finish_checkpoint(draft: Path, final: Path, run: Mapping[str, Any], resumable: bool) -> None:
    """Describe a finished checkpoint and rename it; a checkpoint that has its final name is replaced.

    Args:
        draft: The folder that it was written to.
        final: Its final name.
        run: The description of its run.
        resumable: Whether it holds more than weights.
    """
    write_manifest(draft, run, resumable)
    _flush(draft)
    if final.exists():
        replaced = draft.with_name(f"replaced-{final.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    draft.rename(final)
    _flush_folder(final.parent)
    clear_unfinished(final.parent)


def move_files(draft: Path, folder: Path) -> None:
    """Move finished files into a folder, whole; they replace files of the same name."""
    _flush(draft)
    for file in sorted(draft.rglob("*")):
        target = folder / file.relative_to(draft)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(file, target)
    clear_unfinished(folder)


def clear_unfinished(folder: str | Path) -> bool:
    """Remove unfinished files; return whether there were any."""
    unfinished = Path(folder) / UNFINISHED
    exists = unfinished.is_dir()
    shutil.rmtree(unfinished, ignore_errors=True)
    return exists


def _flush(folder: Path) -> None:
    """Flush a folder's files to the disk before it is renamed, in case the machine fails in between."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_held: set[Path] = set()


@contextmanager
def holding(folder: str | Path, args: TrainingArguments) -> Iterator[None]:
    """Hold a run's folder in the first process of the run; nothing changes where this process holds it already.

    Folders that are made for it and in which nothing is written are removed again.

    Raises:
        InputError: Another process holds the folder.
    """
    path = Path(folder).resolve()
    if args.process_index != 0 or path in _held or path.is_file():
        yield
        return
    made = [place for place in (path, *path.parents) if not place.exists()]
    with hold_folder(path):
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            for name in FOLDER_LOCK:
                (path / name).unlink(missing_ok=True)
            for place in made:
                with suppress(OSError):  # it is not empty
                    place.rmdir()


@contextmanager
def written_whole(what: str, folder: str | Path) -> Iterator[None]:
    """Turn errors of the disk, such as a full one, into an `InputError` of one line.

    Args:
        what: The name of the files that the block writes, for the message.
        folder: The run's folder.

    Raises:
        InputError: The files cannot be written; unfinished ones are removed.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_error(error):
            raise
        free = shutil.disk_usage(folder).free
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        clear_unfinished(folder)
        last, _ = _newest_checkpoint(folder)
        before = f"the checkpoint before, {last}, is intact" if last else "there is no checkpoint before it"
        raise InputError(
            f"{what} could not be written to {folder}: {reason} ({free / 1e6:.0f} MB were free); {before}. "
            "Make room, or lower `save_total_limit`, and run the same command again"
        ) from error


def _is_disk_error(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_ERRORS
    return any(word in str(error) for word in _DISK_WORDS)
