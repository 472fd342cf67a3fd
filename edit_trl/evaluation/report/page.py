"""The data of a report -> one HTML file.

Much of the data was written by models, so it must never be run. It is in a script element that browsers do
not run, with all characters escaped that HTML or a script could interpret. A content security policy lets the
page run only its own script and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import is_stream, write_whole
from edit_trl.data.pair_statistics import GROUPS, Pair, grouped_pairs, pair_statistics
from edit_trl.evaluation.report.items import Detail, packed_tokens, page_items, page_prompt, rounded, thoughts_of_text
from edit_trl.evaluation.report.summary import flips, learning_curves, run_summary, score_label, score_labels
from edit_trl.evaluation.report.training_history import TrainingRun
from edit_trl.evaluation.runs.schema import Run
from edit_trl.evaluation.runs.scores import SCORES

SCRIPTS = ("dom.js", "charts.js", "overview.js", "item.js", "browser.js", "start.js")
MOST_BYTES = 5_000_000
"""The size limit of a page; beyond it details are left out, and the page says so."""

_MARK = 'name="generator" content="edit-trl'
_DETAILS = (
    (Detail(), None),
    (
        Detail(samples=False),
        "To keep this page small, one response per question and run is shown: the first that gave the answer "
        "which counted.",
    ),
    (
        Detail(samples=False, tokens=False),
        "To keep this page small, one response per question and run is shown, and no log-probabilities of tokens.",
    ),
)
_PAIR_SCORES = {
    "key_fraction": ("Key fraction", "share of both chains that is key", "share"),
    "shared_prefix": ("Shared prefix", "share of the correct chain before the two part", "share"),
    "chosen_length": ("Correct chain", "mean length", "count"),
    "rejected_length": ("Wrong chain", "mean length", "count"),
}


def write_report(
    runs: Sequence[Run], path: str | os.PathLike[str], training: Sequence[TrainingRun] = (), *, title: str = "Report"
) -> Path:
    """Write runs as one HTML page that needs no other file and no network.

    Args:
        runs: Finished runs of `evaluate` and `suite`.
        path: The file to write; an earlier report there is replaced.
        training: Training runs, for the learning curves.
        title: Title of the page.

    Returns:
        The path of the file.

    Raises:
        InputError: There is nothing to report, or the file exists and is not a report.
    """
    page = report_page(runs, training, title=title)
    path = free_path(path)
    write_whole(path, page)
    return path


def report_page(runs: Sequence[Run], training: Sequence[TrainingRun] = (), *, title: str = "Report") -> bytes:
    """Return the page of `write_report`.

    Raises:
        InputError: There is nothing to report.
    """
    if not runs and not training:
        raise InputError("nothing to report: no run was given")
    names = _distinct([(run.record.kind, run.record.name or run.record.model, run.path) for run in runs])
    training_names = _distinct([("train", one.name, one.path) for one in training])
    kinds = [run.record.kind for run in runs]
    data: dict[str, Any] = {
        "title": title,
        "runs": [{"name": name, **run_summary(run)} for name, run in zip(names, runs, strict=True)],
        "labels": {kind: score_labels(SCORES[kind]) for kind in dict.fromkeys(kinds)},
        "training": [
            {"name": name, **learning_curves(one)} for name, one in zip(training_names, training, strict=True)
        ],
    }
    several = any(len(item["samples"]) > 1 for run in runs if run.record.kind == "evaluate" for item in run.items)
    *richer, (detail, notice) = _DETAILS if several else _DETAILS[::2]  # with one sample each, the second is the first
    items, _ = page_items(runs, detail)
    data["flips"] = flips(kinds, items)
    least = _packed(items)
    # More detail only adds to the items, so it is not tried where the least is too large already.
    for more, said in richer if len(least) <= MOST_BYTES else ():
        items, tokens = page_items(runs, more)
        chains = ({side: packed_tokens(part) for side, part in sides.items()} for sides in tokens)
        with suppress(_TooLarge):
            packed_items = _packed(items, MOST_BYTES)
            page = render(data | {"notice": said}, packed_items, _packed(chains, MOST_BYTES - len(packed_items)))
            if len(page) <= MOST_BYTES:
                return page
    return render(data | {"notice": notice}, least, _packed([]))


def write_pairs(
    pairs: Sequence[Pair],
    path: str | os.PathLike[str],
    *,
    title: str,
    method: str,
    unit: str = "words",
    limit: int | None = None,
) -> Path:
    """Write dual CoTs as such a page: their statistics, and each pair with its key steps.

    Args:
        pairs: The dual CoTs.
        path: The file to write; an earlier page there is replaced.
        title: Title of the page, such as the dataset.
        method: How key steps were found.
        unit: Unit of lengths: words or tokens.
        limit: Show only the first pairs; statistics are over all pairs. None for no limit.

    Returns:
        The path of the file.

    Raises:
        InputError: There are no dual CoTs, or the file exists and is not such a page.
    """
    page = pairs_page(pairs, title=title, method=method, unit=unit, limit=limit)
    path = free_path(path)
    write_whole(path, page)
    return path


def pairs_page(
    pairs: Sequence[Pair], *, title: str, method: str, unit: str = "words", limit: int | None = None
) -> bytes:
    """Return the page of `write_pairs`.

    Raises:
        InputError: There are no dual CoTs.
    """
    if not pairs:
        raise InputError("nothing to show: no dual CoT was given")
    shown = pairs[:limit]
    notice = f"The first {len(shown)} of {len(pairs)} pairs are shown; the statistics are over all of them."
    labels = {
        name: score_label(label, text if kind == "share" else f"{text}, {unit}", kind)
        for name, (label, text, kind) in _PAIR_SCORES.items()
    }
    run = {"name": title, **_pair_summary(pairs, method, unit)}
    data: dict[str, Any] = {"title": title, "runs": [run], "labels": {"pairs": labels}, "training": [], "flips": []}
    data["notice"] = notice if len(shown) < len(pairs) else None
    return render(data, _packed(_pair_item(pair, unit) for pair in shown), _packed([]))


def _pair_summary(pairs: Sequence[Pair], method: str, unit: str) -> dict[str, Any]:
    """Return the statistics of pairs, in the form of `run_summary`."""
    statistics = pair_statistics(pairs)
    facts = {
        "Rows": statistics.rows,
        "Pairs": statistics.pairs,
        "Key steps": f"method {method!r}",
        "Median chain": f"{statistics.median_length:.0f} {unit}",
        "Longest chain": f"{statistics.longest} {unit}",
    }
    return {
        "kind": "pairs",
        "main": "key_fraction",
        "items": len(pairs),
        "facts": [[name, str(value)] for name, value in facts.items()],
        "scores": _pair_scores(pairs),
        "groups": {
            group: [
                [name, len(members), _pair_scores(members)] for name, members in grouped_pairs(pairs, group).items()
            ]
            for group in GROUPS
        },
    }


def _pair_scores(pairs: Sequence[Pair]) -> dict[str, list[float | None]]:
    statistics = pair_statistics(pairs)
    values = {name: getattr(statistics, name) for name in _PAIR_SCORES}
    return {name: [rounded(value, 4), None, None] for name, value in values.items() if value is not None}


def _pair_item(pair: Pair, unit: str) -> dict[str, Any]:
    names = ("id", "task", "source", "mistake", "answer", "prompt", "chosen", "rejected")
    item = {name: getattr(pair, name) for name in (*names, "chosen_spans", "rejected_spans")}
    item = {name: value for name, value in item.items() if value not in (None, [])}
    item["prompt"] = page_prompt(pair.prompt)
    for side in ("chosen", "rejected"):
        item |= thoughts_of_text(item.get(side, ""), f"{side}_thoughts")
    lengths = [f"{pair.chosen_length}"] + ([f"{pair.rejected_length}"] if pair.rejected else [])
    facts = [["Row", str(pair.row)], ["Length", f"{' and '.join(lengths)} {unit}"]]
    if pair.key_fraction is not None:
        facts += [["Key", f"{pair.key_fraction:.0%}"], ["Shared prefix", f"{pair.shared_prefix:.0%}"]]
    return item | {"id": pair.id or f"row {pair.row}", "task": pair.task or "", "facts": facts, "runs": []}


def render(data: Mapping[str, Any], items: str, tokens: str) -> bytes:
    """Render the page from the data that it shows at once, and the packed items and tokens that it unpacks later."""
    folder = files(__package__)
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    whole = {**data, "made_with": f"edit_trl {version('edit_trl')}", "items": items, "tokens": tokens}
    filled = Template((folder / "template.html").read_text(encoding="utf-8")).substitute(
        version=version("edit_trl"),
        style_hash=_hash(style),
        script_hash=_hash(script),
        style=style,
        script=script,
        data=escaped_json(whole),
    )
    return filled.encode("utf-8")


def escaped_json(value: Any) -> str:
    """Return JSON for an HTML script element: ASCII, without the characters of tags and entities."""
    return re.sub(r"[<>&]", lambda match: f"\\u{ord(match[0]):04x}", _json(value))


class _TooLarge(Exception):
    """Values take more bytes on a page than they may."""


def _packed(values: Iterable[Any], most_bytes: float = math.inf) -> str:
    """Return values as compressed JSON in base64; raise _TooLarge as soon as they take more than `most_bytes`."""
    compressor = zlib.compressobj(level=9, wbits=zlib.MAX_WBITS + 16)  # gzip, without a time
    parts, size = [], 0
    values = iter(values)
    begin = "["
    while block := [*islice(values, 500)]:
        parts.append(compressor.compress(f"{begin}{_json(block)[1:-1]}".encode("ascii")))
        size, begin = size + len(parts[-1]), ","
        if size * 4 / 3 > most_bytes:
            raise _TooLarge
    parts.append(compressor.compress(b"[]" if begin == "[" else b"]") + compressor.flush())
    return base64.b64encode(b"".join(parts)).decode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _distinct(named: Sequence[tuple[str, str, Path]]) -> list[str]:
    """Return unique names for the runs of each kind: with the folder if two have the same name."""
    counts = Counter((kind, name) for kind, name, _ in named)
    return [f"{name} ({path})" if counts[kind, name] > 1 else name for kind, name, path in named]


def free_path(path: str | os.PathLike[str]) -> Path:
    """Check that a page may be written to a path.

    Raises:
        InputError: It is a folder, or a file that is not a page of edit-trl.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file, such as {path / 'report.html'}")
    blocked = next((parent for parent in path.parents if parent.is_file()), None)
    if blocked:
        raise InputError(f"{path}: {blocked} is a file, not a folder")
    if path.is_file() and not is_stream(path):
        with path.open(encoding="utf-8", errors="replace") as file:
            if _MARK not in file.read(2000):
                raise InputError(f"{path} exists and is not a report of edit-trl; choose another, or remove it")
    return path
