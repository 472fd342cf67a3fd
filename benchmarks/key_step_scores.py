"""Scores labelled wrong chains with a student, for `key_step_quality.py --scores`.

    python benchmarks/key_step_scores.py --model PATH --data ../shared/data/key_steps/prmbench_dev.jsonl
                                         --output scores.jsonl [--pairs 150 --seed 0]

Each token of the wrong chain gets two log-probabilities, in bfloat16: `own` is conditioned on the wrong chain
before it. `other`, in steps that differ, is conditioned on the correct chain up to the corresponding step,
followed by the beginning of the wrong step. The pairs are a random sample. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from inputs import count, run_benchmark
from key_step_quality import Case, prmbench_cases
from rapidfuzz.distance import Levenshtein
from transformers import DynamicCache

from edit_trl.common.steps import WORD
from edit_trl.data.files import read_rows
from edit_trl.key_steps import locate_key_steps
from edit_trl.models.loading import ModelSource


def aligned_start(case: Case, start: int) -> int:
    """The first character of the correct chain's line that corresponds to a step of the wrong chain."""
    sides = [list(WORD.finditer(text)) for text in (case.chosen, case.rejected)]
    words = [[match[0] for match in side] for side in sides]
    at = next((i for i, match in enumerate(sides[1]) if match.start() >= start), len(sides[1]))
    for op in Levenshtein.opcodes(*words):
        if op.dest_start <= at <= op.dest_end:
            place = op.src_start + min(at - op.dest_start, op.src_end - op.src_start)
            if place == len(sides[0]):
                break
            return case.chosen.rfind("\n", 0, sides[0][place].start()) + 1
    return len(case.chosen)


@torch.no_grad()
def logps(model: Any, ids: list[int], cache: DynamicCache | None = None) -> list[float]:
    """Log-probabilities of all tokens but the first, given the cache if there is one."""
    hidden = model.model(torch.tensor([ids]), past_key_values=cache, use_cache=cache is not None)
    scores = model.lm_head(hidden.last_hidden_state[0, :-1]).float().log_softmax(-1)
    return scores.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1).tolist()


def score(case: Case, question: str, model: Any, tokenizer: Any) -> dict[str, list]:
    """The offsets of the wrong chain's tokens, and their `own` and `other` log-probabilities."""
    prompt = question + "\n"
    sides = [tokenizer(prompt + text, return_offsets_mapping=True) for text in (case.chosen, case.rejected)]
    ids = [side["input_ids"] for side in sides]
    spans = [[(a - len(prompt), b - len(prompt)) for a, b in side["offset_mapping"]] for side in sides]
    own = [0.0, *logps(model, ids[1])]
    other: list[float | None] = [None] * len(own)
    cache = DynamicCache()
    logps(model, ids[0], cache)
    key = locate_key_steps(case.chosen, case.rejected).rejected_spans
    # From the longest prefix to the shortest, so that the cache of the correct chain only has to be cropped.
    jobs = []
    for start, end in zip(case.starts, [*case.starts[1:], len(case.rejected) + 1], strict=True):
        if any(a < end and b > start for a, b in key):
            prefix = sum(b <= aligned_start(case, start) for _, b in spans[0])
            jobs.append((prefix, [i for i, (a, b) in enumerate(spans[1]) if start < b < end and a < b]))
    for prefix, tokens in sorted(jobs, key=lambda job: -job[0]):
        extra = cache.get_seq_length() - (prefix - 1)
        if extra:
            cache.crop(-extra)
        values = logps(model, [ids[0][prefix - 1], *(ids[1][i] for i in tokens)], cache)
        for token, value in zip(tokens, values, strict=True):
            other[token] = value
    first = next(i for i, (_, end) in enumerate(spans[1]) if end > 0)
    return {"offsets": spans[1][first:], "own": own[first:], "other": other[first:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="path or Hub id of the student")
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines file of labelled pairs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=count, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cases = prmbench_cases(args.data)
    model, tokenizer = ModelSource(args.model, dtype="bfloat16", device="cpu").load()
    rows = read_rows(args.data)
    order = list(range(len(cases)))
    random.Random(args.seed).shuffle(order)
    started = time.perf_counter()
    with args.output.open("w", encoding="utf-8") as file:
        for number in order[: args.pairs]:
            scores = score(cases[number], rows[number]["question"], model, tokenizer)
            file.write(json.dumps({"pair": number} | scores) + "\n")
            file.flush()
    seconds = time.perf_counter() - started
    about = {"benchmark": "key_step_scores", "model": args.model, "pairs": min(args.pairs, len(cases))}
    print(json.dumps(about | {"seconds": seconds, "cores": os.cpu_count()}))


if __name__ == "__main__":
    run_benchmark(main)
