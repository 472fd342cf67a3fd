"""Trains both stages on natural dual CoTs and measures how each changes the student's preference.

    python benchmarks/natural_pairs.py --model outputs/quickstart/student \
        --data ../shared/data/dual_cots/gsm8k_natural.jsonl

Trains a LoRA adapter on a few hundred pairs and scores held-out pairs of other questions before training,
after the warm-up and after key-step learning. Prints a table and, as the last line, one JSON object.
"""

import argparse
import json
import os
import platform
import random
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from inputs import count, run_benchmark
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from edit_trl import DualCoTConfig, DualCoTTrainer, load_dual_cots
from edit_trl.models.adapters import put_on

COLUMNS = {
    "key_accuracy": "key steps preferred",
    "completion_accuracy": "chains preferred",
    "logps/chosen": "log p, correct",
    "logps/chosen_key": "log p, correct key",
    "logps/rejected_key": "log p, wrong key",
    "fork/confidence": "p at the fork",
}
STAGES = {
    "warm_up": {"learning_rate": 5e-4, "chosen_key_weight": 1.0, "preference_weight": 0.0, "normalization": "step"},
    "key_steps": {"learning_rate": 7.5e-5},
}


def split(path: Path, train: int, held_out: int, seed: int) -> tuple[Dataset, Dataset]:
    """Conversational training and held-out pairs that share no question."""
    by_prompt: dict[str, list[dict]] = {}
    for row in load_dual_cots(path):
        by_prompt.setdefault(row["prompt"], []).append(
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
        )
    prompts = sorted(by_prompt)
    random.Random(seed).shuffle(prompts)
    sides: list[list[dict]] = [[], []]
    for prompt in prompts:
        sides[len(sides[0]) >= held_out] += by_prompt[prompt]
    return Dataset.from_list(sides[1][:train]), Dataset.from_list(sides[0][:held_out])


def row(name: str, metrics: dict[str, float]) -> str:
    values = [f"{metrics[f'eval_{column}']:>{len(title)}.3f}" for column, title in COLUMNS.items()]
    return "  ".join([f"{name:<9}", *values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="outputs/quickstart/student", help="Path or Hub id of the student.")
    parser.add_argument("--data", type=Path, required=True, help="File of dual CoTs as plain text.")
    parser.add_argument("--train_pairs", type=count, default=300)
    parser.add_argument("--held_out_pairs", type=count, default=100)
    parser.add_argument("--batch_size", type=count, default=4)
    parser.add_argument("--max_length", type=count, default=384)
    parser.add_argument("--bf16", action="store_true", help="Train in mixed precision, also on a CPU.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, held_out = split(args.data, args.train_pairs, args.held_out_pairs, args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    figures: dict[str, dict[str, float]] = {}
    print(f"{len(train)} pairs to train on, {len(held_out)} held out")
    with tempfile.TemporaryDirectory() as folder:
        adapter = None
        for name, options in STAGES.items():
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, use_safetensors=True)
            if adapter:
                model = put_on(model, adapter, is_trainable=True)
            trainer = DualCoTTrainer(
                model,
                args=DualCoTConfig(
                    f"{folder}/{name}",
                    **options,
                    max_length=args.max_length,
                    per_device_train_batch_size=args.batch_size,
                    per_device_eval_batch_size=args.batch_size,
                    num_train_epochs=1,
                    warmup_steps=0.1,
                    gradient_checkpointing=False,
                    logging_steps=10,
                    save_strategy="no",
                    report_to="none",
                    bf16=args.bf16,
                    use_cpu=not torch.cuda.is_available(),
                    seed=args.seed,
                ),
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=tokenizer,
                peft_config=None if adapter else lora,
            )
            if not adapter:
                figures["base"] = trainer.evaluate()
            started = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - started
            tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry][-1]
            figures[name] = trainer.evaluate() | {"train_seconds": seconds, "tokens_per_second": tokens / seconds}
            adapter = f"{folder}/{name}/adapter"
            trainer.save_model(adapter)

    print("  ".join([" " * 9, *COLUMNS.values()]))
    for name, metrics in figures.items():
        print(row(name, metrics))
    for name in STAGES:
        figure = figures[name]
        print(f"{name}: {figure['train_seconds']:.0f} s, {figure['tokens_per_second']:.0f} tokens/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"peak memory: {peak:.1f} GiB")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("edit_trl", "torch", "transformers", "trl", "peft")}
    settings = {key: str(value) for key, value in vars(args).items()}
    print(
        json.dumps(
            {
                "figures": figures,
                "peak_memory_gib": peak,
                "settings": settings,
                "versions": versions,
                "machine": machine,
            }
        )
    )


if __name__ == "__main__":
    run_benchmark(main)
