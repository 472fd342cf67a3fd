"""Trains and measures a model with the commands of edit-trl, and collects the results."""

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

Result = dict[str, Any]

# How a record of a cell tells the score of an item; an item without a score has none.
MARKS = {True: "1", False: "0", None: "-"}
CURVES = ("loss", "logps/chosen", "fork/confidence", "key_accuracy")


def set_folder(output: Path, name: str) -> Path:
    """The folder of a set that all cells share."""
    return output / "data" / name / "rows"


def held_out_scores(items: Sequence[Mapping[str, Any]], folder: Path) -> Result:
    """Preference scores, the log-probability per token of correct chains, and the probability at the fork."""
    from edit_trl.evaluation.runs.folder import read_run

    scores = dict(read_run(folder).record.scores)
    scores["marks"] = _marks(items, "key_preference", "suite")
    scores["chosen_logp"] = sum(item["logps"]["chosen"] for item in items) / len(items)
    scores["fork_confidence"] = sum(map(fork_confidence, items)) / len(items)
    return scores


def fork_confidence(item: Mapping[str, Any]) -> float:
    """The probability of the correct chain's token at the fork, where the two chains diverge."""
    sides = [
        [(start, item[side][int(start) : int(end)]) for start, end, _ in item["tokens"][side]]
        for side in ("chosen", "rejected")
    ]
    fork = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)))
    tokens = item["tokens"]["chosen"]
    return math.exp(tokens[min(fork, len(tokens) - 1)][2])


def train(folder: Path, options: Mapping[str, Any], student: str, rows: Path, seed: int) -> Result:
    """Train a stage; returns its steps, tokens, times and curves."""
    import torch

    import edit_trl.training.trainer  # noqa: F401 (before the clock starts)
    from edit_trl.cli.train import train_stage

    options = {**options, "model_name_or_path": student, "dataset_name": str(rows), "seed": seed}
    options |= {"output_dir": str(folder), "use_cpu": not torch.cuda.is_available()}
    started = time.process_time()
    code = train_stage(["--config", str(write_yaml(folder.with_name("train.yaml"), options))])
    if code:
        raise RuntimeError(f"training ended with code {code}")
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    totals = next(entry for entry in reversed(state["log_history"]) if "train_runtime" in entry)
    curves = [{"step": entry["step"], **{k: entry[k] for k in CURVES if k in entry}} for entry in logs]
    # Not every trainer of TRL counts tokens.
    tokens = max((entry["num_tokens"] for entry in state["log_history"] if "num_tokens" in entry), default=None)
    return {
        "steps": state["global_step"],
        "tokens": tokens,
        "train_seconds": totals["train_runtime"],
        "cpu_seconds": round(time.process_time() - started, 1),  # not affected by other programs
        "curves": curves,
    }


@contextmanager
def as_served(model: Path, output: Path) -> Iterator[Path]:
    """The model as it would be served: an adapter is merged into its base, in the dtype of the measurements."""
    if not (model / "adapter_config.json").is_file():
        yield model
        return
    from edit_trl.models.merging import merge_adapter

    dtype = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))["dtype"]
    merged = model.with_name(f"{model.name}_merged")
    shutil.rmtree(merged, ignore_errors=True)
    try:
        merge_adapter(str(model), merged, dtype=dtype)
        yield merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _marks(items: Sequence[Any], score: str, kind: str) -> str:
    """The score of each item that is right or wrong, one character each: see `MARKS`."""
    from edit_trl.evaluation.runs.scores import SCORES

    values = [SCORES[kind][score](item) for item in items]
    return "".join(MARKS[None if value is None else bool(value)] for value in values)


def evaluate_set(
    model: Path, name: str, spec: Mapping[str, Any], folder: Path, output: Path, over: Mapping[str, Any] | None = None
) -> Result:
    """Evaluate a model on a set, with some options of `edit-trl evaluate` overridden; returns scores and marks."""
    from edit_trl.cli.evaluate import main as evaluate
    from edit_trl.evaluation.runs.folder import read_run

    tasks = spec.get("tasks")
    if tasks is None:
        task = {"version": "1", "dataset_name": str(set_folder(output, name).resolve())}
        tasks = [str(write_yaml(folder.with_name(f"{name}_task.yaml"), task))]
    matrix = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    options = {
        "model": str(model),
        "tasks": tasks,
        "output_dir": str(folder),
        "history": None,
        "batching": "padded",
        **({"limit": spec["rows"]} if "tasks" in spec and "rows" in spec else {}),
        **matrix,
        **(over or {}),
    }
    evaluate(["--config", str(write_yaml(folder.with_name(f"{name}.yaml"), options))])
    evaluated = read_run(folder)
    record = evaluated.record
    by_task = {task: scores["accuracy"] for task, scores in record.groups["task"].items()}
    marks = _marks(evaluated.items, "accuracy", "evaluate")
    result = {**record.scores, "items": record.items, "tasks": by_task, "marks": marks}
    if "majority_accuracy" in record.scores:
        result["majority_marks"] = _marks(evaluated.items, "majority_accuracy", "evaluate")
    return result


def suite_items(model: Path, rows: Path, folder: Path, output: Path) -> list[Any]:
    from edit_trl.cli.suite import main as suite
    from edit_trl.evaluation.runs.folder import read_run

    options = {
        "model": str(model),
        "dataset_name": str(rows),
        "output_dir": str(folder),
        "history": None,
        "greedy": False,
        "batch_size": 16,
        "dtype": json.loads((output / "evaluation.json").read_text(encoding="utf-8"))["dtype"],
    }
    suite(["--config", str(write_yaml(folder.with_name(f"{folder.name}.yaml"), options))])
    return read_run(folder).items


def write_yaml(path: Path, values: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path
