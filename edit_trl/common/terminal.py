"""Foreign text in a terminal: control characters are made visible, so that the terminal does not obey them."""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

# Control characters, marks that change the direction of text, separators that some programs read as line breaks,
# and code points that UTF-8 or XML cannot hold. Line breaks and tabs are not among them.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

# What progress bars and colours are made of: a carriage return, and sequences that move or colour. In a terminal they
# are passed on; elsewhere only the carriage return is.
_OWN = r"\x1b\[[0-9;?]*[A-HJKSTfhlmsu]|\r"


def visible(text: str) -> str:
    """Replace each invisible character by one visible character, so that character offsets stay valid."""
    return text if _is_visible(text) else UNSEEN.sub(lambda match: _picture(ord(match[0])), text)


def _is_visible(text: str) -> bool:
    """Return whether a text surely has no invisible character, which is found out much faster than by `UNSEEN`."""
    return text.isprintable() or all(map(str.isprintable, text.split("\n")))


def visible_line(value: Any) -> str:
    """Format a value as `visible` does, on one line: line breaks and tabs become spaces."""
    return re.sub(r"\s", " ", visible(str(value)))


def _picture(code: int) -> str:
    if code < 32:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 127 else "\N{REPLACEMENT CHARACTER}"


class VisibleStream:
    """A text stream that shows control characters instead of passing them on, but for those of progress bars.

    It stands before standard output and standard error of a command, so that whatever a library prints or logs of a
    file, a model or an endpoint is cleaned too.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        own = _OWN if stream.isatty() else r"\r"
        self._pattern = re.compile(f"(?P<own>{own})|{UNSEEN.pattern}")

    def write(self, text: str) -> int:
        if not _is_visible(text):
            text = self._pattern.sub(lambda found: found["own"] or _picture(ord(found[0])), text)
        self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def clean_streams() -> None:
    """Put a `VisibleStream` before the standard output and the standard error of this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, VisibleStream):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal's encoding lacks
            setattr(sys, name, VisibleStream(stream))
