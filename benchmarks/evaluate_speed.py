"""Measures how fast a model answers questions with different kinds of batching.

    python benchmarks/evaluate_speed.py --model outputs/quickstart/key_steps [--rows 90 --max_new_tokens 110]
                                        [--batch_size 30 --repeats 3 --dtype bfloat16]

The problems are the quickstart's held-out ones. `ours` is `evaluate_accuracy`: padded batches of prompts of
similar length, the longest first. `data order` pads the prompts in the order of the data. `one by one` needs
no padding. `continuous` is the scheduler of transformers (`generate_batch`), for which an adapter is merged
first. The variants take turns, and medians over the repeats are reported. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from inputs import count, run_benchmark

from edit_trl import ProceduralTeacher, evaluate_accuracy, generate_dual_cots
from edit_trl.evaluation.accuracy.problems import encode, problems_of
from edit_trl.models.decoding import Decoding
from edit_trl.models.generation import ModelGenerator
from edit_trl.models.loading import ModelSource

FAMILIES = ("object_counting", "arithmetic", "boolean_expressions")


def read_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Path or Hub id of a model or adapter.")
    parser.add_argument("--rows", type=count, default=90, help="Number of problems.")
    parser.add_argument("--max_new_tokens", type=count, default=110)
    parser.add_argument("--batch_size", type=count, default=30)
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--ways", nargs="+", default=["ours", "data order", "one by one", "continuous"])
    return parser.parse_args()


def ways_of(args: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """The variants; each answers all problems and returns the number of generated tokens."""
    model, tokenizer = ModelSource(args.model, dtype=args.dtype).load()
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    rows = list(generate_dual_cots(ProceduralTeacher(FAMILIES, seed=1), args.rows, conversational=True))
    problems = problems_of(rows)
    prompts = encode(problems, tokenizer, max_new_tokens=args.max_new_tokens, positions=None)
    decoding = Decoding(args.max_new_tokens)

    def run(generator: ModelGenerator, batches: list[list[int]]) -> int:
        return sum(one.tokens for _, drawn in generator.run(prompts, batches) for (one,) in drawn)

    def ours() -> int:
        options = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens, "progress": False}
        return evaluate_accuracy(model, tokenizer, rows, **options).generated_tokens

    def in_order(size: int) -> int:
        generator = ModelGenerator(model, tokenizer, decoding, batch_size=size, batching="padded")
        order = list(range(len(prompts)))
        return run(generator, [order[start : start + size] for start in range(0, len(order), size)])

    def continuous() -> int:
        generator = ModelGenerator(model, tokenizer, decoding, batch_size=args.batch_size, batching="continuous")
        return run(generator, generator.plan([len(prompt) for prompt in prompts]))

    ways = {
        "ours": ours,
        "data order": lambda: in_order(args.batch_size),
        "one by one": lambda: in_order(1),
        "continuous": continuous,
    }
    return {name: ways[name] for name in args.ways}


def main() -> None:
    args = read_args()
    ways = ways_of(args)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for _ in range(args.repeats):
        for name, answer in ways.items():
            started = time.perf_counter()
            tokens[name] = answer()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(medians.values())
    print(f"{'':<12} {'seconds':>8} {'tokens/s':>9} {'x best':>7}")
    for name, median in medians.items():
        print(f"{name:<12} {median:>8.1f} {tokens[name] / median:>9.0f} {median / best:>7.2f}")
    figures = {
        name: {"seconds": seconds[name], "tokens": tokens[name], "ratio_to_best": medians[name] / best} for name in ways
    }
    packages = ("edit_trl", "torch", "transformers", "peft")
    print(
        json.dumps(
            {
                "figures": figures,
                "settings": vars(args),
                "versions": {name: version(name) for name in packages},
                "machine": {
                    "cpu": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                },
            }
        )
    )


if __name__ == "__main__":
    run_benchmark(main)
