"""Finished runs, written by `RunFolder` itself, without a model."""

from pathlib import Path

from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.schema import Run, RunRecord, key_of
from edit_trl.evaluation.runs.scores import run_scores


def evaluate_item(identity, verdict="correct", task="sums", **changes):
    sample = {"response": "", "verdict": verdict, "value": None, "span": None, "cut_off": False, "tokens": 1}
    sample |= {"lenient_verdict": verdict, "lenient_value": None, "lenient_span": None}
    item = {"task": task, "id": str(identity), "prompt": f"{identity}?", "answer": "1", "answer_type": "number"}
    item |= {"mistake": None, "source": None, "verdict": verdict, "value": None}
    item |= {"lenient_verdict": verdict, "lenient_value": None, "cut_off": 0, "samples": [sample]}
    return item | changes


def suite_item(identity, margin, key_margin=None, task="sums", **changes):
    logps = {"chosen": margin - 2.0, "rejected": -2.0, "chosen_key": None, "rejected_key": None}
    item = {"task": task, "id": str(identity), "prompt": f"{identity}?", "chosen": "1 + 1 = 2", "answer": "2"}
    item |= {"rejected": "1 + 1 = 3", "mistake": None, "source": None, "logps": logps, "margin": margin}
    item |= {"chosen_key_spans": [[8, 9]], "rejected_key_spans": [[8, 9]], "preferred": margin > 0}
    item |= {"key_margin": key_margin, "key_preferred": None if key_margin is None else key_margin > 0}
    return item | {"first_wrong": None, "greedy": None, "tokens": {"chosen": [], "rejected": []}} | changes


def outcomes(text, task="sums", start=0, **changes):
    """Items that are right at each "+", wrong at "-", and without an answer at "?"."""
    verdicts = {"+": "correct", "-": "wrong", "?": "unparsed"}
    return [evaluate_item(start + i, verdicts[one], task, **changes) for i, one in enumerate(text)]


def finished_run(path, items, name="student", kind="evaluate", **record) -> Run:
    """A run of some items; other values of its record by name."""
    record = {"model": f"models/{name}", "model_hash": "m1", "data_hash": "d1", "recipe_hash": "r1"} | record
    settings = {"decoding": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "samples": 1}}
    settings |= record.pop("settings", {})
    tasks = dict.fromkeys((item["task"] for item in items), "1") | record.pop("tasks", {})
    folder = RunFolder(Path(path), RunRecord(kind, name, settings=settings, tasks=tasks, **record))
    folder.append(items)
    return folder.finish([key_of(item) for item in items], *run_scores(items, kind))
