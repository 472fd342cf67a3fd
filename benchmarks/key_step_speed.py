"""Measures how long it takes to locate key steps, compared with the authors' dynamic programme.

    python benchmarks/key_step_speed.py [--pairs 10000 --tokens 200 --edit_fraction 0.3 --seed 0]
                                        [--naive_pairs 50 --repeats 3] [--data FILE.jsonl]
                                        [--tokenizer FOLDER --prepared_pairs 2000]

Synthetic pairs are random token ids. In the wrong chain a share `edit_fraction` of the positions is replaced, deleted
or inserted. Methods that need text get the same chains as made-up words. With `--data` the chains are the `chosen` and
`rejected` texts of rows, split into words. One process, one core. The last line is one JSON object.

With `--tokenizer` it also measures the preparation of a dataset, from rows of text to tokens with masks (`datasets.map`
included, nothing from the cache): pairs of the quickstart's procedural teacher (`preparation`), and pairs of four of
its problems each, of about 200 tokens a chain (`preparation_4`). The share of the tokenizer is the time of its calls
alone, for the same texts in the same batches. All times are processor time; the preparation's are the least of the
repeats.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from inputs import count, read_columns, run_benchmark
from machine import cpu_name
from transformers import AutoTokenizer

import edit_trl
from edit_trl import ProceduralTeacher, generate_dual_cots
from edit_trl.data.preparation import RowPreparation, prepare_dual_cots
from edit_trl.key_steps import SIDES, key_step_masks, locate_key_steps

Pair = tuple[Any, Any]


def naive_masks(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """The authors' way: a full O(nm) table of lists and a walk back, once for each side."""
    return naive_mask(chosen, rejected), naive_mask(rejected, chosen)


def naive_mask(own: Sequence[int], other: Sequence[int]) -> list[bool]:
    """One side, after `levenshtein_operations_tokens` of edit_dis_precal.py (C-W-D/CasCoD)."""
    prefix = 0
    while prefix < min(len(own), len(other)) and own[prefix] == other[prefix]:
        prefix += 1
    own_rest, other_rest = own[prefix:], other[prefix:]
    table = naive_table(own_rest, other_rest)
    mask = [False] * len(own_rest)
    row, column = len(own_rest), len(other_rest)
    while row or column:
        if row and table[row][column] == table[row - 1][column] + 1:
            row -= 1
            mask[row] = True
        elif column and table[row][column] == table[row][column - 1] + 1:
            column -= 1
        else:
            row, column = row - 1, column - 1
            mask[row] = own_rest[row] != other_rest[column]
    return [False] * prefix + mask


def naive_table(own: Sequence[int], other: Sequence[int]) -> list[list[int]]:
    """Edit distances between all prefixes of the two sequences."""
    table = [[row + column for column in range(len(other) + 1)] for row in range(len(own) + 1)]
    for column in range(1, len(other) + 1):
        for row in range(1, len(own) + 1):
            table[row][column] = min(
                table[row - 1][column] + 1,
                table[row][column - 1] + 1,
                table[row - 1][column - 1] + (own[row - 1] != other[column - 1]),
            )
    return table


def synthetic_pair(rng: random.Random, tokens: int, edit_fraction: float, vocabulary: int = 32000) -> Pair:
    """A random chain, and a copy with edits at a share of its positions: a third of each kind."""
    chosen = [rng.randrange(vocabulary) for _ in range(tokens)]
    rejected: list[int] = []
    for token in chosen:
        edit = rng.choice(("replace", "delete", "insert")) if rng.random() < edit_fraction else None
        if edit != "delete":
            rejected.append(rng.randrange(vocabulary) if edit == "replace" else token)
        if edit == "insert":
            rejected.append(rng.randrange(vocabulary))
    return chosen, rejected


def read_pairs(path: Path) -> list[Pair]:
    """The chains of a JSON Lines file of dual CoTs with plain texts."""
    rows = read_columns(path, {"chosen": str, "rejected": str})
    return [(row["chosen"], row["rejected"]) for row in rows]


def word_ids(pairs: list[Pair]) -> list[Pair]:
    """Texts as ids of their words."""
    ids: dict[str, int] = {}
    return [
        tuple([ids.setdefault(word, len(ids)) for word in re.findall(r"\w+|[^\w\s]", text)] for text in pair)
        for pair in pairs
    ]


def made_up_text(ids: Sequence[int]) -> str:
    """Ids as words of letters, twenty to a sentence."""
    words = ["".join(chr(ord("a") + int(digit)) for digit in str(token)) for token in ids]
    return ". ".join(" ".join(words[i : i + 20]) for i in range(0, len(words), 20))


def seconds(function: Callable[..., object], pairs: list[Pair], *options: str) -> float:
    """Processor time of the function over all pairs: other processes do not count."""
    start = time.process_time()
    for chosen, rejected in pairs:
        function(chosen, rejected, *options)
    return time.process_time() - start


def measure(ids: list[Pair], texts: list[Pair], naive_pairs: int, repeats: int) -> dict[str, dict[str, float | int]]:
    """Time every method `repeats` times in turn, so that a slow spell of the machine hits all of them."""
    jobs = {
        "edit": (key_step_masks, ids, "edit"),
        "reference": (key_step_masks, ids, "reference"),
        "words": (locate_key_steps, texts, None, "words"),
        "fork": (locate_key_steps, texts, None, "fork"),
        "forks": (locate_key_steps, texts, None, "forks"),
        "naive": (naive_masks, ids[:naive_pairs]),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(seconds(*job))
    return {
        name: {
            "pairs_timed": len(job[1]),
            "ms_per_pair": 1000 * statistics.median(times[name]) / len(job[1]),
            "seconds_all_pairs": statistics.median(times[name]) * len(ids) / len(job[1]),
        }
        for name, job in jobs.items()
    }


def procedural_rows(count: int, problems: int, seed: int) -> list[dict[str, str]]:
    """Plain rows of the procedural teacher, each of several problems one after the other."""
    made = [*generate_dual_cots(ProceduralTeacher(seed=seed), count * problems, conversational=False)]
    return [
        {column: " ".join(row[column] for row in made[i : i + problems]) for column in ("chosen", "rejected")}
        | {"prompt": "".join(row["prompt"] for row in made[i : i + problems])}
        for i in range(0, len(made), problems)
    ]


def measure_preparation(rows: list[dict[str, str]], tokenizer: Any, repeats: int) -> dict[str, float | int]:
    """Time the preparation of rows, and the calls of the tokenizer in it alone."""
    dataset = Dataset.from_list(rows)
    texts = [text for row in rows for text in (row["prompt"], *(row["prompt"] + row[side] for side in SIDES))]
    times: dict[str, list[float]] = {"all": [], "tokenizer": []}
    for _ in range(repeats):
        start = time.process_time()
        prepared, _ = prepare_dual_cots(dataset, RowPreparation(tokenizer))
        times["all"].append(time.process_time() - start)
        start = time.process_time()
        for i in range(0, len(texts), 300):  # as many as a batch of `datasets.map` has
            tokenizer(texts[i : i + 300], return_offsets_mapping=True)
        times["tokenizer"].append(time.process_time() - start)
    return {
        "pairs": len(rows),
        "mean_tokens": statistics.mean(len(ids) for side in SIDES for ids in prepared[f"{side}_ids"]),
        "pairs_per_second": len(rows) / min(times["all"]),
        "tokenizer_share": min(times["tokenizer"]) / min(times["all"]),
    }


def check_same(ids: list[Pair]) -> None:
    """The naive masks must be those of `reference`, or the comparison would be of different work."""
    for chosen, rejected in ids:
        steps = key_step_masks(chosen, rejected, "reference")
        if (steps.chosen, steps.rejected) != naive_masks(chosen, rejected):
            raise AssertionError("the naive masks differ from those of method 'reference'")


def print_table(methods: dict[str, dict[str, float | int]], pairs: int) -> None:
    """Print one line per method; times extrapolated from fewer pairs are marked."""
    print(f"{'method':<12}{'pairs timed':>12}{'ms a pair':>12}{f's for {pairs}':>14}{'speed-up':>10}")
    for name, row in methods.items():
        speed_up = methods["naive"]["ms_per_pair"] / row["ms_per_pair"]
        note = "" if row["pairs_timed"] == pairs else f"  extrapolated from {row['pairs_timed']} pairs"
        print(
            f"{name:<12}{row['pairs_timed']:>12}{row['ms_per_pair']:>12.3f}"
            f"{row['seconds_all_pairs']:>14.2f}{speed_up:>9.1f}x{note}"
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=count, default=10_000, help="synthetic pairs")
    parser.add_argument("--tokens", type=count, default=200, help="tokens of the correct chain")
    parser.add_argument("--edit_fraction", type=float, default=0.3, help="share of positions that are edited")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--naive_pairs", type=count, default=50, help="number of pairs for timing the naive reference")
    parser.add_argument("--repeats", type=count, default=3, help="interleaved repeats; medians are reported")
    parser.add_argument("--data", type=Path, help="JSON Lines of dual CoTs to time instead")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, to measure the preparation too")
    parser.add_argument("--prepared_pairs", type=count, default=2000, help="pairs to prepare")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rng = random.Random(args.seed)
    if args.data:
        texts = read_pairs(args.data)
        rng.shuffle(texts)  # the naive reference is timed on the first ones: they must be like the rest
        ids = word_ids(texts)
    else:
        ids = [synthetic_pair(rng, args.tokens, args.edit_fraction) for _ in range(args.pairs)]
        texts = [tuple(map(made_up_text, pair)) for pair in ids]
    naive_pairs = min(args.naive_pairs, len(ids))
    check_same(ids[:naive_pairs])
    methods = measure(ids, texts, naive_pairs, args.repeats)
    fraction = statistics.mean(key_step_masks(*pair).key_fraction for pair in ids)
    length = statistics.mean(len(side) for pair in ids for side in pair)
    print(f"{len(ids)} pairs, {length:.0f} tokens a chain, {fraction:.0%} of them key (method edit)")
    print_table(methods, len(ids))
    preparation = {}
    if args.tokenizer:
        datasets.disable_caching()
        datasets.disable_progress_bars()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        for name, problems in (("preparation", 1), ("preparation_4", 4)):
            rows = procedural_rows(args.prepared_pairs, problems, args.seed)
            preparation[name] = row = measure_preparation(rows, tokenizer, args.repeats)
            print(
                f"{name}: {row['pairs_per_second']:.0f} pairs/s of {row['mean_tokens']:.0f} tokens a chain, "
                f"{row['tokenizer_share']:.0%} of the time in the tokenizer"
            )
    print(
        json.dumps(
            {
                "benchmark": "key_step_speed",
                "data": str(args.data) if args.data else "synthetic",
                "pairs": len(ids),
                "mean_tokens": length,
                "key_fraction": fraction,
                "repeats": args.repeats,
                "seed": args.seed,
                "edit_fraction": None if args.data else args.edit_fraction,
                "methods": methods,
                **preparation,
                "naive_extrapolated_from": naive_pairs,
                "versions": {
                    "python": platform.python_version(),
                    "rapidfuzz": version("rapidfuzz"),
                    "edit_trl": edit_trl.__version__,
                },
                "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
            }
        )
    )


if __name__ == "__main__":
    run_benchmark(main)
