"""Words and steps of a text."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from unicodedata import category

# A character and what modifies it is one word: combining marks, joiners, variation selectors, skin
# tones, tags. `re` has no class for marks, so the ones of the living scripts are listed here.
_MODIFIER = "".join(chr(c) for c in range(0x300, 0x11000) if category(chr(c))[0] == "M") + (
    "\u200c\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e01ef"
)
# Scripts written without spaces, where each character is a word: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTERS = rf"(?:[A-Za-z]++|(?![{_UNSPACED}])[^\W\d_]|[{_MODIFIER}])++"
_WORD = rf"""
      [A-Za-z]++ (?=[\x00-&(-@\[-`{{-\x7f])                               # most words, at once: what follows
    | [0-9]++ (?=[\x00-+\-/:-\x7f] | \.[\x00-/:-\x7f])                  # in ASCII does not modify them, and
    | [!-/:-@\[-`{{-~] (?=[\x00-\x7f])                                   # these characters do not continue them
    | (?: \d{{1,3}}(?:,\d{{3}})+(?!\d) | \d+ ) (?:\.\d+)? [{_MODIFIER}]*  # 1,234.5
    | {_LETTERS} (?:['’]{_LETTERS})*                                      # doesn't
    | [\U0001f1e6-\U0001f1ff]{{2}}                                        # a flag
    | \S [{_MODIFIER}]* (?: (?<=\u200d) \S [{_MODIFIER}]* )*              # 中 + an emoji
"""
WORD = re.compile(_WORD, re.VERBOSE)
_SPACED_WORD = re.compile(rf"(?:{_WORD})\s*+", re.VERBOSE)  # these words fill a text, so their lengths place them
_LINE = re.compile(r"\S(?:[^\n]*\S)?")
# It begins with one set of characters, which `re` finds much faster than one of several alternatives.
_STEP_END = re.compile(
    r"""[\n.!?…。！？] (?: (?<=\n) | (?<=[。！？])[。！？]*[」』”’）]* | (?<=[.!?…])[.!?…]*[)\]}"'”’»*$]*(?=\s|\Z) )""",
    re.VERBOSE,
)
# Abbreviations, and the number of a list item: "2. Then". Not an initial: "the answer is A."
_LIST_NUMBER = re.compile(r"\s*(?:[Ss]tep\s+)?(?:\d{1,2}|[A-Za-z])\.$")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|[ap]\.m|vs|cf|Mr|Mrs|Ms|Dr|St)\.$")
_LONGEST_ABBREVIATION = 8  # with what stands around it; a search of the whole line would take long


@lru_cache(maxsize=4)  # a pair of chains is read several times, for its alignment and for its lengths
def words_of(text: str) -> tuple[Sequence[str], Sequence[int]]:
    """Return the words of a text and the character at which each one starts; the length of the text comes last."""
    spaced = _SPACED_WORD.findall(text)
    starts = accumulate(map(len, spaced), initial=len(text) - len(text.lstrip()))
    return tuple(map(str.rstrip, spaced)), tuple(starts)


def line_spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return the characters of each line of text[start:end], without the white space around it and empty lines."""
    return [line.span() for line in _LINE.finditer(text, start, end)]


def step_end(text: str, start: int) -> int:
    """Return the end of the sentence or line that holds `start`."""
    line = text.rfind("\n", 0, start) + 1
    for match in _STEP_END.finditer(text, start):
        end = match.end()
        abbreviation = _ABBREVIATION.search(text[max(line, end - _LONGEST_ABBREVIATION) : end])
        if not abbreviation and not _LIST_NUMBER.match(text[line:end]):
            return end
    return len(text)


def step_spans(text: str) -> list[tuple[int, int]]:
    """Return the [start, end) characters of each sentence or line of a text, without the white space around it."""
    spans, start = [], 0
    while (first := start + len(text[start:]) - len(text[start:].lstrip())) < len(text):
        start = step_end(text, first)
        spans.append((first, first + len(text[first:start].rstrip())))
    return spans


def step_start(text: str, position: int) -> int:
    """Return the start of the sentence or line that holds `position`, after its leading white space."""
    start = 0
    while (end := step_end(text, start)) <= position and end > start:
        start = end
    return start + len(text[start:]) - len(text[start:].lstrip())


def visible_start(span: tuple[int, int], text: str) -> int:
    """Return the position of a token's text, after the white space that tokenizers put in front of it."""
    piece = text[slice(*span)]
    return span[0] + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)
