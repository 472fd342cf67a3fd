"""Measures how fast a model answers questions with different kinds of batching.

    python benchmarks/evaluate_speed.py --model outputs/quickstart/key_steps [--rows 60 --samples 8 --dtype bfloat16]
                                        [--max_new_tokens 110 --batch_size 30 --repeats 3 --ways ours student ...]

The problems are the quickstart's held-out ones. `ours` is `evaluate_accuracy`: padded batches of prompts of
similar length, the longest first, of as many responses as it takes by default. `student` is the local student of
`edit-trl generate`, with the same engine. Of the others, `data order` is our engine with padded batches of
`--batch_size` responses in the order of the data, `one by one` needs no padding, `transformers` is `generate` of
transformers in the order of the data, and `continuous` its scheduler (`generate_batch`). An adapter is merged first.
The variants take turns, and medians over the repeats are reported, of elapsed time and of processor time. The last
line is one JSON object.
"""

import argparse
import asyncio
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
from edit_trl.common.malloc import keep_freed_memory
from edit_trl.evaluation.accuracy.problems import encode, problems_of
from edit_trl.models.chat.local import TransformersTeacher
from edit_trl.models.chat.protocol import ChatRequest, Sampling
from edit_trl.models.decoding import Decoding
from edit_trl.models.generation import ModelGenerator
from edit_trl.models.loading import ModelSource

FAMILIES = ("object_counting", "arithmetic", "boolean_expressions")
WAYS = ["ours", "student", "data order", "one by one", "transformers", "continuous"]


def read_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Path or Hub id of a model or adapter.")
    parser.add_argument("--rows", type=count, default=90, help="Number of problems.")
    parser.add_argument("--samples", type=count, default=1, help="Responses per problem, at temperature 0.8.")
    parser.add_argument("--max_new_tokens", type=count, default=110)
    parser.add_argument("--batch_size", type=count, default=30, help="Of `data order` and `transformers`.")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    return parser.parse_args(argv)


def ways_of(args: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """The variants; each answers all problems and returns the number of generated tokens."""
    model, tokenizer = ModelSource(args.model, dtype=args.dtype).load()
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    rows = list(generate_dual_cots(ProceduralTeacher(FAMILIES, seed=1), args.rows, conversational=True))
    problems = problems_of(rows)
    prompts = encode(problems, tokenizer, max_new_tokens=args.max_new_tokens, positions=None)
    sampled = {"temperature": 0.8, "samples": args.samples} if args.samples > 1 else {}
    decoding = Decoding(args.max_new_tokens, **sampled)
    order = list(range(len(prompts)))

    def run(generator: ModelGenerator, batches: list[list[int]]) -> int:
        return sum(
            one.tokens for _, drawn in generator.run(prompts, batches) for responses in drawn for one in responses
        )

    def ours() -> int:
        options = {"max_new_tokens": args.max_new_tokens, "progress": False, **sampled}
        return evaluate_accuracy(model, tokenizer, rows, **options).generated_tokens

    teacher = TransformersTeacher(args.model, dtype=args.dtype)
    if "student" in args.ways:
        asyncio.run(teacher.check())  # loads the model

    def student() -> int:
        return asyncio.run(answer_all(teacher, student_requests(rows, decoding)))

    def in_order(size: int) -> int:
        generator = ModelGenerator(model, tokenizer, decoding, batch_size=size * args.samples, batching="padded")
        return run(generator, [order[start : start + size] for start in range(0, len(order), size)])

    def transformers() -> int:
        tokens = 0
        settings = {"do_sample": True, "temperature": 0.8, "top_k": 0} if args.samples > 1 else {"do_sample": False}
        size = max(1, args.batch_size // args.samples)
        for start in range(0, len(prompts), size):
            some = {"input_ids": prompts[start : start + size]}
            padded = tokenizer.pad(some, padding_side="left", return_tensors="pt").to(model.device)
            outputs = model.generate(
                **padded, max_new_tokens=args.max_new_tokens, num_return_sequences=args.samples, **settings
            )
            new = outputs[:, padded["input_ids"].size(1) :]
            ended = (new == tokenizer.eos_token_id).cumsum(-1)
            tokens += int((ended - (new == tokenizer.eos_token_id).long() == 0).sum())
        return tokens

    def continuous() -> int:
        generator = ModelGenerator(model, tokenizer, decoding, batching="continuous")
        return run(generator, generator.plan([len(prompt) for prompt in prompts]))

    ways = {
        "ours": ours,
        "student": student,
        "data order": lambda: in_order(max(1, args.batch_size // args.samples)),
        "one by one": lambda: in_order(1),
        "transformers": transformers,
        "continuous": continuous,
    }
    return {name: ways[name] for name in args.ways}


def student_requests(rows: list[dict], decoding: Decoding) -> list[ChatRequest]:
    """The requests of `edit-trl generate` to a student, for the same responses."""
    sampling = Sampling(temperature=decoding.temperature, max_tokens=decoding.max_new_tokens)
    messages = [tuple((message["role"], message["content"]) for message in row["prompt"]) for row in rows]
    return [
        ChatRequest("student", f"{number}/{sample}", "", prompt, sampling, sample, seed=sample)
        for number, prompt in enumerate(messages)
        for sample in range(decoding.samples)
    ]


async def answer_all(teacher: TransformersTeacher, requests: list[ChatRequest]) -> int:
    raws = await asyncio.gather(*map(teacher.attempt, requests))
    return sum(teacher.read(raw).completion_tokens for raw in raws)


def main() -> None:
    keep_freed_memory()  # as the commands do
    args = read_args()
    ways = ways_of(args)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for _ in range(args.repeats):
        for name, answer in ways.items():
            started, used = time.perf_counter(), time.process_time()
            tokens[name] = answer()
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    # By token: drawn with other random numbers, responses are not equally long.
    speeds = {name: tokens[name] / statistics.median(times) for name, times in seconds.items()}
    best = max(speeds.values())
    print(f"{'':<12} {'seconds':>8} {'processor':>10} {'tokens/s':>9} {'of best':>8}")
    for name, speed in speeds.items():
        spent = statistics.median(processor[name])
        print(f"{name:<12} {tokens[name] / speed:>8.1f} {spent:>10.1f} {speed:>9.0f} {speed / best:>8.2f}")
    figures = {
        name: {
            "seconds": seconds[name],
            "processor_seconds": processor[name],
            "tokens": tokens[name],
            "tokens_per_second": speed,
            "ratio_to_best": best / speed,
        }
        for name, speed in speeds.items()
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
