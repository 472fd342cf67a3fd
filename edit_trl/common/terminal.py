"""Foreign text in a terminal: control characters are made visible, so that the terminal does not obey them."""

from __future__ import annotations

import re
from typing import Any

# Control characters, marks that change the direction of text, separators that some programs read as line breaks,
# and code points that UTF-8 or XML cannot hold. Line breaks and tabs are not among them.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    """Replace each invisible character by one visible character, so that character offsets stay valid."""
    return UNSEEN.sub(lambda match: _picture(ord(match[0])), text)


def visible_line(value: Any) -> str:
    """Format a value as `visible` does, on one line: line breaks and tabs become spaces."""
    return re.sub(r"\s", " ", visible(str(value)))


def _picture(code: int) -> str:
    if code < 32:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 127 else "\N{REPLACEMENT CHARACTER}"
