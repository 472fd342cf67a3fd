"""`run.json` in the folder of a training run: its options, its results and when it finished."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import DRAFT_SUFFIX, write_whole
from edit_trl.common.json_text import checker, read_json_file
from edit_trl.common.locks import FOLDER_LOCK

RUN_FILE = "run.json"

# Options that do not change the trained weights: a run may be resumed with other values of these.
INCIDENTAL = {
    *("output_dir", "report_to", "run_name", "logging_dir", "logging_steps", "logging_strategy"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_token", "log_level"),
    *("save_steps", "save_strategy", "save_total_limit", "resume_from_checkpoint", "disable_tqdm"),
    *("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory", "eval_steps"),
    "trackio_space_id",
}


def read_run_file(folder: Path) -> dict[str, Any]:
    """Read a run's `edit_trl` (version), `finished`, `options` and `results`; return {} if the folder has no run.

    Raises:
        InputError: The file cannot be read, or is not such a record.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return {}
    state = read_json_file(file)
    if not isinstance(state, dict):
        raise InputError(f"{file} is no record of a training run")
    for name, annotation in (("finished", str | None), ("options", dict[str, Any])):
        if name in state and (problem := checker(annotation)(state[name])) is not None:
            raise InputError(f"{file} is no record of a training run: {name}{problem}")
    return state


def stage_options(folder: Path, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and options of each stage that led to the model in `folder`; [] if one is not recorded.

    The folders of the earlier stages are beside `folder`.
    """
    if any(Path(name).name != name for name in names):
        return []  # a name that is a path must not lead out of the run
    folders = [folder if name == names[-1] else folder.parent / name for name in names]
    options = [read_run_file(stage_folder).get("options") for stage_folder in folders]
    recorded = [values for values in options if values]
    return list(zip(names, recorded, strict=True)) if len(recorded) == len(names) else []


def check_run_folder(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the run in `folder`.

    Raises:
        InputError: The folder holds a run with other options than `values`, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file; choose another")
    state = read_run_file(folder)
    if not state:
        # A run that was killed before it began leaves only a draft; earlier versions named it run.json.draft.
        drafts = {*folder.glob(f"{RUN_FILE}*{DRAFT_SUFFIX}"), *(folder / name for name in FOLDER_LOCK)}
        if folder.is_dir() and not drafts.issuperset(folder.iterdir()):
            raise InputError(
                f"output_dir {folder} is not empty and holds no run of edit-trl; choose another, or remove it"
            )
        return {}
    check_same_run(folder, values, f"output_dir {folder} holds")
    return state


def check_same_run(folder: Path, values: Mapping[str, Any], finding: str) -> None:
    """Check that the run in `folder`, if there is one, has the options `values`, apart from `INCIDENTAL` ones.

    Raises:
        InputError: Options differ. The message begins with `finding`, such as "output_dir out holds".
    """
    state = read_run_file(folder)
    if not state:
        return
    if "options" not in state:
        raise InputError(f"{folder / RUN_FILE} has no options of a run; choose another output_dir, or remove {folder}")
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


def _essentials(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in INCIDENTAL}, default=str))


def write_run_file(folder: Path, values: Mapping[str, Any], finished: str | None, results: Mapping[str, Any]) -> None:
    """Write a run's options (except its Hub token), when it finished (None while it runs) and its last metrics."""
    options = {k: v for k, v in values.items() if k != "hub_token"}
    state = {"edit_trl": version("edit_trl"), "finished": finished, "options": options, "results": results}
    write_whole(folder / RUN_FILE, json.dumps(state, indent=2, default=str) + "\n")
