"""What a cell does. Run as a module, this is a worker: a cell a line comes in, and its end goes out.

Everything goes through the commands of edit-trl, so that a cell's folders can be looked at with them.
"""

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from effect_matrix.cells import WARM_UP, Cell, read_cell, write_cell

Result = dict[str, Any]

CURVES = ("loss", "logps/chosen", "fork/confidence", "key_accuracy")
# What a matrix may set otherwise in `warm_up` and `stage_2`.
DEFAULTS = {
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 10,
    "disable_tqdm": True,
    "max_length": 512,
    "dtype": "float32",
    "use_peft": False,
}


def training_options(recipe: str | None, *over: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `edit-trl train`: the recipe's last stage, and what is set over it.

    Args:
        recipe: The text of a recipe.
        over: Options, each over the ones before.
    """
    values = yaml.safe_load(recipe) if recipe else {}
    stages = values.pop("stages", None)
    if stages:
        values |= {key: value for key, value in stages[-1].items() if key != "name"}
    merged = DEFAULTS | values
    for options in over:
        merged |= options
    return merged


def run_cell(cell: Cell, output: Path) -> Result:
    """Do a cell's work."""
    return {"warm_up": _warm_up, "pairs": _pairs, "tune": _tune, "final": _final}[cell.kind](cell, output)


def set_folder(output: Path, name: str) -> Path:
    """Where a set that is the same for all cells is."""
    return output / "data" / name / "rows"


def warmed_up(cell: Cell, output: Path) -> Path:
    """The model that a cell's second stage starts from."""
    return output / "cells" / cell.student / "warm_up" / f"seed{cell.seed}" / "model"


def _warm_up(cell: Cell, output: Path) -> Result:
    folder, inputs = cell.folder(output), cell.inputs
    student, parameters = inputs["student"].get("path"), None
    if student is None:
        from datasets import load_from_disk

        from effect_matrix.student import FromScratch, make_student

        rows = load_from_disk(str(set_folder(output, "warm_up"))).to_list()
        sizes = FromScratch(**inputs["student"]["from_scratch"])
        student = str(folder / "student")
        parameters = make_student(sizes, rows, cell.seed, Path(student))
    options = training_options(None, {"chosen_key_weight": 1.0, "preference_weight": 0.0}, inputs["warm_up"])
    trained = _train(folder / "model", options, student, set_folder(output, "warm_up"), cell.seed)
    return {"parameters": parameters, **trained, **_dev(folder / "model", cell, output)}


def _pairs(cell: Cell, output: Path) -> Result:
    spec, folder, model = cell.inputs["pairs"], cell.folder(output), warmed_up(cell, output)
    if "generate" in spec:
        from edit_trl.cli.generate import main as generate

        words = {"model": model, "student": cell.student, "seed": cell.seed, "output": folder / "rows"}
        options = {key: _filled(value, words) for key, value in spec["generate"].items()}
        code = generate(["--config", str(_write_yaml(folder / "generate.yaml", options))])
        return {"exit_code": code}
    from datasets import load_from_disk

    of = set_folder(output, "warm_up" if spec["of"] == "warm_up" else f"pairs_{spec['of']}")
    items = _suite(model, of, folder / "suite")
    confidence = {item["id"]: fork_confidence(item) for item in items}
    rows = load_from_disk(str(of))
    order = sorted(range(len(rows)), key=lambda index: confidence[rows[index]["id"]])
    kept = sorted(order[: max(1, round(len(rows) * spec["hardest"]))])
    rows.select(kept).save_to_disk(folder / "rows")
    return {"pairs": len(kept), "most_confident": confidence[rows[order[len(kept) - 1]]["id"]]}


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    return value.format_map(words) if isinstance(value, str) else value


def _pairs_path(cell: Cell, output: Path) -> Path:
    name, pairs = cell.inputs["pairs_name"], cell.inputs["pairs"]
    if "warm_up" in pairs:  # of a cell
        return output / "cells" / cell.student / "pairs" / f"{name}_seed{cell.seed}" / "rows"
    if "{" in pairs.get("path", ""):
        return Path(pairs["path"].format(student=cell.student, seed=cell.seed))
    return set_folder(output, f"pairs_{name}")


def _stage_2(cell: Cell, output: Path, point: Mapping[str, Any], folder: Path) -> Result:
    inputs = cell.inputs
    over = (inputs["stage_2"], inputs["options"], point, inputs.get("variant", {}))
    options = training_options(inputs["recipe"], *over)
    seed = inputs.get("stage_2_seed", cell.seed)
    return _train(folder, options, str(warmed_up(cell, output)), _pairs_path(cell, output), seed)


def _tune(cell: Cell, output: Path) -> Result:
    folder = cell.folder(output)
    trained = _stage_2(cell, output, cell.inputs["point"], folder / "model")
    return {"point": cell.inputs["point"], **trained, **_dev(folder / "model", cell, output)}


def best_point(cells: Sequence[str], output: Path) -> tuple[str, Result]:
    """The grid's best cell on dev, the earliest of equals, and its result."""
    results = {name: read_cell(output / "cells" / name)["result"] for name in cells}
    best = max(results, key=lambda name: results[name]["dev"]["accuracy"])
    return best, results[best]


def _final(cell: Cell, output: Path) -> Result:
    folder, trained, model = cell.folder(output), {}, warmed_up(cell, output)
    tuned = [name for name in cell.needs if "/tune/" in name]
    if cell.method != WARM_UP:
        best, result = best_point(tuned, output)
        if "variant" not in cell.inputs and _tuning_seed(best, output) == cell.seed:
            trained, model = result, output / "cells" / best / "model"
        else:
            model = folder / "model"
            trained = _stage_2(cell, output, result["point"], model)
        trained = {key: value for key, value in trained.items() if key != "dev"} | {"point": result["point"]}
    tests = {}
    for name, spec in cell.inputs["tests"].items():
        tests[name] = _evaluate(model, name, spec, folder / name, output)
    items = _suite(model, set_folder(output, "held_out"), folder / "held_out")
    return {**trained, "tests": tests, "held_out": held_out_scores(items, folder / "held_out")}


def _tuning_seed(name: str, output: Path) -> int:
    return read_cell(output / "cells" / name)["inputs"]["warm_up"]["seed"]


def held_out_scores(items: Sequence[Mapping[str, Any]], folder: Path) -> Result:
    """Preference scores, and what the student thinks of correct chains: log p a token, p at the fork."""
    from edit_trl.evaluation.runs import read_run

    scores = dict(read_run(folder).record.scores)
    scores["chosen_logp"] = sum(item["logps"]["chosen"] for item in items) / len(items)
    scores["fork_confidence"] = sum(map(fork_confidence, items)) / len(items)
    return scores


def fork_confidence(item: Mapping[str, Any]) -> float:
    """The probability of the correct chain's token where the two chains part."""
    sides = [
        [(start, item[side][int(start) : int(end)]) for start, end, _ in item["tokens"][side]]
        for side in ("chosen", "rejected")
    ]
    same = sum(1 for _ in _common(*sides))
    tokens = item["tokens"]["chosen"]
    return math.exp(tokens[min(same, len(tokens) - 1)][2])


def _common(first: Sequence[Any], second: Sequence[Any]):
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one


def _train(folder: Path, options: Mapping[str, Any], student: str, rows: Path, seed: int) -> Result:
    """Train a stage, and say what it took."""
    import torch

    import edit_trl.trainer  # noqa: F401 (before the clock starts)
    from edit_trl.cli.train import train_stage

    options = {**options, "model_name_or_path": student, "dataset_name": str(rows), "seed": seed}
    options |= {"output_dir": str(folder), "use_cpu": not torch.cuda.is_available()}
    started = time.process_time()
    code = train_stage(["--config", str(_write_yaml(folder.with_name("train.yaml"), options))])
    if code:
        raise RuntimeError(f"training ended with code {code}")
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    totals = next(entry for entry in reversed(state["log_history"]) if "train_runtime" in entry)
    curves = [{"step": entry["step"], **{k: entry[k] for k in CURVES if k in entry}} for entry in logs]
    tokens = max((entry.get("num_tokens", 0) for entry in state["log_history"]), default=0)
    return {
        "steps": state["global_step"],
        "tokens": tokens,
        "train_seconds": totals["train_runtime"],
        "cpu_seconds": round(time.process_time() - started, 1),  # other programs do not count
        "curves": curves,
    }


def _dev(model: Path, cell: Cell, output: Path) -> Result:
    folder = cell.folder(output) / "dev"
    scores = _evaluate(model, "dev", {}, folder, output)
    return {"dev": scores}


def _evaluate(model: Path, name: str, spec: Mapping[str, Any], folder: Path, output: Path) -> Result:
    from edit_trl.cli.evaluate import main as evaluate
    from edit_trl.evaluation.runs import read_run

    tasks = spec.get("tasks")
    if tasks is None:
        task = {"version": "1", "dataset_name": str(set_folder(output, name).resolve())}
        tasks = [str(_write_yaml(folder.with_name(f"{name}_task.yaml"), task))]
    matrix = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    options = {
        "model": str(model),
        "tasks": tasks,
        "output_dir": str(folder),
        "history": None,
        "batching": "padded",
        **({"limit": spec["rows"]} if "tasks" in spec and "rows" in spec else {}),
        **matrix,
    }
    evaluate(["--config", str(_write_yaml(folder.with_name(f"{name}.yaml"), options))])
    record = read_run(folder).record
    by_task = {task: of["accuracy"] for task, of in record.groups["task"].items()}
    return {**record.scores, "items": record.items, "tasks": by_task}


def _suite(model: Path, rows: Path, folder: Path) -> list[Any]:
    from edit_trl.cli.suite import main as suite
    from edit_trl.evaluation.runs import read_run

    options = {
        "model": str(model),
        "dataset_name": str(rows),
        "output_dir": str(folder),
        "history": None,
        "greedy": False,
        "batch_size": 16,
    }
    suite(["--config", str(_write_yaml(folder.with_name(f"{folder.name}.yaml"), options))])
    return read_run(folder).items


def _write_yaml(path: Path, values: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path


def finish(cell: Cell, output: Path) -> str:
    """Do a cell and keep what came of it; returns its status."""
    started = time.time()
    record = {"name": cell.name, "kind": cell.kind, "student": cell.student, "seed": cell.seed}
    record |= {"method": cell.method, "inputs": cell.inputs}
    try:
        record |= {"status": "done", "result": run_cell(cell, output)}
    except (Exception, SystemExit) as error:  # whatever it was: kept, and the other cells go on
        traceback.print_exc()
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    record["seconds"] = round(time.time() - started, 1)
    write_cell(cell.folder(output), record)
    return record["status"]


def _end_with(parent: int) -> None:
    """End when the process that gives the cells is gone: another may be doing them already."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def main() -> None:
    """Read cells from standard input, and answer each with its status; all else goes into the cell's log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    output = Path(sys.argv[1])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    for line in sys.stdin:
        cell = Cell(**json.loads(line))
        folder = cell.folder(output)
        folder.mkdir(parents=True, exist_ok=True)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        print(finish(cell, output), file=answers, flush=True)


if __name__ == "__main__":
    main()
