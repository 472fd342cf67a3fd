"""Files and folders of rows that are broken, and rows that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustness_cases.case import Case
from robustness_cases.material import QUESTIONS, ROWS, lines, recipe

ROW = '"prompt":"q","chosen":"a b","rejected":"a c"'

# Name, content, and what the message must name beside the file.
BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "cut JSON": ("d.jsonl", lines(ROWS)[:-9], "row 4|line 4|JSON"),
    "a line that is no JSON": ("d.jsonl", lines(ROWS) + "hello\n", "line 5|row 5|JSON"),
    "a line that is a list": ("d.jsonl", lines(ROWS) + "[1]\n", "line 5|row 5|JSON|object"),
    "a line that is null": ("d.jsonl", "null\n", "line 1|row 1|JSON|object|column"),
    "huge digits": ("d.jsonl", "{" + ROW + ',"x":' + "1" * 5000 + "}\n", "row 1|line 1|digits|number|JSON|integer"),
    "an integer beyond 64 bits": (
        "d.jsonl",
        "{" + ROW + ',"answer":1' + "0" * 30 + "}\n",
        "row 1|line 1|answer|integer|large|big",
    ),
    "a surrogate in a column": ("d.jsonl", "{" + ROW + ',"x\\ud800":1}\n', "surrogate|character|x"),
    "a surrogate in a value": (
        "d.jsonl",
        '{"prompt":"q\\ud800","chosen":"a b","rejected":"a c"}\n',
        "prompt|surrogate|row 1|line 1",
    ),
    "nesting 500 deep": ("d.jsonl", "{" + ROW + ',"x":' + "[" * 500 + "]" * 500 + "}\n", "deep|nest|row 1|line 1|x"),
    "nesting 100000 deep": ("d.jsonl", "[" * 100000 + "]" * 100000 + "\n", "deep|nest|row 1|line 1|JSON"),
    "a NUL": ("d.jsonl", b"{" + ROW.encode() + b"}\n\0\n", "line|row|JSON"),
    "Latin-1": ("d.jsonl", '{"prompt":"é","chosen":"a b","rejected":"a c"}\n'.encode("latin-1"), "UTF-8|utf-8"),
    "UTF-16": ("d.jsonl", lines(ROWS).encode("utf-16"), "utf"),
    "nothing": ("d.jsonl", "", "empty|no row|nothing"),
    "white space": ("d.jsonl", "\n \n", "empty|no row|nothing|JSON"),
    "no column of ours": ("d.jsonl", '{"a": 1}\n', "prompt|chosen"),
    "no rejected chain": ("d.jsonl", '{"prompt":"q","chosen":"a"}\n', "rejected"),
    "a chain that is a number": ("d.jsonl", '{"prompt":"q","chosen":5,"rejected":"b"}\n', "chosen"),
    "a chain that is null": (
        "d.jsonl",
        lines(ROWS) + '{"prompt":"q","chosen":null,"rejected":"b"}\n',
        "(row 5|row 4|line 5).*chosen|chosen",
    ),
    "an empty chain": ("d.jsonl", lines(ROWS) + '{"prompt":"q","chosen":"","rejected":"b"}\n', "chosen"),
    "equal chains": ("d.jsonl", '{"prompt":"q","chosen":"a","rejected":"a"}\n', "same|equal|differ|identical"),
    "messages without content": (
        "d.jsonl",
        '{"prompt":[{"role":"user"}],"chosen":[{"role":"assistant","content":"a"}],"rejected":[{"role":"assistant","content":"b"}]}\n',
        "prompt|content",
    ),
    "a role that is none": (
        "d.jsonl",
        '{"prompt":[{"role":"usr","content":"q"}],"chosen":[{"role":"assistant","content":"a"}],"rejected":[{"role":"assistant","content":"b"}]}\n',
        "usr|role",
    ),
    "spans beyond the chain": (
        "d.jsonl",
        "{" + ROW + ',"chosen_key_spans":[[0,99]],"rejected_key_spans":[[0,1]]}\n',
        "span",
    ),
    "spans that are no pairs": (
        "d.jsonl",
        "{" + ROW + ',"chosen_key_spans":[[0]],"rejected_key_spans":[[0,1]]}\n',
        "span",
    ),
    "spans that run back": (
        "d.jsonl",
        "{" + ROW + ',"chosen_key_spans":[[3,1]],"rejected_key_spans":[[0,1]]}\n',
        "span",
    ),
    "a mistake that is a mapping": ("d.jsonl", "{" + ROW + ',"mistake":{"a":1}}\n', "mistake"),
    "a task that is a list": ("d.jsonl", "{" + ROW + ',"task":[1]}\n', "task"),
    "two rows of an id": ("d.jsonl", lines([ROWS[0], ROWS[0] | {"prompt": "other"}]), "id|row0"),
    "JSON of a number": ("d.json", "5", "JSON|list|rows"),
    "JSON of a text": ("d.json", '"rows"', "JSON|list|rows"),
    "cut JSON list": ("d.json", json.dumps(ROWS)[:-5], "JSON"),
    "CSV with an open quote": (
        "d.csv",
        'prompt,chosen,rejected\nq,"a,b\n',
        "quote|CSV|line|row|chosen|rejected|column|EOF",
    ),
    "CSV with too many cells": ("d.csv", "prompt,chosen,rejected\nq,a,b,c,d\n", "line 2|row 1|field|cell|column"),
    "CSV with a cell 100000 deep": (
        "d.csv",
        'prompt,chosen,rejected,mistake\nq,a,b,"' + "[" * 100000 + '"\n',
        "mistake|deep|nest",
    ),
    "CSV of a heading": ("d.csv", "prompt,chosen,rejected\n", "no row|empty"),
    "CSV with a column twice": ("d.csv", "prompt,prompt,chosen,rejected\nq,p,a,b\n", "prompt"),
    "CSV in Latin-1": ("d.csv", "prompt,chosen,rejected\né,a,b\n".encode("latin-1"), "UTF-8|utf-8"),
    "Parquet that is none": ("d.parquet", b"hello", "Parquet|parquet"),
    "Parquet with a broken footer": ("d.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "Parquet|parquet|Thrift"),
    "an ending that nobody knows": ("d.xyz", lines(ROWS), "jsonl|parquet"),
    "a gzip that is none": ("d.jsonl.gz", b"hello", "gz|jsonl"),
    "an Arrow file that is none": ("d/data-00000-of-00001.arrow", b"hello", "d"),
    "a state that is a list": ("d/state.json", "[1]", "state|d"),
    "a folder without splits": ("d/dataset_dict.json", "{}", "dataset_dict|splits|d"),
    "splits that are missing": ("d/dataset_dict.json", '{"splits": ["train"]}', "train|d"),
}
# Rows of `generate` and `evaluate`.
QUESTION = {"question": "What is 1 + 1?", "answer": "2"}
QUESTION_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "a surrogate in the question": ({"question": "What is \ud800 1 + 1?"}, "question|surrogate|row 7|line 7"),
    "a surrogate in the answer": ({"answer": "2\ud800"}, "answer|surrogate|row 7|line 7"),
    "a surrogate in the id": ({"id": "a\ud800"}, "id|surrogate|row 7|line 7"),
    "a surrogate in the task": ({"task": "t\ud800"}, "task|surrogate|row 7|line 7"),
    "a question that is a number": ({"question": 5}, "question"),
    "a question that is a list": ({"question": ["a"]}, "question"),
    "an empty question": ({"question": "  "}, "question"),
    "a question that is null": ({"question": None}, "question"),
    "an answer that is a mapping": ({"answer": {"a": 1}}, "answer"),
    "an empty answer": ({"answer": ""}, "answer"),
    "a task that is a list": ({"task": [1]}, "task"),
    "an id that is a list": ({"id": [1]}, "id"),
    "an id given twice": ({"id": "q0"}, "q0"),
    "choices that are a number": ({"choices": 5}, "choices"),
    "an answer of another type": ({"answer": "blue", "answer_type": "number"}, "answer|blue"),
}


def cases() -> Iterator[Case]:
    commands = ("inspect", "validate", "train", "suite", "push")
    for number, (name, (file, content, said)) in enumerate(BROKEN.items()):
        source = file.partition("/")[0]
        for command in sorted({"inspect", commands[number % 5], commands[(number + 2) % 5]}):
            yield Case("rows", name, _words(command, source), (rf"\b{source}", said), files={file: content})
    for name, write in WRITTEN.items():
        for command in ("inspect", "validate"):
            yield Case("rows", name, _words(command, "d.parquet"), (r"d\.parquet|`?prompt`?",), prepare=write)
    for name, path, said in PATHS:
        for command in commands if name != "a model" else commands[:4]:  # a model may be pushed
            yield Case("rows", name, _words(command, path), said, files={"empty/.keep": ""})
    yield from _questions()


def _words(command: str, source: str) -> tuple[str, ...]:
    return {
        "inspect": ("inspect", source),
        "validate": ("validate", "--dataset", source),
        "train": ("train", "--config", "train.yaml", "--dataset_name", source),
        "suite": ("suite", "--config", "suite.yaml", "--dataset_name", source),
        "push": ("push", source, "--repo_id", "someone/rows", "--dry_run"),
    }[command]


def _questions() -> Iterator[Case]:
    for number, (name, (changes, said)) in enumerate(QUESTION_ROWS.items()):
        files = {"q.jsonl": lines([*QUESTIONS, QUESTION | changes])}
        for command in ("generate", "evaluate", "validate")[: 2 + number % 2]:
            words = (command, "--config", "evaluate.yaml" if command == "evaluate" else "generate.yaml")
            yield Case("questions", name, words, (r"q\.jsonl|q\b", said), files=files)
    for name, (file, content, said) in BROKEN.items():
        if file in ("d.parquet", "d.json") or name in ("huge digits", "Latin-1", "nesting 100000 deep"):
            files = {file: content, "x.yaml": recipe("generate", dataset_name=file)}
            yield Case(
                "questions", name, ("generate", "--config", "x.yaml"), (rf"\b{file}", f"{said}|question"), files=files
            )
            files = {file: content, "x.yaml": f"dataset_name: {file}\n"}
            words = ("evaluate", "--config", "evaluate.yaml", "--tasks", "x.yaml")
            yield Case("questions", name, words, (rf"\b{file}", f"{said}|question"), files=files)


def _table(**columns: Any) -> Callable[[Path], None]:
    """Writes d.parquet with these columns beside or in place of good ones."""

    def write(folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        good = {"prompt": ["q"] * 2, "chosen": ["a b"] * 2, "rejected": ["a c"] * 2}
        made = {name: value(pyarrow) if callable(value) else value for name, value in (good | columns).items()}
        parquet.write_table(pyarrow.table(made), folder / "d.parquet")

    return write


def _broken_page(folder: Path) -> None:
    _table(prompt=["q" * 100] * 2)(folder)
    data = bytearray((folder / "d.parquet").read_bytes())
    data[30:60] = b"\xff" * 30
    (folder / "d.parquet").write_bytes(data)


def _cut(folder: Path) -> None:
    _table()(folder)
    data = (folder / "d.parquet").read_bytes()
    (folder / "d.parquet").write_bytes(data[: len(data) // 2])


def _bytes_that_are_no_text(arrow: Any) -> Any:
    return arrow.Array.from_buffers(arrow.string(), 2, arrow.array([b"q\xff", b"q"]).buffers())


WRITTEN = {
    "Parquet with a broken page": _broken_page,
    "cut Parquet": _cut,
    "Parquet with text that is no UTF-8": _table(prompt=_bytes_that_are_no_text),
    "Parquet with bytes": _table(prompt=[b"q", b"r"]),
    "Parquet with numbers": _table(prompt=[1, 2]),
    "Parquet with nulls": _table(prompt=["q", None]),
    "Parquet without rows": _table(
        prompt=lambda arrow: arrow.array([], arrow.string()),
        chosen=lambda arrow: arrow.array([], arrow.string()),
        rejected=lambda arrow: arrow.array([], arrow.string()),
    ),
    "Parquet with lists of numbers": _table(prompt=[[1], [2]]),
}
PATHS = (
    ("a name too long", "n" * 300 + ".jsonl", "nnnn"),
    ("a device", "/dev/null", "/dev/null"),
    ("a folder without rows", "empty", "empty"),
    ("a model", "student", "student"),
    ("a file that does not exist", "gone.jsonl", r"gone\.jsonl"),
)
