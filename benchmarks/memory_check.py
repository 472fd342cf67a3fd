"""Compares the memory estimates of `edit-trl train --dry_run` with the memory that runs use.

    python benchmarks/memory_check.py --model outputs/quickstart/student            # on a CPU
    python benchmarks/memory_check.py --device cuda --tokenizer PATH [--shapes 1b 3b 8b]
    python benchmarks/memory_check.py --recipes                   # the table of recipes/README.md
    python benchmarks/memory_check.py --recipe recipes/quickstart/config.yaml --use_cpu true [--OPTION VALUE]

Every run is a process of its own: a few steps of the real trainer on made-up pairs of one length.

On a CPU, the measured value is the process's peak resident memory during training, minus its memory after all
imports and tokenization (printed as `before`, the constant of the estimate's overhead). The estimate is shown
without that overhead. `loading` is the peak before the first step, minus `before`. On a GPU, the measured
value is `torch.cuda.max_memory_allocated`, and the estimate leaves out the CUDA context and fragmentation.

`--recipes` trains nothing: it prints the estimate of every recipe, from the shapes in this file. `--recipe` trains one
recipe on a CPU as `edit-trl train` does, with overriding options, and compares the dry run's estimate of each stage
with the peak memory of its process, loading included. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from inputs import count, run_benchmark

RESULT = "RESULT "
BASE = {"use_peft": False, "dtype": "float32", "layout": "padded", "gradient_checkpointing": False}
BASE |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
LORA = BASE | {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 16}
QLORA = LORA | {"load_in_4bit": True, "dtype": "bfloat16", "gradient_checkpointing": True}
CPU_CASES = {
    "full padded": BASE,
    "full padded ckpt": BASE | {"gradient_checkpointing": True},
    "full tree": BASE | {"layout": "tree"},
    "full tree ckpt accumulate": BASE
    | {"layout": "tree", "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    "full tree 8-bit adam": BASE | {"layout": "tree", "gradient_checkpointing": True, "optim": "adamw_8bit"},
    "lora padded": LORA,
    "lora padded ckpt": LORA | {"gradient_checkpointing": True},
    "lora tree": LORA | {"layout": "tree"},
    "lora tree ckpt": LORA | {"layout": "tree", "gradient_checkpointing": True},
    "lora tree bf16": LORA | {"layout": "tree", "dtype": "bfloat16"},
    "qlora padded ckpt": QLORA,
    "qlora tree ckpt": QLORA | {"layout": "tree"},
}
# hidden, inner, layers, heads, key heads, vocabulary, tied: the shapes of Llama 3, and that of Llama 2 (7b).
SHAPES = {
    "1b": (2048, 8192, 16, 32, 8, 128256, True),
    "3b": (3072, 8192, 28, 24, 8, 128256, True),
    "7b": (4096, 11008, 32, 32, 32, 32000, False),
    "8b": (4096, 14336, 32, 32, 8, 128256, False),
}
PAIR_TOKENS = (512, 1024)
# The students of recipes/: hidden, inner, layers, heads, key heads, size of a head, vocabulary, tied, from
# their published configurations; gemma-3-4b-it without its vision tower, which stays frozen (0.8 GiB more).
STUDENTS = {
    "SmolLM2-135M-Instruct": (576, 1536, 30, 9, 3, 64, 49152, True),
    "SmolLM2-360M-Instruct": (960, 2560, 32, 15, 5, 64, 49152, True),
    "SmolLM2-1.7B-Instruct": (2048, 8192, 24, 32, 32, 64, 49152, True),
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, 128, 151936, True),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, 128, 151936, True),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, 128, 151936, True),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, 128, 151936, False),
    "Llama-3.2-1B-Instruct": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "Llama-3.2-3B-Instruct": (3072, 8192, 28, 24, 8, 128, 128256, True),
    "Llama-3.1-8B-Instruct": (4096, 14336, 32, 32, 8, 128, 128256, False),
    "gemma-3-1b-it": (1152, 6912, 26, 4, 1, 256, 262144, True),
    "gemma-3-4b-it": (2560, 10240, 34, 8, 4, 256, 262208, True),
    "Mistral-7B-Instruct-v0.3": (4096, 14336, 32, 32, 8, 128, 32768, False),
    "Llama-2-7b": (4096, 11008, 32, 32, 32, 128, 32000, False),
}
MOST_SHARDS = (1, 2, 4, 8)


def shape_config(name: str):
    """A Llama of this shape."""
    from transformers import LlamaConfig

    hidden, inner, layers, heads, key_heads, vocabulary, tied = SHAPES[name]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
    )


def recipes_table() -> dict[str, dict]:
    """The estimate of every recipe, and the smallest common card, or several, that holds it."""
    import torch
    from transformers import LlamaConfig

    from edit_trl.training.memory.estimate import GIB, GPU_SIZES, estimate_memory
    from edit_trl.training.memory.longest_batch import made_up_examples
    from edit_trl.training.recipe.outline import read_recipe
    from edit_trl.training.recipe.resolving import resolve_runs

    found: dict[str, dict] = {}
    for path in sorted(Path(__file__).parents[1].glob("recipes/*/edit/config_*.yaml")):
        name = path.parts[-3]
        hidden, inner, layers, heads, key_heads, size, vocabulary, tied = STUDENTS[name]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=size,
            tie_word_embeddings=tied,
            architectures=["LlamaForCausalLM"],
        )
        run = resolve_runs(read_recipe(path), {})[-1]  # it runs the wrong chains too
        if name.startswith("gemma-3-4b"):
            run.model.lora_target_modules = "all-linear" if run.model.use_peft else None
        examples = made_up_examples(run.training.per_device_train_batch_size, run.training.max_length)
        for shards in MOST_SHARDS:
            estimate = estimate_memory(
                config, run.model, run.training, examples, device="cuda", mixed=torch.bfloat16, shards=shards
            )
            cards = estimate.fits()
            if (cards and (shards > 1 or cards[0] <= 24)) or run.model.use_peft:
                break
        result = {"peak": estimate.peak, "parts": estimate.parts, "card": cards[0] if cards else None}
        found[f"{name} {path.stem}"] = result | {"shards": shards}
        holder = f"{shards} x {cards[0]}" if shards > 1 else str(cards[0] if cards else f"over {GPU_SIZES[-1]}")
        print(f"{name:26} {path.stem:14} {estimate.peak / GIB:7.2f} GiB  {holder}", flush=True)
    return found


# --- One run, in a process of its own ----------------------------------------------------------


def arguments_of(options: dict):
    """The arguments of a run on made-up pairs, from the options of a recipe."""
    from edit_trl.training.recipe.outline import Recipe
    from edit_trl.training.recipe.resolving import resolve_runs

    return resolve_runs(Recipe(None, options | {"dataset_name": "made up", "report_to": "none"}), {})[0]


def estimate_of(options: dict, examples: list[dict], device: Literal["cpu", "cuda"]):
    """The `MemoryEstimate` of a run with these options and this longest batch."""
    import torch
    from transformers import AutoConfig

    from edit_trl.training.memory.estimate import estimate_memory

    run = arguments_of(options)
    config = AutoConfig.from_pretrained(run.model.model_name_or_path)
    mixed = torch.bfloat16 if run.training.bf16 else None
    return estimate_memory(config, run.model, run.training, examples, device=device, mixed=mixed)


def run_once(case: dict) -> dict:
    """Estimate a case, or run it."""
    import torch

    from edit_trl import DualCoTTrainer
    from edit_trl.common.malloc import keep_freed_memory
    from edit_trl.training.lora_targets import lora_config
    from edit_trl.training.memory.longest_batch import made_up_examples
    from edit_trl.training.quantization import quantization_config

    run = arguments_of(case["options"])
    training, model = run.training, run.model
    examples = made_up_examples(training.per_device_train_batch_size, case["pair_tokens"])
    on_gpu = case["device"] == "cuda"
    if case["estimate"]:  # not in the process that is measured
        estimate = estimate_of(case["options"], examples, case["device"])
        return {"parts": estimate.parts, "layout": estimate.layout, "batch_tokens": estimate.batch_tokens}
    keep_freed_memory()  # as `edit-trl train` does
    batches = case["steps"] * training.gradient_accumulation_steps
    rows = prepared_rows(examples, batches, text_ids(model.model_name_or_path))
    before = process_memory()
    training.model_init_kwargs = {"dtype": model.dtype}
    trainer = DualCoTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=rows,
        quantization_config=quantization_config(model, training),
        peft_config=lora_config(model, model.model_name_or_path),
    )
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    loaded = process_memory("VmHWM")
    if not on_gpu:
        # From here on: at the peak of loading, most is the mapped file of the weights, whose pages the
        # system takes back when it needs them.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    trainer.train()
    if on_gpu:
        return {
            "measured": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "device_name": torch.cuda.get_device_name(),
        }
    return {"measured": process_memory("VmHWM") - before, "before": before, "loading": loaded - before}


def recipe_stages(recipe: str, options: list[str], threads: int | None, folder: str) -> list[dict]:
    """Estimate each stage of a recipe, and train it, in a process of its own."""
    from edit_trl.training.memory.estimate import estimate_stage
    from edit_trl.training.memory.longest_batch import longest_batch
    from edit_trl.training.recipe.outline import read_recipe
    from edit_trl.training.recipe.resolving import parse_options, resolve_runs

    options = [*options, "--output_dir", folder]
    read = read_recipe(recipe)
    results = []
    for run in resolve_runs(read, parse_options(options, read)):
        if not run.training.use_cpu:
            raise SystemExit("--recipe measures processes on a CPU; say --use_cpu true")
        examples, _ = longest_batch(run)
        estimate = estimate_stage(run, examples)
        words = ["--config", recipe, *options, *(["--stage", run.stage] if run.stage else [])]
        measured = child({"train": words}, threads)
        result = {"case": run.stage or "train", "parts": estimate.parts, "estimate": estimate.peak}
        result |= measured
        if "measured" in measured:
            result["off"] = estimate.peak / measured["measured"] - 1
        results.append(result)
        print(row(result), flush=True)
    return results


def run_recipe_stage(words: list[str]) -> dict:
    from edit_trl.cli.main import run_command
    from edit_trl.cli.train import train_stage

    code = run_command(train_stage, words)
    if code:
        raise SystemExit(code)
    return {"measured": process_memory("VmHWM")}


def process_memory(name: Literal["VmHWM", "VmRSS"] = "VmRSS") -> int:
    """Memory of this process in bytes: its peak (`VmHWM`), or now (`VmRSS`)."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def text_ids(model: str) -> list[int]:
    """Tokens of a text: of made-up ones, layouts differ by more than rounding in half precision may."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)(Path(__file__).read_text(encoding="utf-8")).input_ids


def prepared_rows(examples: list[dict], batches: int, ids: list[int]):
    """The examples, with tokens of a text, as a dataset that the trainer takes as prepared."""
    from datasets import Dataset

    from edit_trl.training.memory.longest_batch import batch_tokens

    rows = []
    for _ in range(batches):
        for example in examples:
            length = len(example["prompt_ids"]) + len(example["chosen_ids"])
            ids = ids[1:] + ids[:1]  # pairs that were the same would share a tree's tokens
            prompt, fork = len(example["prompt_ids"]), example["fork"]
            tokens = {"prompt_ids": ids[:prompt], "chosen_ids": ids[prompt:length]}
            other = ids[length : length + len(example["rejected_ids"]) - fork]
            tokens["rejected_ids"] = tokens["chosen_ids"][:fork] + other
            extra = {"row_id": str(len(rows)), "length": length, "prompt_length": len(example["prompt_ids"])}
            extra["unique_length"] = batch_tokens([example], "tree")
            rows.append(example | tokens | extra | {"row": len(rows)})
    return Dataset.from_list(rows)


def child(case: dict, threads: int | None) -> dict:
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not lines:
        return {"error": done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]}
    return json.loads(lines[-1].removeprefix(RESULT))


# --- All runs ----------------------------------------------------------------------------------


def cpu_cases(args: argparse.Namespace) -> dict[str, dict]:
    shared = {"model_name_or_path": str(args.model), "use_cpu": True, "bf16": False}
    return {
        name: {"options": shared | options, "pair_tokens": args.pair_tokens, "device": "cpu"}
        for name, options in CPU_CASES.items()
        if not args.only or any(word in name for word in args.only)
    }


def gpu_cases(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """QLoRA on random weights, saved once a shape."""
    import torch
    from transformers import AutoTokenizer

    from edit_trl.training.lora_targets import make_model

    cases = {}
    for shape in args.shapes:
        path = folder / shape
        config = shape_config(shape)
        with torch.device("cuda"):
            make_model(config, torch.bfloat16).save_pretrained(path)
        torch.cuda.empty_cache()
        AutoTokenizer.from_pretrained(args.tokenizer).save_pretrained(path)
        for tokens in PAIR_TOKENS:
            for layout in ("padded", "tree"):
                for name, more in (("ckpt", {}), ("no ckpt", {"gradient_checkpointing": False})):
                    options = QLORA | {"model_name_or_path": str(path), "layout": layout, **more}
                    options |= {"per_device_train_batch_size": args.pairs}
                    cases[f"qlora {shape} 2 x {tokens} {layout} {name}"] = {
                        "options": options,
                        "pair_tokens": tokens,
                        "device": "cuda",
                    }
    return cases


def compare(cases: dict[str, dict], args: argparse.Namespace, folder: str) -> list[dict]:
    results = []
    for name, case in cases.items():
        case["options"] |= {"output_dir": folder, "max_steps": args.steps, "save_strategy": "no"}
        case["options"] |= {"lr_scheduler_type": "constant", "disable_tqdm": True, "logging_steps": 1}
        case |= {"steps": args.steps}
        estimate = child(case | {"estimate": True}, args.threads)
        measured = child(case | {"estimate": False}, args.threads)
        result = {"case": name, **estimate, **measured}
        if "parts" in estimate and "measured" in measured:
            result["estimate"] = sum(size for part, size in estimate["parts"].items() if part != "overhead")
            result["off"] = result["estimate"] / measured["measured"] - 1
        results.append(result)
        print(row(result), flush=True)
    return results


def row(result: dict) -> str:
    if "off" not in result:
        return f"{result['case']:28} {result.get('error')}"
    numbers = [result["estimate"], result["measured"]]
    numbers += [result["parts"][part] for part in ("weights", "adapter", "optimizer", "gradients", "activations")]
    numbers += [result["parts"]["head"], result.get("loading", 0)]
    return f"{result['case']:28} {result['off']:+6.1%} " + " ".join(f"{n / 2**20:9.0f}" for n in numbers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", type=Path, default=Path("outputs/quickstart/student"), help="For the CPU.")
    parser.add_argument("--only", nargs="*", help="CPU cases with one of these words in their name.")
    parser.add_argument("--pair_tokens", type=count, default=160, help="Tokens of a chain, on the CPU.")
    parser.add_argument("--steps", type=count, default=3)
    parser.add_argument("--threads", type=count, help="OMP_NUM_THREADS of the runs.")
    parser.add_argument("--tokenizer", help="Of the random models on a GPU: a Hub id or folder.")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--pairs", type=count, default=4, help="Pairs a batch on a GPU.")
    parser.add_argument("--recipes", action="store_true", help="Print the table of the recipes.")
    parser.add_argument("--recipe", help="A recipe to run whole on a CPU, with options over it.")
    args, options = parser.parse_known_args()
    if options and not args.recipe:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if args.case:
        case = json.loads(args.case)
        print(RESULT + json.dumps(run_recipe_stage(case["train"]) if "train" in case else run_once(case)))
        return 0
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")}
    machine = {"machine": platform.machine(), "cpus": os.cpu_count()}
    if args.recipes:
        print(json.dumps({"recipes": recipes_table(), "versions": versions}))
        return 0
    heads = ["off", "estimate", "measured", "weights", "adapter", "optimizer", "gradients", "activations"]
    heads += ["head", "loading"]
    print(f"{'MiB':28} {heads[0]:>6} " + " ".join(f"{head[:9]:>9}" for head in heads[1:]))
    with tempfile.TemporaryDirectory() as folder:
        if args.recipe:
            results = recipe_stages(args.recipe, options, args.threads, os.path.join(folder, "out"))
        else:
            cases = cpu_cases(args) if args.device == "cpu" else gpu_cases(args, Path(folder))
            results = compare(cases, args, os.path.join(folder, "out"))
    off = [abs(result["off"]) for result in results if "off" in result]
    worst = max(off) if off else None
    print(json.dumps({"worst": worst, "results": results, "versions": versions, **machine}))
    return 0


if __name__ == "__main__":
    run_benchmark(main)
