"""Text of others, shown in a terminal: as it is, and never acted on."""

from __future__ import annotations

import re
from typing import Any

# Control characters, those that turn the direction of the text around them, separators that some programs
# take for line breaks, and what UTF-8 and XML cannot hold. Line breaks and tabs are no part of it.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    """The text with a character that can be seen in place of each that cannot, so that spans still hold."""
    return UNSEEN.sub(lambda match: _picture(ord(match[0])), text)


def visible_line(value: Any) -> str:
    """A value on one line, as `visible`: a space in place of each line break or tab."""
    return re.sub(r"\s", " ", visible(str(value)))


def _picture(code: int) -> str:
    if code < 32:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 127 else "\N{REPLACEMENT CHARACTER}"
