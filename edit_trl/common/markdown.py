"""Text of others in Markdown and HTML: shown as it is, never read as markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from edit_trl.common.terminal import UNSEEN

# What begins or ends anything in CommonMark, GFM tables, HTML or the Hub's mathematics.
_MARKUP = re.compile(r"[&<>`*_\[\]|~#\\$]")


def text(value: Any) -> str:
    """Inline text: one line, no markup, and nobody is notified by an @."""
    escaped = _MARKUP.sub(lambda match: f"&#{ord(match[0])};", one_line(value))
    return escaped.replace("@", "@\N{ZERO WIDTH SPACE}")


def code(value: Any) -> str:
    """An inline code span, also within a table."""
    span = one_line(value).replace("`", "'").replace("|", "¦")
    return f"`{span or ' '}`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def marked_block(content: str, spans: Iterable[Sequence[int]] = ()) -> str:
    """A block of text as it stands, with some of it in bold.

    Args:
        content: The text.
        spans: [start, end) characters to mark, sorted.

    Returns:
        A `<pre>` element, in which Markdown is not read.
    """
    parts, position = [], 0
    for start, end in spans:
        parts += [_in_html(content[position:start]), "<b>", _in_html(content[start:end]), "</b>"]
        position = end
    # A line break after <pre> is not shown: the first of the text's own would be lost.
    return f"<pre>\n{''.join(parts)}{_in_html(content[position:])}</pre>"


def one_line(value: Any) -> str:
    """On one line: a card's metadata ends at the first line of three dashes, whatever is around it."""
    return " ".join(UNSEEN.sub("", str(value).replace("\r", "\n")).split())


def _in_html(value: str) -> str:
    return html.escape(UNSEEN.sub("", value))
