"""Endpoints that answer with what nobody should, and text of theirs on the terminal and in files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustness_cases.case import Case, Outcome
from robustness_cases.commands import COMMANDS
from robustness_cases.endpoint import Answer, completion, solve
from robustness_cases.material import recipe

ESCAPES = "\x1b]0;pwned\x07\x1b[31mno\x9b"


def refusal(status: int, text: Any) -> Answer:
    """An endpoint that refuses everything."""
    return lambda _number, _body: (status, text if isinstance(text, str) else json.dumps(text))


def once(first: Any) -> Answer:
    """An endpoint that answers so to its first request, and then as it should."""
    return lambda number, body: first if number == 1 else solve(number, body)


def always(**values: Any) -> Answer:
    """An endpoint that solves, with other values in its answers."""
    return lambda number, body: solve(number, body, **values)


def error(text: Any) -> dict[str, Any]:
    return {"error": {"message": text, "code": None}}


# No request is answered: the command must end with exit code 2 and name the endpoint or what it said.
REFUSING: dict[str, tuple[Answer, str]] = {
    "401": (refusal(401, error("no such key")), "401|no such key"),
    "403 with escapes": (refusal(403, error(ESCAPES)), "403|no"),
    "404": (refusal(404, error("no such model")), "404|no such model"),
    "404 of HTML": (refusal(404, "<html><b>Not here</b></html>"), "404"),
    "422 with escapes": (refusal(422, error(ESCAPES)), "422|no"),
    "400 of a list": (refusal(400, "[1]"), "400"),
    "400 of nothing": (refusal(400, ""), "400"),
    "400 of a number": (refusal(400, json.dumps({"error": 5})), "400"),
    "400 with a surrogate": (refusal(400, '{"error": {"message": "\\ud800 no", "code": null}}'), "400|no"),
    "400 of deep nesting": (refusal(400, "[" * 50000 + "]" * 50000), "400"),
    "400 of a megabyte": (refusal(400, error("no " * 300000)), "400|no"),
    "a status that is none": (refusal(299, "{}"), "299|answer|read|choices"),
    "another protocol": (lambda _number, _body: b"SSH-2.0-OpenSSH_9.6\r\n", "127|protocol|HTTP|answer"),
    "a line that is no HTTP": (lambda _number, _body: b'{"error": "no"}\r\n\r\n', "127|HTTP|answer|line"),
    "a header that is none": (
        lambda _number, _body: b"HTTP/1.1 200 OK\r\nno header\r\n\r\n{}",
        "127|HTTP|header|answer",
    ),
    "a length that is none": (
        lambda _number, _body: b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n{}",
        "127|HTTP|length|answer",
    ),
    "a header without end": (
        lambda _number, _body: b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100000 + b"\r\n\r\n{}",
        "127|HTTP|header|answer|line",
    ),
    "a connection that is cut": (lambda _number, _body: b"", "127|connect|answer"),
}
# Every answer is broken, and was paid for: a sentence, or a result without pairs.
UNREADABLE: dict[str, Answer] = {
    "no JSON": lambda _number, _body: "hello",
    "HTML": lambda _number, _body: "<html>hello</html>",
    "a list": lambda _number, _body: "[1]",
    "a number": lambda _number, _body: "5",
    "deep nesting": lambda _number, _body: "[" * 50000 + "]" * 50000,
    "huge digits": lambda _number, _body: '{"choices": ' + "9" * 5000 + "}",
    "no choices": lambda _number, _body: '{"choices": []}',
    "choices that are null": lambda _number, _body: '{"choices": null}',
    "a choice that is a text": lambda _number, _body: '{"choices": ["a"]}',
    "a message that is null": lambda _number, _body: '{"choices": [{"message": null}]}',
    "content that is null": lambda _number, _body: completion(None),
    "content that is a list": lambda _number, _body: completion([1]),
    "content that is a number": lambda _number, _body: completion(5),
    "an error with status 200": lambda _number, _body: json.dumps(error("no")),
    "an error with escapes": lambda _number, _body: json.dumps(error(ESCAPES)),
}
# The first answer, or a part of every answer, is odd; the rest can be used: the run ends, and its files can be read.
ODD: dict[str, Answer] = {
    "a surrogate in a refusal": once((422, '{"error": {"message": "\\ud800 no", "code": null}}')),
    "escapes in a refusal": once((422, json.dumps(error(ESCAPES)))),
    "one line that is no HTTP": once(b'{"error": "no"}\r\n\r\n'),
    "one answer that is a list": once("[1]"),
    "one answer of deep nesting": once("[" * 50000 + "]" * 50000),
    "a surrogate in the model's name": always(model="\ud800"),
    "a model's name that is a number": always(model=5),
    "a model's name that is null": always(model=None),
    "a model's name with escapes": always(model=f"x{ESCAPES}"),
    "a model's name of a megabyte": always(model="x" * 10**6),
    "usage beyond a float": always(usage={"prompt_tokens": 10**400, "completion_tokens": 5}),
    "usage that is NaN": always(usage={"prompt_tokens": float("nan"), "completion_tokens": 5}),
    "usage that is infinite": always(usage={"prompt_tokens": float("inf"), "completion_tokens": 5}),
    "usage below zero": always(usage={"prompt_tokens": -5, "completion_tokens": -5}),
    "usage that is a text": always(usage={"prompt_tokens": "many", "completion_tokens": []}),
    "usage that is a list": always(usage=[1]),
    "usage that is null": always(usage=None),
    "escapes in the answer": lambda number, body: solve(number, body).replace(
        "and one", "\\u001b]0;pwned\\u0007and one"
    ),
    "a surrogate in the answer": lambda number, body: solve(number, body).replace("and one", "\\ud800 and one"),
    "a NUL in the answer": lambda number, body: solve(number, body).replace("and one", "\\u0000 and one"),
}
EVALUATE = ("evaluate", "--config", "e.yaml")
FILES = {"e.yaml": recipe("evaluate", model="m", base_urls=["@URL@"], api_key_env=None, max_attempts=2)}


def cases() -> Iterator[Case]:
    lines = {"generate": COMMANDS["generate"], "evaluate": EVALUATE, "judge": COMMANDS["judge"]}
    names = tuple(lines)
    for number, (name, (answer, said)) in enumerate(REFUSING.items()):
        for command in ("generate", names[1 + number % 2]):
            yield _case(f"refuses: {name}", lines[command], said, answer)
    for number, (name, answer) in enumerate(UNREADABLE.items()):
        for command in ("generate", names[1 + number % 2]):
            yield _case(
                f"unreadable: {name}",
                lines[command],
                "answer|read|judge|endpoint|127|question|choices|no",
                answer,
                _whole,
            )
    for number, (name, answer) in enumerate(ODD.items()):
        for command in ("generate", names[1 + number % 2]):
            # A question without an answer ends an evaluation, when the others are answered.
            said = "no answer|422|HTTP|read" if name.startswith("one ") or "refusal" in name else None
            yield _case(f"odd: {name}", lines[command], said, answer, _whole)
    yield from _cost()
    yield from _cards()
    yield from _addresses()


def _case(name: str, words: tuple[str, ...], said: str | None, answer: Answer, check: Any = None, **more: Any) -> Case:
    return Case("endpoints", name, words, said, check, answer=answer, files=FILES, leaves="out/.*", pays=99, **more)


def _whole(folder: Path, _outcome: Outcome) -> str | None:
    """What the command has written is JSON, and Markdown without control characters."""
    for file in (folder / "out").rglob("*"):
        if file.suffix == ".md" and re.search("[\x00\x07\x1b\x9b]", file.read_text(encoding="utf-8")):
            return f"control characters in {file.name}"
        if file.suffix in (".json", ".jsonl"):
            content = file.read_text(encoding="utf-8")
            for row in content.split("\n")[:-1] if file.suffix == ".jsonl" else [content]:
                json.loads(row, parse_constant=_no_constant)
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _cost() -> Iterator[Case]:
    """A budget that the endpoint's own counting would get round: stopped, or told."""
    words = (
        *COMMANDS["generate"],
        "--max_cost",
        "0.00001",
        "--prompt_price",
        "1",
        "--completion_price",
        "1000",
        "--max_concurrency",
        "1",
    )
    for name, usage in {
        "below zero": {"prompt_tokens": -(10**6), "completion_tokens": 10},
        "NaN": {"prompt_tokens": float("nan"), "completion_tokens": 10},
        "zero": {"prompt_tokens": 0, "completion_tokens": 0},
        "none": None,
        "a text": {"prompt_tokens": "10", "completion_tokens": "5"},
    }.items():
        yield _case(f"a budget and usage: {name}", words, "max_cost|usage|cost", always(usage=usage), _told)


def _told(_folder: Path, outcome: Outcome) -> str | None:
    told = "usage" in (outcome.out + outcome.err).lower()
    return None if told else f"{outcome.paid} requests under a budget, and not a word of the usage"


def _cards() -> Iterator[Case]:
    """Markup of an endpoint stays text in the card of the dual CoTs."""
    for name in (
        "x|<img src=http://127.0.0.1/leak>|",
        "x`](http://127.0.0.1/leak)",
        "x\n# heading\n",
        "---\nlicense: mit\n---",
    ):
        yield _case(f"markup in the model's name: {name!r}", COMMANDS["generate"], None, always(model=name), _one_row)


def _one_row(folder: Path, _outcome: Outcome) -> str | None:
    lines = (folder / "out" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| teacher")]
    if len(rows) != 1 or rows[0].replace("\\|", "").count("|") != 6:
        return f"the row of the teacher is {rows}"
    return "a heading of the endpoint" if "# heading" in lines else None


def _addresses() -> Iterator[Case]:
    """Addresses that are none; keys in addresses, which must not get into a file or a message."""
    table = {
        "no scheme": ("127.0.0.1:9/v1", "127"),
        "another scheme": ("ftp://127.0.0.1/v1", "ftp"),
        "an open bracket": ("http://[::1", "::1|base_urls"),
        "a port that is none": ("http://127.0.0.1:abc/v1", "abc|port"),
        "a port beyond": ("http://127.0.0.1:99999/v1", "99999|port"),
        "a line break": ("http://127.0.0.1:1/v1\nX: y", "base_urls|base URL|127"),
        "a space": ("http://127.0.0.1:1/v 1", "127"),
        "a surrogate": ("http://127.0.0.1:1/\ud800", "base_urls|base URL|127|surrogate"),
        "escapes": ("http://127.0.0.1:1/\x1b[31m", "base_urls|base URL|127"),
        "nobody there": ("http://127.0.0.1:1/v1", "127"),
        "no host": ("http:///v1", "http"),
        "a number": (5, "base_urls|base URL"),
        "null": (None, "base_urls|base URL"),
        "a list": (["http://127.0.0.1:1/v1"], "base_urls"),
    }
    for number, (name, (url, said)) in enumerate(table.items()):
        for command in ("generate", ("evaluate", "judge")[number % 2]):
            more = {"model": "m", "api_key_env": None} if command == "evaluate" else {}
            files = {"x.yaml": recipe(command, base_urls=[url], give_up_after=1, **more)}
            yield Case("addresses", name, (command, "--config", "x.yaml"), said, files=files, leaves="out/.*")
    for name, url in (
        ("a user", "http://sk-secret@@HOST@/v1"),
        ("a password", "http://me:sk-secret@@HOST@/v1"),
        ("a query", "@URL@?api-key=sk-secret"),
        ("a fragment", "@URL@#sk-secret"),
    ):
        for command in ("generate", "evaluate", "judge"):
            more = {"model": "m", "api_key_env": None} if command == "evaluate" else {}
            files = {"x.yaml": recipe(command, base_urls=[url], **more)}
            yield Case(
                "addresses",
                f"a key in {name}",
                (command, "--config", "x.yaml"),
                "key|password|secret|api_key_env|user",
                _no_key,
                files=files,
                leaves="out/.*",
            )


def _no_key(folder: Path, outcome: Outcome) -> str | None:
    """The key is in nothing that the command wrote."""
    if "sk-secret" in outcome.out + outcome.err:
        return "the key is on the terminal"
    held = [file.name for file in (folder / "out").rglob("*") if file.is_file() and b"sk-secret" in file.read_bytes()]
    return f"the key is in {held}" if held else None
