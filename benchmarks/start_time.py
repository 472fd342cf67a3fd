"""Measures the time from the command `edit-trl train` to its first step, compared with a plain TRL script.

    python benchmarks/start_time.py --student outputs/quickstart/student [--repeats 3]

Both train the quickstart's LoRA on the same 240 pairs. The plain script (`bare`) has the same imports and
trains `SFTTrainer` on the correct chains. A first run of each, which tokenizes, does not count. The clock
stops when the progress bar of the training appears, just before the first step. The commands take turns, so
that other load on the machine affects all of them. Medians are reported of the elapsed time and of the CPU
time of all processes, which other load affects less. `imports` runs only the import statements of the plain
script, `help` is `edit-trl train --help`. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from inputs import count, run_benchmark

from edit_trl.common.hub_ids import refuse_missing_folder

PAIRS, BATCH = 240, 4
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


def seconds_to(mark: str | None, command: list[str]) -> tuple[float, float]:
    """Time a command until it prints a mark, and stop it then; without a mark, time it until its end.

    Returns:
        Elapsed seconds, and CPU seconds of all its processes.
    """
    before = used_by_children()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    seen = b""
    while chunk := os.read(process.stdout.fileno(), 4096):
        seen += chunk
        if mark is not None and re.search(mark.encode(), seen):
            seconds = time.perf_counter() - started
            cpu = used_by(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return seconds, cpu
    if process.wait() or mark is not None:
        raise SystemExit(f"{' '.join(command)}\n{seen.decode()[-2000:]}")
    return time.perf_counter() - started, used_by_children() - before


def used_by_children() -> float:
    """CPU seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def used_by(pid: int) -> float:
    """CPU seconds of a process and its children."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:4]) for one in (process, *process.children()))


def commands(folder: Path, student: Path) -> dict[str, tuple[str | None, list[str]]]:
    """The commands to time, each with the mark to wait for."""
    training = f"0/{PAIRS // BATCH} "
    cli = [sys.executable, "-m", "edit_trl.cli.main", "train"]
    stage = ["--config", str(RECIPE), "--model_name_or_path", str(student), "--stage", "warm_up"]
    stage += ["--dataset_name", str(folder / "data"), "--output_dir", str(folder / "out")]
    stage += ["--bf16", "false", "--use_cpu", "true"]
    script = folder / "bare.py"
    values = {"data": str(folder / "data"), "output": str(folder / "bare"), "student": str(student)}
    script.write_text(BARE.format(batch=BATCH, **values), encoding="utf-8")
    return {
        "imports": (None, [sys.executable, "-c", f"{IMPORTS}import os; os._exit(0)"]),
        "bare": (f"{training}.*", [sys.executable, str(script)]),
        "edit-trl train": (f"{training}.*", [*cli, *stage]),
        "help": (None, [*cli, "--help"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="Folder of the quickstart's student.")
    parser.add_argument("--repeats", type=count, default=3)
    args = parser.parse_args()
    if args.student:
        refuse_missing_folder(str(args.student), "student")
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder / "data")
        timed = commands(folder, args.student.resolve())
        for repeat in range(args.repeats + 1):
            for what, (mark, command) in timed.items():
                seconds = seconds_to(mark, command)
                shutil.rmtree(folder / "out", ignore_errors=True)
                if repeat:
                    times.setdefault(what, []).append(seconds)
    medians = {w: [statistics.median(kind) for kind in zip(*times[w], strict=True)] for w in times}
    pairs = zip(medians["edit-trl train"], medians["bare"], strict=True)
    medians["ours"] = [with_us - bare for with_us, bare in pairs]
    print("| | seconds | of CPU |\n|---|---|---|")
    for what, (seconds, cpu) in medians.items():
        print(f"| {what} | {seconds:.2f} | {cpu:.2f} |")
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
