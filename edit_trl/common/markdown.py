"""Foreign text in Markdown and HTML: shown literally, never read as markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from edit_trl.common.terminal import UNSEEN

# The characters that have a meaning in CommonMark, GFM tables, HTML or the mathematics of the Hub.
_MARKUP = re.compile(r"[&<>`*_\[\]|~#\\$]")


def text(value: Any) -> str:
    """Escape a value as inline text on one line; an @ notifies nobody."""
    escaped = _MARKUP.sub(lambda match: f"&#{ord(match[0])};", one_line(value))
    return escaped.replace("@", "@\N{ZERO WIDTH SPACE}")


def code(value: Any) -> str:
    """Format a value as an inline code span, which may stand in a table."""
    span = one_line(value).replace("`", "'").replace("|", "¦")
    return f"`{span or ' '}`"


def marked_block(content: str, spans: Iterable[Sequence[int]] = ()) -> str:
    """Format text as a `<pre>` element, in which Markdown is not read.

    Args:
        content: The text.
        spans: Sorted [start, end) characters to show in bold.
    """
    parts, position = [], 0
    for start, end in spans:
        parts += [_in_html(content[position:start]), "<b>", _in_html(content[start:end]), "</b>"]
        position = end
    # HTML ignores a line break after <pre>; without the added one, a first line break of the text would be lost.
    return f"<pre>\n{''.join(parts)}{_in_html(content[position:])}</pre>"


def one_line(value: Any) -> str:
    """Put a value on one line. (In YAML metadata, a line of three dashes would end the metadata.)"""
    return " ".join(UNSEEN.sub("", str(value).replace("\r", "\n")).split())


def _in_html(value: str) -> str:
    return html.escape(UNSEEN.sub("", value))
