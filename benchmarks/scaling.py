"""Measures how the cost of a run's work grows: the exponents of its processor time.

    python benchmarks/scaling.py [--works validate key_steps preparation collation step] [--repeats 3]
        [--pairs 250 500 1000 2000] [--tokens 50 100 200 400] [--pairs_a_prompt 1 2 4 8] [--processes 1 2]

The work is checking rows (`validate`), finding key steps (`words`), preparing a dataset (text to masks), collating
batches of 8 pairs in the tree layout, and a forward and backward pass of each batch with a model of two layers. It
varies in the number of pairs, the tokens of a pair (prompt and both chains), the pairs that share a prompt, and, for
the preparation of the most pairs, the processes, whose time is that of a clock. Everything else stays at the middle
of its values.
Rows are made up: half of each chain is shared. An exponent is the slope of a line through the logarithms, by least
squares: 1 is linear, 0 is free. The shortest of the repeats counts. The last line is one JSON object.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset, disable_caching, disable_progress_bars
from inputs import count, run_benchmark
from machine import cpu_name
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.trainer.utils import add_fused_lm_head

from edit_trl import DualCoTCollator
from edit_trl.data.preparation import RowPreparation, prepare_dual_cots
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.key_steps import locate_key_steps
from edit_trl.models.pairs.scoring import PairScorer
from edit_trl.models.pairs.tree_attention import TreeAttention

WORDS = [
    first + second for first in "bcdfghjklm" for second in ("ano", "elu", "ita", "oru", "uve", "aki", "ema", "iso")
]
BATCH = 8
MOST = {"pairs": 1.1, "tokens": 2.1, "pairs_a_prompt": 0.1, "processes": 0.1}
"""The exponent above which the cost grows faster than it should; of tokens, attention's own and a tenth."""

Rows = list[dict[str, str]]


def made_up_rows(pairs: int, tokens: int, pairs_a_prompt: int, processes: int = 1) -> Rows:
    """Pairs whose prompt and two chains have so many words together; a quarter of them are the prompt's."""
    rng = random.Random(0)

    def text(size: int) -> str:
        return " ".join(rng.choices(WORDS, k=max(1, size)))

    rows: Rows = []
    for number in range(pairs):
        if number % pairs_a_prompt == 0:
            prompt = text(tokens // 4)
        own = tokens * 3 // 16
        shared = text(own)
        sides = {side: f" {shared} {text(own)}" for side in ("chosen", "rejected")}
        rows.append({"prompt": prompt, **sides})
    return rows


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words."""
    names = ["<pad>", "<eos>", *WORDS]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def batches_of(rows: Rows) -> list[Sequence]:
    prepared, _ = prepare_dual_cots(Dataset.from_list(rows), RowPreparation(tokenizer()))
    examples = prepared.to_list()
    return [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]


def validate(rows: Rows, processes: int) -> Callable[[], object]:
    dataset = Dataset.from_list(rows)
    return lambda: validate_dual_cots(dataset)


def key_steps(rows: Rows, processes: int) -> Callable[[], object]:
    return lambda: [locate_key_steps(row["chosen"], row["rejected"]) for row in rows]


def preparation(rows: Rows, processes: int) -> Callable[[], object]:
    dataset, preparing = Dataset.from_list(rows), RowPreparation(tokenizer())
    return lambda: prepare_dual_cots(dataset, preparing, num_proc=processes if processes > 1 else None)


def collation(rows: Rows, processes: int) -> Callable[[], object]:
    collator, batches = DualCoTCollator(pad_token_id=0), batches_of(rows)
    return lambda: [collator(batch) for batch in batches]


def step(rows: Rows, processes: int) -> Callable[[], object]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS) + 2, max_position_embeddings=8192, **sizes))
    model.set_attn_implementation("sdpa")
    add_fused_lm_head(model)
    collator = DualCoTCollator(pad_token_id=0)
    batches = [collator(batch) for batch in batches_of(rows)]
    scorer = PairScorer(model, collator, TreeAttention(model))

    def run() -> None:
        for batch in batches:
            scores = scorer(model, batch)
            (scores.rejected.sum() - scores.chosen.sum()).backward()

    return run


WORKS = {work.__name__: work for work in (validate, key_steps, preparation, collation, step)}


def seconds(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """The shortest time that the work takes."""
    times = []
    for _ in range(repeats):
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, costs)]).slope


def read_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=[*WORKS])
    parser.add_argument("--pairs", type=count, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--tokens", type=count, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--pairs_a_prompt", type=count, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--processes", type=count, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--output", type=Path, help="file for the JSON object")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """The seconds of each work, by variable and by its value."""
    values = {name: getattr(args, name) for name in MOST}
    middle = {name: given[(len(given) - 1) // 2] for name, given in values.items()}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for work in args.works:
        figures[work] = {}
        for name, given in values.items():
            if len(given) < 2 or (name == "processes" and work != "preparation"):
                continue
            clock = time.perf_counter if name == "processes" else time.process_time
            times = {}
            for value in given:
                shape = middle | {name: value}
                if name == "processes":
                    shape["pairs"] = max(values["pairs"])  # or starting them would be most of the time
                job = WORKS[work](made_up_rows(**shape), shape["processes"])
                times[str(value)] = seconds(job, args.repeats, clock)
            figures[work][name] = times
    return figures


def main(argv: list[str] | None = None) -> None:
    args = read_args(argv)
    torch.set_num_threads(1)
    disable_caching()
    disable_progress_bars()
    figures = measure(args)
    exponents = {
        work: {name: exponent([*map(int, times)], [*times.values()]) for name, times in by_name.items()}
        for work, by_name in figures.items()
    }
    print(f"{'':<13}" + "".join(f"{name:>16}" for name in MOST))
    for work, by_name in exponents.items():
        cells = [
            f"{by_name[name]:.2f}{' !' if by_name[name] > MOST[name] else '  '}" if name in by_name else ""
            for name in MOST
        ]
        print(f"{work:<13}" + "".join(f"{cell:>16}" for cell in cells))
    result = json.dumps(
        {
            "benchmark": "scaling",
            "settings": {name: value for name, value in vars(args).items() if name != "output"},
            "exponents": exponents,
            "seconds": figures,
            "versions": {name: version(name) for name in ("edit_trl", "torch", "datasets")},
            "machine": {"cpu": cpu_name()},
        }
    )
    if args.output:
        args.output.write_text(result + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    run_benchmark(main)
