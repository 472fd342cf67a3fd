"""Reads and compares answers of type `math` by math-verify (the extra `math`), in a process of its own."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.data.answers.numbers import Number, find_number
from edit_trl.data.answers.reading import Extraction, read_phrase, text_value

_WORKER = Path(__file__).with_name("formula_worker.py")
_MOST_CHARACTERS = 2_000
# The worker ends itself after less processor time; this is for systems on which it cannot, or that are busy.
_MOST_SECONDS = 120

_ENVIRONMENT = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_HEDGE = re.compile(r"[\s*]*(?:,|;|\bor\b|\band\b)+[\s*]*", re.IGNORECASE)
_FUNCTIONS = (
    "sin|cos|tan|sec|csc|cot|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|sqrt|max|min|mod|gcd|lcm|det|or|and|pi|inf"
)
_SHORT_WORDS = "is|of|in|to|at|as|so|by|we|he|it|if|on|be|an|am|pm|cm|mm|km|kg|mg|ml|ft|oz|lb"
_WORD = re.compile(
    rf"(?<![\\A-Za-z])(?!(?:{_FUNCTIONS})\b)(?:[A-Za-z]{{3,}}|(?:{_SHORT_WORDS})\b)[A-Za-z]*[.:]?", re.IGNORECASE
)
_FORMULA = re.compile(r"[\d\\√π∞∅]|(?<![A-Za-z'’])[B-HJ-Zb-hj-z](?![A-Za-z'’])|[=<>≤≥∪∩]")
# Signs that math-verify reads only as LaTeX.
_LATEX = {
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "π": r"\pi ",
    "∅": r"\emptyset ", r"\varnothing": r"\emptyset ", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ",
    "−": "-", "–": "-", "‑": "-", "∈": r"\in ", "°": r"^\circ ", "θ": r"\theta ", "⁄": "/", r"\,": "", r"\!": "",
    r"\;": " ", r"\:": " ", r"\ ": " ",
}  # fmt: skip
_SIGN = re.compile(rf"(?<!\\)(?:{'|'.join(map(re.escape, _LATEX))})")
_ROOT = re.compile(r"√\s?(?:\(([^()]*)\)|(\w+))|(?<![\\a-z])sqrt\s?\(([^()]*)\)")
_VULGAR = re.compile("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")


def check_installed() -> None:
    """Raise an InputError if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise InputError("answers of type 'math' need math-verify: pip install 'edit_trl[math]'")


def read(text: str, start: int, end: int, last: bool = False) -> Extraction | None:
    """Read the formula of a statement: that between dollar signs, or what stands before the first word.

    Args:
        text: The response.
        start: First character of the statement.
        end: Last character of the statement, exclusive.
        last: Read the last formula between dollar signs, or else the last number.

    Returns:
        The formula or a phrase such as "east", as it is written; None without any.
    """
    environments = list(_ENVIRONMENT.finditer(text, start, end))
    if last and not environments:
        number = find_number(text, start, end, last=True)
        return Extraction(number.value, number.start, number.end) if number else None
    if environments:
        first = final = len(environments) - 1 if last else 0
        # "$2$ or $3$" is one answer.
        while final + 1 < len(environments) and _HEDGE.fullmatch(
            text, environments[final].end(), environments[final + 1].start()
        ):
            final += 1
        start, end = environments[first].start(), environments[final].end()
    elif "\\" not in text[start:end]:
        start, end = _plain_formula(text, start, end)
    return read_phrase(text, start, end, str)


def in_one_spelling(answer: Extraction | None) -> Extraction | None:
    """Return an answer with its value as math-verify writes it; None for what math-verify cannot read."""
    if answer is None or len(answer.value) > _MOST_CHARACTERS:
        return None
    text = answer.value
    value = text_value(text) if _is_phrase(text) else _worker_value(_latex(text))
    return replace(answer, value=value) if value else None


def are_equal(known: str, said: str) -> bool:
    """Whether an answer is the known one; both as they are written."""
    if _is_phrase(known) or _is_phrase(said) or text_value(known) == text_value(said):
        return text_value(known) == text_value(said)
    return _equal(_latex(known), _latex(said))


def _plain_formula(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the formula in a statement without LaTeX: what stands between words, or all of it if it is only words."""
    begin = start
    for word in [*_WORD.finditer(text, start, end), None]:
        stop = word.start() if word else end
        if _FORMULA.search(text, begin, stop):
            return begin, stop
        begin = word.end() if word else end
    return start, end


def _is_phrase(text: str) -> bool:
    return not _FORMULA.search(text) or bool(re.fullmatch(r"[^\W\d_][\w\s'’.-]*[^\W\d_]{2}[^\W\d_]*", text.strip()))


@lru_cache(maxsize=4096)
def _worker_value(formula: str) -> str | None:
    return _ask("value", formula)


@lru_cache(maxsize=4096)
def _equal(known: str, said: str) -> bool:
    return bool(_ask("equal", known, said))


def _latex(text: str) -> str:
    """Return a formula as math-verify reads it best; numbers are read by our own rules."""
    text = _ENVIRONMENT.sub(lambda match: next(group for group in match.groups() if group is not None), text)
    number = find_number(text, 0, len(text))
    if number and number.value and " or " not in number.value and _is_alone(text, number):
        return number.value
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}".replace("−", "-"), text)
    text = _VULGAR.sub(
        lambda match: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match[0]).split("⁄")), text
    )
    text = _SIGN.sub(lambda match: _LATEX[match[0]], text).strip()
    if text.count("\\pm") != 1:
        return text
    # Both values, as math-verify does not read the sign inside fractions.
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text)
    return ", ".join(text.replace("\\pm", sign).removeprefix("+") for sign in "+-")


def _is_alone(text: str, number: Number) -> bool:
    return not text[: number.start].strip("${([ ") and not re.search(r"[^\W\d_]|[\\%^]", text[number.end :])


class _Worker:
    """The process that reads formulas; it is started when it is needed, and again when it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: list[str]) -> Any:
        """Return the answer to a request, or None if it takes too much time or memory."""
        with self._lock:
            process = self._process = self._process or self._start()
            answer = self._exchange(process, json.dumps(request))
            if answer is None:
                self._stop()
            return answer and json.loads(answer)

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[str]:
        # -P: the folder of the worker has modules with the names of others. Answers come as ASCII.
        command = [sys.executable, "-P", str(_WORKER)]
        # math-verify may be found by a path of this process alone.
        spec = find_spec("math_verify")
        assert spec is not None  # `check_installed` came first
        assert spec.origin is not None
        paths = [str(Path(spec.origin).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        assert process.stdout is not None
        if process.stdout.readline() != '"ready"\n':
            raise RuntimeError(f"math-verify cannot be started: {' '.join(command)} ended with {process.wait()}")
        return process

    def _exchange(self, process: subprocess.Popen[str], request: str) -> str | None:
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(_MOST_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            return process.stdout.readline() or None
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()

    def _stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


_worker = _Worker()


def _ask(*request: str) -> Any:
    return _worker.ask(list(request)) if sum(map(len, request)) <= _MOST_CHARACTERS else None


def _forget_worker() -> None:
    # A forked process must not read the answers of its parent.
    global _worker
    _worker = _Worker()


atexit.register(lambda: _worker.stop())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)
