"""Data -> one HTML file (L3).

Models and teachers wrote much of the data. It is in one script element that no browser runs, with every
character that HTML or a script could take for its own escaped, and a content security policy lets the page
run its own script alone and load nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.data.pair_statistics import GROUPS, Pair, grouped_pairs, pair_statistics
from edit_trl.evaluation.report.items import Keep, page_items, rounded
from edit_trl.evaluation.report.summary import flips, learning_curves, run_summary, score_labels
from edit_trl.evaluation.report.training_history import TrainingRun
from edit_trl.evaluation.runs.schema import Run
from edit_trl.evaluation.runs.scores import SCORES

SCRIPTS = ("dom.js", "charts.js", "overview.js", "item.js", "browser.js", "start.js")
MOST_BYTES = 5_000_000
"""Of a page; what is left out beyond it is said on the page."""

_MARK = 'name="generator" content="edit-trl'
_LEFT_OUT = (
    (Keep(), None),
    (
        Keep(samples=False),
        "To keep this page small, one response a question and run is shown: the first that gave the answer "
        "which counted.",
    ),
    (
        Keep(samples=False, tokens=False),
        "To keep this page small, one response a question and run is shown, and no log-probabilities of "
        "tokens.",
    ),
)
_PAIR_SCORES = {
    "key_fraction": ("Key fraction", "share of both chains that is key", "share"),
    "shared_prefix": ("Shared prefix", "share of the correct chain before the two part", "share"),
    "chosen_length": ("Correct chain", "mean length", "count"),
    "rejected_length": ("Wrong chain", "mean length", "count"),
}


def write_report(
    runs: Sequence[Run],
    path: str | os.PathLike[str],
    training: Sequence[TrainingRun] = (),
    *,
    title: str = "Report",
) -> Path:
    """Write runs as one HTML page that needs nothing else.

    Args:
        runs: Finished runs of `evaluate` and `suite`, in any mix.
        path: The file; an earlier report there is replaced.
        training: Training runs, for the learning curves.
        title: The page's.

    Returns:
        The file.

    Raises:
        InputError: There is nothing to report, or the file is there and is no report.
    """
    if not runs and not training:
        raise InputError("nothing to report: no run was given")
    path = free_path(path)
    names = _distinct([(run.record.kind, run.record.name or run.record.model, run.path) for run in runs])
    data: dict[str, Any] = {
        "title": title,
        "made_with": f"edit_trl {version('edit_trl')}",
        "runs": [{"name": name, **run_summary(run)} for name, run in zip(names, runs, strict=True)],
        "labels": {kind: score_labels(SCORES[kind]) for kind in {run.record.kind: None for run in runs}},
        "training": [
            {"name": name, **learning_curves(one)}
            for name, one in zip(
                _distinct([("train", t.name, t.path) for t in training]), training, strict=True
            )
        ],
    }
    for keep, notice in _LEFT_OUT:
        items, tokens = page_items(runs, keep)
        if "flips" not in data:
            data["flips"] = flips([run.record.kind for run in runs], items)
        page = render(data | {"notice": notice}, items, tokens)
        if len(page) <= MOST_BYTES:
            break
    write_whole(path, page)
    return path


def write_pairs(
    pairs: Sequence[Pair], path: str | os.PathLike[str], *, title: str, method: str, unit: str = "words"
) -> Path:
    """Write dual CoTs as the same page: each pair with its key steps, statistics on top.

    Args:
        pairs: At least one.
        path: The file; an earlier page there is replaced.
        title: The page's, such as the dataset.
        method: How key steps were found.
        unit: What lengths count: words or tokens.

    Returns:
        The file.

    Raises:
        InputError: There is no pair, or the file is there and is no such page.
    """
    if not pairs:
        raise InputError("nothing to show: no dual CoT was given")
    path = free_path(path)
    everything = pair_statistics(pairs)
    facts = {
        "Rows": everything.rows,
        "Pairs": everything.pairs,
        "Key steps": f"method {method!r}",
        "Median chain": f"{everything.median_length:.0f} {unit}",
        "Longest chain": f"{everything.longest} {unit}",
    }
    labels = {
        name: {
            "label": label,
            "help": what if kind == "share" else f"{what}, {unit}",
            "unit": kind,
            "lower_is_better": False,
        }
        for name, (label, what, kind) in _PAIR_SCORES.items()
    }
    run = {
        "name": title,
        "kind": "pairs",
        "main": "key_fraction",
        "items": len(pairs),
        "facts": [[name, str(value)] for name, value in facts.items()],
        "scores": _pair_scores(pairs),
        "groups": {
            group: [[name, len(of), _pair_scores(of)] for name, of in grouped_pairs(pairs, group).items()]
            for group in GROUPS
        },
    }
    data = {
        "title": title,
        "made_with": f"edit_trl {version('edit_trl')}",
        "runs": [run],
        "labels": {"pairs": labels},
        "training": [],
        "flips": [],
        "notice": None,
    }
    write_whole(path, render(data, [_pair_item(pair, unit) for pair in pairs]))
    return path


def _pair_scores(pairs: Sequence[Pair]) -> dict[str, list[float | None]]:
    statistics = pair_statistics(pairs)
    values = {name: getattr(statistics, name) for name in _PAIR_SCORES}
    return {name: [rounded(value, 4), None, None] for name, value in values.items() if value is not None}


def _pair_item(pair: Pair, unit: str) -> dict[str, Any]:
    kept = ("id", "task", "source", "mistake", "answer", "prompt", "chosen", "rejected")
    item = {name: getattr(pair, name) for name in (*kept, "chosen_spans", "rejected_spans")}
    item = {name: value for name, value in item.items() if value not in (None, [])}
    lengths = [f"{pair.chosen_length}"] + ([f"{pair.rejected_length}"] if pair.rejected else [])
    facts = [["Row", str(pair.row)], ["Length", f"{' and '.join(lengths)} {unit}"]]
    if pair.key_fraction is not None:
        facts += [["Key", f"{pair.key_fraction:.0%}"], ["Shared prefix", f"{pair.shared_prefix:.0%}"]]
    return item | {"id": pair.id or f"row {pair.row}", "task": pair.task or "", "facts": facts, "runs": []}


def render(
    data: Mapping[str, Any], items: Sequence[Mapping[str, Any]], tokens: Sequence[Mapping[str, Any]] = ()
) -> bytes:
    """The page.

    Args:
        data: What is drawn at once, ready for JSON.
        items: What is looked at item by item; compressed.
        tokens: See `page_items`; likewise.
    """
    folder = files(__package__)
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    filled = Template((folder / "template.html").read_text(encoding="utf-8")).substitute(
        version=version("edit_trl"),
        style_hash=_hash(style),
        script_hash=_hash(script),
        style=style,
        script=script,
        data=escaped_json({**data, "items": _packed(items), "tokens": _packed(tokens)}),
    )
    return filled.encode("utf-8")


def escaped_json(value: Any) -> str:
    """JSON that can stand in an HTML script element: ASCII, and without the characters of tags."""
    return re.sub(r"[<>&]", lambda match: f"\\u{ord(match[0]):04x}", _json(value))


def _packed(value: Sequence[Any]) -> str:
    packed = gzip.compress(_json(value).encode("ascii"), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _distinct(named: Sequence[tuple[str, str, Path]]) -> list[str]:
    """Names that tell runs of a kind apart: with their folder where two have the same."""
    counts = Counter((kind, name) for kind, name, _ in named)
    return [f"{name} ({path})" if counts[kind, name] > 1 else name for kind, name, path in named]


def free_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a page may be written there.

    Raises:
        InputError: It is a folder, or a file that is no page of ours.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file, such as {path / 'report.html'}")
    blocked = next((parent for parent in path.parents if parent.is_file()), None)
    if blocked:
        raise InputError(f"{path}: {blocked} is a file, not a folder")
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            if _MARK not in file.read(2000):
                raise InputError(f"{path} exists and is no report of edit-trl; choose another, or remove it")
    return path
