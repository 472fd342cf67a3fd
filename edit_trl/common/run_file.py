"""The folder of a training run: what is kept there of its options, and whether it is this run's (L4)."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole

RUN_FILE = "run.json"
"""Left in the folder of a training: what it was run with, and whether it is finished."""

DRAFT_FILE = f"{RUN_FILE}.draft"

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


def read_run_file(folder: Path) -> dict[str, Any]:
    """What a folder says of its run; empty where it holds none."""
    file = folder / RUN_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error


def stage_options(folder: Path, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The options that each stage of a model was run with; empty where a stage's are not known."""
    if any(Path(name).name != name for name in names):
        return []  # no name of a stage, and not to be followed out of the run
    folders = [folder if name == names[-1] else folder.parent / name for name in names]
    options = [read_run_file(of).get("options") for of in folders]
    if not all(options):
        return []
    return list(zip(names, options, strict=True))


def check_run_folder(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What is known of the run in this folder.

    Raises:
        InputError: The folder holds another run, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file; choose another")
    state = read_run_file(folder)
    if not state:
        # A draft alone is a run that was cut off before it began.
        if folder.is_dir() and any(file.name != DRAFT_FILE for file in folder.iterdir()):
            raise InputError(
                f"output_dir {folder} is not empty and holds no run of edit-trl; choose another, or remove it"
            )
        return {}
    check_same_run(folder, values, f"output_dir {folder} holds")
    return state


def check_same_run(folder: Path, values: dict[str, Any], finding: str) -> None:
    """See that a folder's run was asked for with these options, but for those that change nothing.

    Raises:
        InputError: It was not; `finding` begins the sentence, the options that differ follow.
    """
    state = read_run_file(folder)
    if not state:
        return
    before, now = _essentials(state["options"]), _essentials(values)
    changed = [
        f"{k}: {before.get(k, 'not set')!r} there, {now.get(k, 'not set')!r} now"
        for k in sorted({*before, *now})
        if before.get(k) != now.get(k)
    ]
    if changed:
        raise InputError(
            f"{finding} another run ({'; '.join(changed)}); choose another output_dir, or remove that folder"
        )


def _essentials(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in INCIDENTAL}, default=str))


def write_run_file(
    folder: Path, values: dict[str, Any], finished: str | None, results: dict[str, Any]
) -> None:
    """Keep a run's options (never a token) in its folder, whole or not at all.

    Args:
        folder: The run's.
        values: The options given.
        finished: When it was, if it is.
        results: Its last metrics.
    """
    options = {k: v for k, v in values.items() if k != "hub_token"}
    state = {"edit_trl": version("edit_trl"), "finished": finished, "options": options, "results": results}
    write_whole(folder / RUN_FILE, json.dumps(state, indent=2, default=str) + "\n")
