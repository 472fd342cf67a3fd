"""Text of files, models and people on the terminal and on pages: control characters, surrogates, markup."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustness_cases.case import Case, Outcome
from robustness_cases.commands import COMMANDS
from robustness_cases.endpoint import completion
from robustness_cases.material import QUESTIONS, ROWS, lines, recipe
from robustness_cases.models import Edit, values
from robustness_cases.run_folders import first_item

ESCAPES = "\x1b]0;pwned\x07\x1b[31m\x9b2Jred\u202e"
MARKUP = "<script>document.title='pwned'</script><img src=x onerror=alert(1)>"


def cases() -> Iterator[Case]:
    yield from _refused()
    yield from _shown()
    yield from _pages()


def _refused() -> Iterator[Case]:
    """Names with control characters in messages: judged by what reaches the terminal."""
    key = {"x.yaml": json.dumps({f"see{ESCAPES}d": 1})}
    for command in ("train", "validate", "generate", "evaluate", "suite", "judge"):
        yield Case("foreign text", "a key of a recipe", (command, "--config", "x.yaml"), "see", files=key)
    for words in COMMANDS.values():
        yield Case("foreign text", "an option", (*words, f"--{ESCAPES}"), "pwned|red")
        yield Case("foreign text", "an option with a surrogate", (*words, "--x\udcff"), r"x|argument|option")
    column = {"rows.jsonl": json.dumps({f"a{ESCAPES}b": 1}) + "\n"}
    for command in ("inspect", "train", "suite"):
        yield Case("foreign text", "a column", COMMANDS[command], r"rows\.jsonl", files=column)
    row = {"rows.jsonl": lines([*ROWS, {"prompt": "q", "chosen": 5, "rejected": ESCAPES, "id": ESCAPES}])}
    for command in ("inspect", "train", "suite"):
        yield Case("foreign text", "a row", COMMANDS[command], r"rows\.jsonl", files=row)
    for words in (
        ("inspect", f"gone{ESCAPES}.jsonl"),
        ("validate", "--dataset", f"gone{ESCAPES}.jsonl"),
        ("report", f"gone{ESCAPES}", "--output", "r.html"),
        ("compare", "run_a", f"gone{ESCAPES}"),
        ("history", "--file", f"gone{ESCAPES}.sqlite"),
        ("chat", f"./gone{ESCAPES}"),
        ("merge", f"./gone{ESCAPES}", "--output", "m"),
        ("push", f"gone{ESCAPES}", "--dry_run"),
        ("evaluate", "--config", "evaluate.yaml", "--model", f"./gone{ESCAPES}"),
        ("generate", "--rows", "2", "--families", f"gone{ESCAPES}", "--output", "x.jsonl"),
    ):
        yield Case("foreign text", "a name", words, "gone")
    for name in ("inspect", "compare", "push", "chat"):
        words = {"inspect": ("inspect", "g\udcff.jsonl"), "compare": ("compare", "run_a", "g\udcff")}
        words |= {"push": ("push", "g\udcff", "--dry_run"), "chat": ("chat", "./g\udcff")}
        yield Case("foreign text", "a name that is no UTF-8", words[name], r"\bg|cannot")


def _shown() -> Iterator[Case]:
    """Text that is right to show: what a terminal would obey is shown as something else."""
    rows = {"rows.jsonl": lines([row | {"chosen": row["chosen"] + ESCAPES, "task": f"t{ESCAPES}"} for row in ROWS])}
    questions = {"q.jsonl": lines([row | {"task": f"t{ESCAPES}", "id": f"{row['id']}{ESCAPES}"} for row in QUESTIONS])}
    for command in ("inspect", "train", "suite", "validate"):
        yield _fine("rows with escapes", COMMANDS[command], files=rows)
    for command in ("generate", "evaluate"):
        yield _fine("questions with escapes", COMMANDS[command], files=questions)
    named = _named_runs(ESCAPES)
    for command in ("compare", "report", "judge"):
        yield _fine("a run's name with escapes", COMMANDS[command], prepare=named)
    yield _fine("a history with escapes", COMMANDS["history"], prepare=_history(ESCAPES))
    yield _fine("a metric with escapes", (*COMMANDS["history"], "--name", ESCAPES))
    answer = {"x.yaml": recipe("evaluate", model="m", base_urls=["@URL@"], api_key_env=None)}
    said = completion(f"{ESCAPES} the answer is 2.")
    yield _fine("answers with escapes", ("evaluate", "--config", "x.yaml"), files=answer, answer=lambda _n, _b: said)
    yield _fine("a system prompt with escapes", (*COMMANDS["chat"], "--system", ESCAPES), typed=f"Hello{ESCAPES}\n")


def _pages() -> Iterator[Case]:
    """Markup of rows and runs is text on a page and in a card."""
    rows = {"rows.jsonl": lines([row | {"chosen": row["chosen"] + MARKUP, "task": MARKUP} for row in ROWS])}
    words = ("inspect", "rows.jsonl", "--html", "page.html")
    yield Case("foreign text", "markup in rows", words, check=_no_markup("page.html"), files=rows)
    named = _named_runs(MARKUP)
    for more in ((), ("--title", MARKUP)):
        words = ("report", "run_a", "run_b", "--output", "page.html", *more)
        name = f"markup in a run {' '.join(more)[:7]}".strip()
        yield Case("foreign text", name, words, check=_no_markup("page.html"), prepare=named)
    words = ("compare", "run_a", "run_b", "--markdown", "page.md")
    yield Case("foreign text", "markup in a run", words, check=_no_markup("page.md"), prepare=named)


def _fine(name: str, words: tuple[str, ...], **more: Any) -> Case:
    return Case("foreign text", name, words, check=lambda _folder, _outcome: None, **more)


def _named_runs(text: str) -> Edit:
    def prepare(folder: Path) -> None:
        for run in ("run_a", "run_b"):
            values("evaluation.json", name=f"{run}{text}", model=f"model{text}")(folder / run)
            first_item(prompt=f"1?{text}")(folder / run)

    return prepare


def _history(text: str) -> Edit:
    def prepare(folder: Path) -> None:
        connection = sqlite3.connect(folder / "history.sqlite")
        connection.execute("UPDATE runs SET name = ?, model = ?", (f"a{text}", f"b{text}"))
        connection.commit()
        connection.close()

    return prepare


def _no_markup(file: str) -> Any:
    def check(folder: Path, _outcome: Outcome) -> str | None:
        content = (folder / file).read_text(encoding="utf-8")
        found = [tag for tag in ("<script>document", "<img src=x") if tag in content]
        return f"{found} stands in {file} as it is" if found else None

    return check
