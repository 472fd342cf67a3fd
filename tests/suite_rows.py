"""Rows and evaluation runs for suites."""

from pathlib import Path

from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.schema import RunRecord

SEVERAL = {
    "prompt": "What is 2 + 2?\n",
    "chosen": "2 and 2 is 4. Therefore, the answer is 4.",
    "rejected": ["2 and 2 is 5. Therefore, the answer is 5.", "2 and 2 is 4, or 22. Therefore, the answer is 22."],
    "answer": "4",
    "task": "sums",
    "mistake": ["arithmetic"],
    "id": "sum",
}


def sample(response: str, verdict: str, cut_off: bool = False) -> dict:
    return {
        "response": response,
        "verdict": verdict,
        "value": None,
        "span": None,
        "lenient_verdict": verdict,
        "lenient_value": None,
        "lenient_span": None,
        "cut_off": cut_off,
        "tokens": 3,
    }


def evaluated(folder: Path, samples: dict[str, list[dict]], prompt="What is 2 + 2?\n"):
    """A finished run whose questions have these samples."""
    record = RunRecord("evaluate", "m", "m", "0", settings={}, tasks={"sums": "1"}, data_hash="0")
    run = RunFolder(folder, record)
    items = [
        {
            "task": "sums",
            "id": name,
            "prompt": prompt,
            "answer": "4",
            "answer_type": "number",
            "mistake": None,
            "source": None,
            "verdict": "correct",
            "value": "4",
            "lenient_verdict": "correct",
            "lenient_value": "4",
            "cut_off": 0,
            "samples": drawn,
        }
        for name, drawn in samples.items()
    ]
    run.append(items)
    return run.finish([("sums", name) for name in samples], {}, {}, {})


RIGHT = sample("2 and 2 is 4. The answer is 4.", "correct")

WRONG = sample("2 and 2 is 5. The answer is 5.", "wrong")
