"""Measures how long commands take that people wait for, first of all `edit-trl train` to its first step.

    python benchmarks/start_time.py --student outputs/quickstart/student [--repeats 3] [--only train bare]
        [--pairs 200000] [--rows 50000] [--items 20000]

`train` is compared with a plain TRL script (`bare`). Both train the quickstart's LoRA on the same 240 pairs.
The plain script (`bare`) has the same imports and trains `SFTTrainer` on the correct chains. A first run of
each, which tokenizes, does not count. The clock stops at the first step: at the progress bar of the plain
script, just before it, and at the line of `train`, just after it. The commands take turns, so that other load
on the machine affects all of them. Medians are reported of the elapsed time and of the CPU time of all
processes, which other load affects less. `imports` runs only the import statements of the plain script,
`help` is `edit-trl train --help`, `mistyped` is `edit-trl train` with an option that does not exist, and
`finished` is `edit-trl train` after its stage has ended. `dry_run` estimates the memory of that stage.
`validate` checks `--pairs` pairs, `inspect` prints `--rows` pairs, and `report` writes a page of two suites
of `--items` items. For commands that run to their end, the most memory that one of their processes held is
given in MiB. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
from inputs import count, run_benchmark

from edit_trl.common.hub_ids import refuse_missing_folder

PAIRS, BATCH = 240, 8
RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart" / "config.yaml"
IMPORTS = """
from datasets import load_from_disk
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
"""
BARE = (
    IMPORTS
    + """
rows = load_from_disk({data!r})["warm_up"].rename_column("chosen", "completion")
args = SFTConfig({output!r}, per_device_train_batch_size={batch}, learning_rate=1e-3, max_length=512,
                 num_train_epochs=1, bf16=False, use_cpu=True,
                 gradient_checkpointing=False, report_to="none", save_strategy="no",
                 model_init_kwargs={{"dtype": "float32"}})
SFTTrainer({student!r}, args=args, train_dataset=rows.select_columns(["prompt", "completion"]),
           peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).train()
"""
)


def make_rows(folder: Path) -> None:
    """Save pairs like the quickstart's to disk, so that the tokenized rows are cached beside them."""
    from datasets import DatasetDict

    from edit_trl import ProceduralTeacher, generate_dual_cots

    families = ("object_counting", "arithmetic", "boolean_expressions")
    rows = generate_dual_cots(ProceduralTeacher(families, seed=0), PAIRS, conversational=True)
    DatasetDict({"warm_up": rows, "key_steps": rows}).save_to_disk(folder)


def write_pairs(file: Path, count: int) -> None:
    """Write a file of `count` pairs, of which each problem occurs about once in 10,000."""
    from edit_trl import ProceduralTeacher, generate_dual_cots

    families = ("object_counting", "arithmetic", "navigate", "word_sorting")
    rows = generate_dual_cots(ProceduralTeacher(families, seed=0, difficulty=2), min(count, 10_000)).to_list()
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            row = rows[number % len(rows)]
            lines.write(json.dumps({**row, "id": f"{row['id']}/{number // len(rows)}"}) + "\n")


def write_suites(folder: Path, count: int) -> None:
    """Write two suites of `count` items, made up as in the tests of the report."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from report_data import suite_items, write_run

    write_pairs(folder / "suite.jsonl", count)
    rows = [json.loads(line) for line in (folder / "suite.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, skill in (("before", 0.5), ("after", 0.7)):
        write_run(folder / name, "suite", name, suite_items(rows, skill))


def seconds_to(mark: str | None, command: list[str], code: int = 0) -> tuple[float, float, float]:
    """Time a command until it prints a mark, and stop it then; without a mark, time it until its end.

    Returns:
        Elapsed seconds, CPU seconds of all its processes, and the MiB of the largest; 0 for a command that is stopped.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    seen = b""
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        seen = (seen + chunk)[-(1 << 17) :]  # some commands print tens of megabytes
        if mark is not None and re.search(mark.encode(), seen):
            seconds = time.perf_counter() - started
            cpu = used_by(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return seconds, cpu, 0.0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code or mark is not None:
        raise SystemExit(f"{' '.join(command)}\n{seen.decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def used_by(pid: int) -> float:
    """CPU seconds of a process and its children."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:4]) for one in (process, *process.children()))


WHAT = ("imports", "bare", "train", "help", "mistyped", "finished", "dry_run", "validate", "inspect", "report")


def commands(folder: Path, student: Path) -> dict[str, tuple[str | None, list[str]]]:
    """The commands to time, each with the mark to wait for."""
    training = f"0/{PAIRS // BATCH} "
    cli = [sys.executable, "-m", "edit_trl.cli.main", "train"]
    stage = ["--config", str(RECIPE), "--model_name_or_path", str(student), "--stage", "warm_up"]
    stage += ["--dataset_name", str(folder / "data"), "--output_dir", str(folder / "out")]
    stage += ["--bf16", "false", "--use_cpu", "true"]
    suites = [str(folder / name) for name in ("before", "after")]
    script = folder / "bare.py"
    values = {"data": str(folder / "data"), "output": str(folder / "bare"), "student": str(student)}
    script.write_text(BARE.format(batch=BATCH, **values), encoding="utf-8")
    return {
        "imports": (None, [sys.executable, "-c", f"{IMPORTS}import os; os._exit(0)"]),
        "bare": (f"{training}.*", [sys.executable, str(script)]),
        "train": ("step 1/", [*cli, *stage, "--logging_steps", "1"]),
        "help": (None, [*cli, "--help"]),
        "mistyped": (None, [*cli, *stage, "--learnin_rate", "1"]),
        "finished": (None, [*cli, *stage, "--output_dir", str(folder / "finished"), "--max_steps", "1"]),
        "dry_run": (None, [*cli, *stage, "--dry_run"]),
        "validate": (None, [*cli[:-1], "validate", "--dataset", str(folder / "pairs.jsonl")]),
        "inspect": (None, [*cli[:-1], "inspect", str(folder / "rows.jsonl")]),
        "report": (None, [*cli[:-1], "report", *suites, "--output", str(folder / "report.html")]),
    }


def prepare(folder: Path, what: Sequence[str], args: argparse.Namespace) -> None:
    """Write what the commands read."""
    make_rows(folder / "data")
    if "validate" in what:
        write_pairs(folder / "pairs.jsonl", args.pairs)
    if "inspect" in what:
        write_pairs(folder / "rows.jsonl", args.rows)
    if "report" in what:
        write_suites(folder, args.items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="Folder of the quickstart's student.")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--only", nargs="+", choices=WHAT, default=list(WHAT), help="The commands to time.")
    parser.add_argument("--pairs", type=count, default=200_000, help="Pairs for validate.")
    parser.add_argument("--rows", type=count, default=50_000, help="Pairs for inspect.")
    parser.add_argument("--items", type=count, default=20_000, help="Items of each suite for report.")
    args = parser.parse_args()
    if args.student:
        refuse_missing_folder(str(args.student), "student")
    times: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In another process: the memory of this one counts as the most of every process that it starts.
        writer = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder, args.only, args))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit("the data could not be written")
        timed = {
            what: command for what, command in commands(folder, args.student.resolve()).items() if what in args.only
        }
        for repeat in range(args.repeats + 1):
            for what, (mark, command) in timed.items():
                seconds = seconds_to(mark, command, 2 if what == "mistyped" else 0)
                shutil.rmtree(folder / "out", ignore_errors=True)
                if repeat:
                    times.setdefault(what, []).append(seconds)
    medians = {w: [statistics.median(kind) for kind in zip(*times[w], strict=True)] for w in times}
    if {"train", "bare"} <= medians.keys():
        pairs = zip(medians["train"], medians["bare"], strict=True)
        medians["ours"] = [with_us - bare for with_us, bare in pairs]
    print("| | seconds | of CPU | MiB |\n|---|---|---|---|")
    for what, (seconds, cpu, memory) in medians.items():
        print(f"| {what} | {seconds:.2f} | {cpu:.2f} | {f'{memory:.0f}' if memory else ''} |")
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    print(
        json.dumps(
            {
                "benchmark": "start_time",
                "seconds": medians,
                "all": times,
                "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            }
        )
    )


if __name__ == "__main__":
    run_benchmark(main)
