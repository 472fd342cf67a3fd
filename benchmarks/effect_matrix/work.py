"""The work of a cell. Run as a module, this is a worker: it reads one cell per line and answers its status.

All work is done by the commands of edit-trl, so that these commands can inspect a cell's folders.
"""

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edit_trl.common.conversion import natural
from edit_trl.common.malloc import keep_freed_memory
from edit_trl.common.yaml_file import parse_yaml
from edit_trl.models.identity import model_hash
from effect_matrix.cells import WARM_UP, Cell, read_cell, write_cell
from effect_matrix.data import prompt_text
from effect_matrix.measure import (
    Result,
    as_served,
    evaluate_set,
    fork_confidence,
    held_out_scores,
    set_folder,
    suite_items,
    train,
    write_yaml,
)

# Defaults that `warm_up` and `stage_2` of a matrix may override.
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
    """Options of `edit-trl train`: those of the recipe's last stage, overridden by others.

    Args:
        recipe: The text of a recipe.
        over: Options; each mapping overrides those before it.
    """
    values = natural(parse_yaml(recipe, "recipe")) if recipe else {}
    stages = values.pop("stages", None)
    if stages:
        values |= {key: value for key, value in stages[-1].items() if key != "name"}
    merged = DEFAULTS | values
    for options in over:
        merged |= options
    return merged


def run_cell(cell: Cell, output: Path) -> Result:
    """Run a cell."""
    return {"warm_up": _warm_up, "pairs": _pairs, "tune": _tune, "final": _final}[cell.kind](cell, output)


def warmed_up(cell: Cell, output: Path) -> Path:
    """The model that a cell's second stage starts from."""
    return output / "cells" / cell.student / "warm_up" / f"seed{cell.seed}" / "model"


def _start(cell: Cell, output: Path, key: str) -> Path:
    """The model that a cell starts from: the final one of the method that `key` of its inputs names, or the warm-up."""
    if key not in cell.inputs:
        return warmed_up(cell, output)
    [name] = [name for name in cell.needs if "/final/" in name]
    return output / read_cell(output / "cells" / name)["result"]["model"]


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
    trained = train(folder / "model", options, student, set_folder(output, "warm_up"), cell.seed)
    weights = model_hash(str(folder / "model"))
    return {"parameters": parameters, "weights": weights, **trained, **_dev(folder / "model", cell, output)}


def _pairs(cell: Cell, output: Path) -> Result:
    spec, rows = cell.inputs["pairs"], cell.folder(output) / "rows"
    if "generate" in spec:
        return _generate(spec["generate"], cell, output)
    from datasets import Dataset, load_from_disk

    whole = set_folder(output, "warm_up" if spec["of"] == "warm_up" else f"pairs_{spec['of']}")
    pairs = load_from_disk(str(whole))
    result: Result = {}
    beside = spec.get("problems_of") or spec.get("wrong_chains_of")
    if beside:
        other = pairs_path(beside, cell.inputs["beside"], cell, output)
        wrong = {prompt_text(row): row["rejected"] for row in _rows(other)}
        pairs = pairs.filter(lambda row: prompt_text(row) in wrong)
        if "wrong_chains_of" in spec:
            # The spans and kinds of mistake belong to the wrong chains that are replaced.
            columns = [name for name in pairs.column_names if name in ("prompt", "chosen", "answer", "id")]
            pairs = Dataset.from_list(
                [
                    row | {"rejected": wrong[prompt_text(row)], "source": "on_policy"}
                    for row in pairs.select_columns(columns).to_list()
                ]
            )
    if "hardest" in spec:
        items = suite_items(warmed_up(cell, output), whole, cell.folder(output) / "suite", output)
        confidence = {item["id"]: fork_confidence(item) for item in items}
        order = sorted(range(len(pairs)), key=lambda index: confidence[pairs[index]["id"]])
        hardest = sorted(order[: max(1, round(len(pairs) * spec["hardest"]))])
        result["most_confident"] = max(confidence[pairs[index]["id"]] for index in hardest)
        pairs = pairs.select(hardest)
    pairs.save_to_disk(rows)
    return {"pairs": len(pairs), **result}


def _generate(recipe: Mapping[str, Any], cell: Cell, output: Path) -> Result:
    """Generate pairs with a recipe, such as those of the student's own pivots."""
    from edit_trl.cli.generate import main as generate

    rows = cell.folder(output) / "rows"
    words = {"model": _start(cell, output, "student_of"), "student": cell.student, "seed": cell.seed}
    words |= {"data": output / "data", "output": rows}
    options = {key: _filled(value, words) for key, value in {"output_dir": "{output}", **recipe}.items()}
    code = generate(["--config", str(write_yaml(cell.folder(output) / "generate.yaml", options))])
    if code:
        raise RuntimeError(f"edit-trl generate ended with code {code}")
    left_out = _leave_out_measured(rows, output)
    counts = json.loads((rows / "report.json").read_text(encoding="utf-8"))["counts"]
    answers = sum(sum(stage.values()) for stage in counts.values())
    return {"pairs": len(_rows(rows)), "answers": answers, "left_out": left_out}


def _leave_out_measured(rows: Path, output: Path) -> int:
    """Remove the problems of the dev, held-out and test sets from generated rows; returns how many rows had one.

    A teacher that makes its own problems may hit some of them by chance.
    """
    from datasets import load_dataset

    measured: set[str] = set()
    for file in (output / "data").glob("*/questions.jsonl"):
        if file.parent.name.startswith(("dev", "held_out", "test_")):
            measured |= {json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()}
    count = 0
    for file in rows.glob("*.parquet"):
        whole = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(rows / "cache"))
        kept = whole.filter(lambda row: prompt_text(row) not in measured)
        if len(kept) < len(whole):
            count += len(whole) - len(kept)
            kept.to_parquet(file)
    shutil.rmtree(rows / "cache", ignore_errors=True)
    return count


def _rows(source: Path) -> list[Any]:
    """The pairs in a file or folder."""
    from edit_trl import load_dual_cots

    return load_dual_cots(str(source), split="dual" if is_generated(source) else None).to_list()


def is_generated(folder: Path) -> bool:
    """Whether `edit-trl generate` wrote the folder, which then has the rows of both stages."""
    return (folder / "dual.parquet").is_file()


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    return value.format_map(words) if isinstance(value, str) else value


def pairs_path(name: str, inputs: Mapping[str, Any], cell: Cell, output: Path) -> Path:
    """The path of the pairs that a cell trains on.

    Args:
        name: The name of their set.
        inputs: The inputs of the cell that makes the pairs, or the options of a set that all cells share.
        cell: The cell, for its student and seed.
        output: The folder of the matrix.
    """
    if "warm_up" in inputs:  # the inputs of a cell
        return output / "cells" / cell.student / "pairs" / f"{name}_seed{cell.seed}" / "rows"
    if "{" in inputs.get("path", ""):
        return Path(inputs["path"].format(student=cell.student, seed=cell.seed))
    return set_folder(output, f"pairs_{name}")


def _stage_2(cell: Cell, output: Path, point: Mapping[str, Any], folder: Path) -> Result:
    inputs = cell.inputs
    over = (inputs["stage_2"], inputs["options"], point, inputs.get("variant", {}))
    options = training_options(inputs["recipe"], *over)
    seed = inputs.get("stage_2_seed", cell.seed)
    rows = pairs_path(inputs["pairs_name"], inputs["pairs"], cell, output)
    if is_generated(rows):
        options.setdefault("dataset_train_split", "dual")
    return train(folder, options, str(_start(cell, output, "start")), rows, seed)


def _tune(cell: Cell, output: Path) -> Result:
    folder = cell.folder(output)
    trained = _stage_2(cell, output, cell.inputs["point"], folder / "model")
    return {"point": cell.inputs["point"], **trained, **_dev(folder / "model", cell, output)}


def best_point(cells: Sequence[str], output: Path) -> tuple[str, Result]:
    """The name and result of the grid's best cell on the dev set; the first of equal ones."""
    results = {name: read_cell(output / "cells" / name)["result"] for name in cells}
    best = max(results, key=lambda name: results[name]["dev"]["accuracy"])
    return best, results[best]


# What a cell's result says about its training.
_TRAINED = ("point", "steps", "tokens", "train_seconds", "cpu_seconds", "curves")


def _final(cell: Cell, output: Path) -> Result:
    if "measures" in cell.inputs:
        [name] = cell.needs
        before = read_cell(output / "cells" / name)["result"]
        trained = {key: before[key] for key in ("started_from", *_TRAINED) if key in before}
        return _measured(cell, output, output / before["model"], trained)
    folder, model = cell.folder(output), warmed_up(cell, output)
    trained = {"started_from": model_hash(str(model))}
    if cell.method != WARM_UP:
        best, result = best_point([name for name in cell.needs if "/tune/" in name], output)
        tuned = output / "cells" / best / "model"
        # A record may come from another machine, without its model.
        if "variant" not in cell.inputs and _tuning_seed(best, output) == cell.seed and tuned.is_dir():
            model = tuned
        else:
            model = folder / "model"
            result = result | _stage_2(cell, output, result["point"], model)
        trained |= {key: value for key, value in result.items() if key in _TRAINED}
    return _measured(cell, output, model, trained)


def _measured(cell: Cell, output: Path, model: Path, trained: Result) -> Result:
    """The result of a final cell: how its model was trained, and its scores on the tests and the held-out pairs."""
    folder, tests = cell.folder(output), {}
    with as_served(model, output) as served:
        for name, spec in cell.inputs["tests"].items():
            tests[name] = evaluate_set(served, name, spec, folder / name, output, cell.inputs.get("evaluation"))
        items = suite_items(served, set_folder(output, "held_out"), folder / "held_out", output)
    held_out = held_out_scores(items, folder / "held_out")
    return {"model": str(model.relative_to(output)), **trained, "tests": tests, "held_out": held_out}


def _tuning_seed(name: str, output: Path) -> int:
    return read_cell(output / "cells" / name)["inputs"]["warm_up"]["seed"]


def _dev(model: Path, cell: Cell, output: Path) -> Result:
    folder = cell.folder(output) / "dev"
    with as_served(model, output) as served:
        return {"dev": evaluate_set(served, "dev", {}, folder, output)}


def finish(cell: Cell, output: Path) -> str:
    """Run a cell and write its record; returns its status."""
    started = time.time()
    record = {"name": cell.name, "kind": cell.kind, "student": cell.student, "seed": cell.seed}
    record |= {"method": cell.method, "inputs": cell.inputs}
    try:
        record |= {"status": "done", "result": run_cell(cell, output)}
    except (Exception, SystemExit) as error:  # recorded, so that the other cells can run
        traceback.print_exc()
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    record["seconds"] = round(time.time() - started, 1)
    write_cell(cell.folder(output), record)
    return record["status"]


def _end_with(parent: int) -> None:
    """Exit when the parent process is gone, since another one may already be running the cells."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def main() -> None:
    """Read cells from standard input and answer each with its status; other output goes to the cell's log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    output = Path(sys.argv[1])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    keep_freed_memory()  # as a command does
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
