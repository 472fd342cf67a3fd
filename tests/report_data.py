"""Runs and training histories on disk, as evaluate, suite and train leave them, for the report's tests."""

import base64
import gzip
import json
import random
import re
from pathlib import Path

from edit_trl.common.spans import masks_from_spans
from edit_trl.common.steps import WORD
from edit_trl.data.answers import check_answer, infer_answer_type
from edit_trl.data.row import chain_text
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.schema import Run, RunRecord, key_of
from edit_trl.evaluation.runs.scores import run_scores
from edit_trl.key_steps import locate_key_steps


def write_run(folder: Path, kind: str, name: str, items: list[dict]) -> Run:
    record = RunRecord(
        kind=kind,
        name=name,
        model=f"outputs/{name}",
        model_hash="0123456789abcdef",
        settings={"temperature": 0.0, "max_new_tokens": 128},
        tasks=dict.fromkeys((item["task"] for item in items), "1"),
        data_hash="fedcba9876543210",
    )
    run = RunFolder(folder, record)
    run.append(items)
    return run.finish([key_of(item) for item in items], *run_scores(items, kind))


def evaluate_items(rows: list[dict], skill: float, samples: int = 1, seed: int = 0) -> list[dict]:
    """What a model answers that is right with probability `skill`; one in twenty says nothing."""
    random_ = random.Random(seed)
    return [evaluate_item(row, [_response(row, skill, random_) for _ in range(samples)]) for row in rows]


def evaluate_item(row: dict, responses: list[str]) -> dict:
    kind = infer_answer_type(row["answer"])
    samples = []
    for response in responses:
        strict, lenient = (check_answer(response, row["answer"], kind, lenient=lenient) for lenient in (0, 1))
        samples.append(
            {
                "response": response,
                "verdict": strict.verdict,
                "value": strict.value,
                "span": list(strict.span) if strict.span else None,
                "lenient_verdict": lenient.verdict,
                "lenient_value": lenient.value,
                "lenient_span": list(lenient.span) if lenient.span else None,
                "cut_off": strict.verdict == "unparsed",
                "tokens": len(response.split()),
            }
        )
    first = samples[0]
    return {
        **_question(row),
        "answer_type": kind,
        "verdict": first["verdict"],
        "value": first["value"],
        "lenient_verdict": first["lenient_verdict"],
        "lenient_value": first["lenient_value"],
        "cut_off": sum(sample["cut_off"] for sample in samples),
        "samples": samples,
    }


def suite_items(rows: list[dict], skill: float, seed: int = 0) -> list[dict]:
    """Log-probabilities of a model that prefers correct key steps with probability `skill`."""
    random_ = random.Random(seed)
    return [suite_item(row, random_.random() < skill, random_) for row in rows]


def suite_item(row: dict, prefers: bool, random_: random.Random) -> dict:
    chosen, rejected = chain_text(row["chosen"]), chain_text(row["rejected"])
    steps = locate_key_steps(chosen, rejected)
    spans = steps.chosen_spans, steps.rejected_spans
    better, worse = (0.5, 3.0) if prefers else (3.0, 0.5)
    tokens = {
        "chosen": _tokens(chosen, spans[0], better, random_),
        "rejected": _tokens(rejected, spans[1], worse, random_),
    }
    logps = {side: _mean(of) for side, of in tokens.items()}
    for side, key in zip(tokens, spans, strict=True):
        mask = masks_from_spans(key, [token[:2] for token in tokens[side]])
        logps[f"{side}_key"] = _mean([token for token, is_key in zip(tokens[side], mask, strict=True) if is_key])
    key_margin = None
    if None not in (logps["chosen_key"], logps["rejected_key"]):
        key_margin = logps["chosen_key"] - logps["rejected_key"]
    start, end, logp = min(tokens["chosen"], key=lambda token: token[2])
    verdict = "correct" if prefers else "wrong"
    return {
        **_question(row),
        "chosen": chosen,
        "rejected": rejected,
        "chosen_key_spans": [list(span) for span in spans[0]],
        "rejected_key_spans": [list(span) for span in spans[1]],
        "logps": logps,
        "margin": logps["chosen"] - logps["rejected"],
        "preferred": logps["chosen"] > logps["rejected"],
        "key_margin": key_margin,
        "key_preferred": None if key_margin is None else key_margin > 0,
        "first_wrong": {
            "start": start,
            "end": end,
            "token": chosen[start:end],
            "instead": " then",
            "logp": logp,
            "at_key": masks_from_spans(spans[0], [(start, end)])[0],
        },
        "greedy": {
            "response": (chosen if prefers else rejected)[-60:],
            "branch": "right" if prefers else "wrong",
            "verdict": verdict,
            "value": row["answer"] if prefers else "0",
            "cut_off": False,
        },
        "tokens": tokens,
    }


def write_training(folder: Path, stages=("warm_up", "key_steps"), steps: int = 60) -> None:
    """Stages in subfolders, each with what the trainer logs; the lot in the folder itself without stages."""
    random_ = random.Random(0)
    for number, stage in enumerate(stages or [""]):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        log = []
        for step in range(5, steps + 1, 5):
            gain = step / steps + number
            entry = {
                "step": step,
                "epoch": step / steps,
                "loss": 1.4 - 0.5 * gain + random_.gauss(0, 0.03),
                "logps/chosen_key": -1.9 + 0.7 * gain + random_.gauss(0, 0.05),
                "logps/chosen_context": -0.8 + 0.3 * gain + random_.gauss(0, 0.02),
                "logps/rejected_key": -2.3 - 0.1 * gain + random_.gauss(0, 0.05),
                "logps/rejected_context": -0.9 + 0.25 * gain + random_.gauss(0, 0.02),
                "key_accuracy": min(0.5 + 0.2 * gain, 1),
                "completion_accuracy": min(0.55 + 0.18 * gain, 1),
                "fork/confidence": min(0.4 + 0.2 * gain, 1),
            }
            log.append(entry)
            if step % 20 == 0:
                held_out = {"eval_logps/chosen_key": entry["logps/chosen_key"] - 0.15}
                log.append({"step": step, "eval_suite/key_preference": 0.5 + 0.15 * gain} | held_out)
        state = json.dumps({"log_history": log, "global_step": steps})
        (folder / stage / "trainer_state.json").write_text(state)
        run = {"edit_trl": "0.1.0", "finished": f"2026-01-01 0{number}:00:00", "options": {}, "results": {}}
        (folder / stage / "run.json").write_text(json.dumps(run))


def _question(row: dict) -> dict:
    names = ("task", "id", "prompt", "answer", "mistake", "source")
    return {name: row.get(name) for name in names} | {"task": row.get("task") or "all"}


def _response(row: dict, skill: float, random_: random.Random) -> str:
    draw = random_.random()
    chosen, rejected = chain_text(row["chosen"]), chain_text(row["rejected"])
    if draw > 0.95:
        return chosen[: len(chosen) // 2]
    return chosen if draw < skill else rejected


def _tokens(text: str, spans, surprise: float, random_: random.Random) -> list[list[float]]:
    """Pieces of at most six characters with the space before, as tokenizers make them, and EOS."""
    pieces, at = [], 0
    for word in WORD.finditer(text):
        while at < word.end():
            end = min(word.end(), max(word.start(), at) + 6)
            pieces.append((at, end))
            at = end
    key = masks_from_spans(spans, pieces)
    scales = [surprise if is_key else 0.25 for is_key in key]
    tokens = [[*piece, -random_.expovariate(1 / scale)] for piece, scale in zip(pieces, scales, strict=True)]
    return [*tokens, [0, 0, -0.01]]


def _mean(tokens) -> float | None:
    return sum(token[2] for token in tokens) / len(tokens) if tokens else None


def read_page(path) -> tuple[dict, list[dict]]:
    """The data of a page, as its script reads it, and its items."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    data = json.loads(text)
    return data, unpacked(data["items"])


def unpacked(text: str):
    return json.loads(gzip.decompress(base64.b64decode(text)))
