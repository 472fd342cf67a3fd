"""Text of others in Markdown and HTML (L0): shown as it is, never read as markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

# What begins or ends anything in CommonMark, GFM tables, HTML or the Hub's mathematics.
_MARKUP = re.compile(r"[&<>`*_\[\]|~#\\$]")

# Control characters, and those that turn the direction of the text around them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def text(value: Any) -> str:
    """Inline text: one line, no markup."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", one_line(value))


def code(value: Any) -> str:
    """An inline code span, also within a table."""
    shown = one_line(value).replace("`", "'").replace("|", "¦")
    return f"`{shown or ' '}`"


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


def without_controls(value: str) -> str:
    """Without characters that a terminal or a page would act on; line breaks and tabs stay."""
    return _UNSEEN.sub("", value)


def _in_html(value: str) -> str:
    return html.escape(without_controls(value))


def one_line(value: Any) -> str:
    """On one line: a card's metadata ends at the first line of three dashes, whatever is around it."""
    return " ".join(without_controls(str(value).replace("\r", "\n")).split())


# Text of a dataset must not steer the terminal: control characters become pictures of themselves, one for
# one, so that spans still hold.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text without control characters, each replaced by one that can be seen."""
    return text.translate(_PICTURES)


_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&])")


def clean(text: str) -> str:
    """A text on one line, without what would move the cursor or is no XML."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def escaped(text: str) -> str:
    """A text that Markdown shows as it is; nobody is called by an @."""
    return _MARKDOWN.sub(r"\\\1", clean(text)).replace("@", "@\N{ZERO WIDTH SPACE}")
