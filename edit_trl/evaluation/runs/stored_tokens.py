"""The tokens of a suite's items: nine tenths of its file, of which few readers use anything.

So they are checked as text, by one regular expression, and parsed only where they are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.json_text import read_json

# JSON numbers below 1e15, in the form in which Python writes them; a line with any other is parsed as a whole.
_INTEGER = rb"(?!0[0-9])[0-9]{1,15}+"
_NUMBER = rb"-?" + _INTEGER + rb"(?:\.[0-9]++)?+(?:e-[0-9]++)?+"
_TOKEN = rb"\[" + rb", ".join([_INTEGER, _INTEGER, _NUMBER]) + rb"\]"
_CHAIN = rb"(\[(?:" + _TOKEN + rb"(?:, " + _TOKEN + rb")*+)?\])"
_BEGIN = b', "tokens": {"chosen": '
_TOKENS = re.compile(_BEGIN + _CHAIN + rb', "rejected": ' + _CHAIN + rb"\}\}")


class StoredTokens(Mapping[str, list[Any]]):
    """The tokens of an item as they are stored; see `TokenLogps`. A chain is parsed each time that it is looked up."""

    def __init__(self, chosen: bytes, rejected: bytes):
        self._chains = {"chosen": chosen, "rejected": rejected}

    def __getitem__(self, side: str) -> list[Any]:
        return json.loads(self._chains[side])

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)


def split_tokens(line: bytes) -> tuple[dict[str, Any] | None, StoredTokens | None]:
    """Read the line of an item, but its tokens only as text, if the line ends with them as `RunFolder` writes them.

    Returns:
        The item, with empty tokens, and its tokens; both None for any other line, and for one with an error.
    """
    begin = line.rfind(_BEGIN)
    match = _TOKENS.fullmatch(line, begin) if begin >= 0 else None
    if match is None:
        return None, None
    try:
        item = read_json(line[:begin] + b"}", "")
    except InputError:  # whoever parses the whole line says what it is
        return None, None
    if not item or "tokens" in item:  # the comma after an empty object is an error, and so are tokens twice
        return None, None
    item["tokens"] = {"chosen": [], "rejected": []}
    return item, StoredTokens(*match.groups())
