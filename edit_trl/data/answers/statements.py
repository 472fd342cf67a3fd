"""Finds where a response states its answer: after "the answer is", in a box, after GSM8K's #### or below a heading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# A line break may separate a colon from its answer; after a bare "is" it ends the statement.
_MARKERS = re.compile(
    r"""(?:
        (?P<heading>^[ \t]*(?:\#{1,6}[ \t]*|[*_]{2})(?:\d+[.)][ \t]*)?(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?
            answers?[ \t]*:?[*_]*:?[ \t]*\n[\s*_]*)
      | (?P<sentence>\b(?:final\s+|correct\s+|right\s+)?answers?\b(?:\s+to\s+[^.:=?!\n]{1,80}?)?[\s*_]*
            (?: (?:(?:is|are|would\s+be)\b[ \t]*)?[:=][\s*_]*(?:(?:\\\[|\$\$)\s*)?
              | (?:is|are|would\s+be)\b[ \t]*(?:\s*(?:\\\[|\$\$)\s*)?))
      | (?P<box>\\(?:boxed|fbox)\s*(?=\{))
      | (?P<hashes>(?<!\#)\#{4}(?!\#)[ \t]*)
      | (?P<tag><answer>\s*)
    )""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
# "check our answer: 42 / 6 = 7" and "suppose the answer is 5" give none.
_NOT_GIVEN = re.compile(
    r"\b(?:(?:double-)?check\w*|verif\w+|confirm\w*|hope|wrong|incorrect|false|previous|earlier|another|other|common|if|whether|"
    r"suppose|assum\w+)"
    r"[ *_]+(?:(?:the|our|my|your|this|that|an?|whether|if)[ *_]+)*$",
    re.IGNORECASE,
)

_SENTENCE_END = re.compile(r"\n|(?:[.?]+|!+)(?=[*_\"”’)\]$]*(?:\s|$))")
_WORD_BEFORE = re.compile(r"[^\W\d_]+\Z")
_ABBREVIATION = re.compile(
    "st|ste|mt|ft|dr|mr|mrs|ms|prof|gen|col|sgt|capt|lt|rev|hon|"
    "gov|sen|rep|jr|sr|inc|ltd|co|corp|bros|ave|blvd|rs|approx|vs|eg|ie|cf|fig|eq|vol|pp|ca|etc|dept|univ"
)
# These are abbreviations only before a number, as "no" may end a sentence.
_ABBREVIATIONS_OF_NUMBERS = frozenset({"no", "nos", "art", "sec", "ch", "p"})
_NEXT_SENTENCE = re.compile(
    r"\s+(?:It|The|This|That|These|So|Therefore|Thus|Hence|We|He|She|They|Because|Since|Note|In|And|But|However|I|You|If|As|"
    r"For|To|There|Let|Here|Now|Then|My|Our|His|Her|Q|Question|Answer|A|An)\b|\s*\Z"
)

# A base model goes on with a question of its own after the answer.
_LABELLED_QUESTION = re.compile(
    r"\n[ \t>#*_]*(?:Question|Q|Problem|Exercise|Instruction|Input|Human|User|Hint|Right reasoning|Wrong reasoning)"
    r"[ \t]*#?\d*[*_]*[ \t]*:|<\|(?:im_start|im_end|user|start_header_id|eot_id|endoftext)\|>|\[INST\]|<start_of_turn>"
    r"|\n[ \t]*### ?(?:Instruction|Question|Problem|Human|User)\b"
)
# A line after a blank one that asks something, unless the model asks itself.
_BARE_QUESTION = re.compile(
    r"\n[ \t]*\n\s*(?!(?:wait|hmm+|but|however|actually|hold|oh|no|let|is (?:that|this|it)|does (?:that|this|it)|did|"
    r"am i|are (?:you|we|there any)|can (?:we|i|you)|could|should|would|do (?:you|we|i)|why|right|correct|sure|ok|okay|"
    r"so|now|i|have (?:we|i|you)|what (?:if|about|else)|how (?:about|do|can|did|could)|need|want|any|shall)\b)"
    r"[^\n]{8,}\?[ \t]*(?:\n|\Z)",
    re.IGNORECASE,
)
_BULLETS = re.compile(r"(?:[ \t]*(?:[-*•+]|\d+[.)])[ \t]+[^\n]+(?:\n\s*|\Z))+")
_SHORT_LINES = re.compile(r"(?:[ \t]*[\w&'’-]+[,;]?[ \t]*(?:\n|\Z))+")


class Statement(NamedTuple):
    """A place that may give the answer: its kind (the group of its marker), its first and its last character + 1."""

    kind: str | None
    start: int
    end: int


def statements_of(text: str, start: int, end: int, is_list: bool = False) -> list[Statement]:
    """Return the statements of a text between two characters, in order; those of a list may have several lines."""
    markers = list(_MARKERS.finditer(text, start, end))
    limits = [marker.start() for marker in markers[1:]] + [end]
    return [
        Statement(marker.lastgroup, *_extent(text, marker, limit, is_list))
        for marker, limit in zip(markers, limits, strict=False)
        if not (
            marker.lastgroup == "sentence" and _NOT_GIVEN.search(text, max(start, marker.start() - 60), marker.start())
        )
    ]


def cuts(text: str, start: int, end: int) -> Iterator[int]:
    """Yield where a new question with a label begins."""
    return (match.start() for match in _LABELLED_QUESTION.finditer(text, start, end))


def run_on(text: str, statements: Sequence[Statement], end: int) -> int:
    """Return where a new question begins after an answer, or the end of the text.

    Args:
        text: The response.
        statements: The statements that give an answer, in order; there is at least one.
        end: The end of the text.
    """
    first = next(cuts(text, statements[0].end, end), end)
    for match in _BARE_QUESTION.finditer(text, statements[0].end, first):
        # It follows the answer directly: the same within a chain of thought is a step of it.
        last = [statement for statement in statements if statement.end <= match.start()][-1]
        if "\n" not in text[last.end : match.start()].strip("*_`$ \n"):
            return match.start()
    return first


def sentence_end(text: str, start: int, limit: int) -> int:
    """Return the end of the sentence that begins at a character, its full stop excluded."""
    for match in _SENTENCE_END.finditer(text, start, limit):
        if match[0] == "\n" or not _is_inside(text, start, match, limit):
            return match.start()
    return limit


def _extent(text: str, marker: re.Match[str], limit: int, is_list: bool) -> tuple[int, int]:
    """Return the [start, end) of what a marker refers to."""
    start = marker.end()
    match marker.lastgroup:
        case "box":
            depth = 0
            for position in range(start, limit):
                depth += {"{": 1, "}": -1}.get(text[position], 0)
                if not depth:
                    return start + 1, position
        case "hashes":
            return start, _line_end(text, start, limit)
        case "tag":
            closing = text.find("</", start, limit)
            return start, limit if closing < 0 else closing
    if is_list:
        return _list_extent(text, start, limit)
    return start, sentence_end(text, start, limit)


def _list_extent(text: str, start: int, limit: int) -> tuple[int, int]:
    line = text.rfind("\n", 0, start) + 1
    if not text[line:start].strip(" \t*_"):  # The list begins on a line of its own.
        for pattern, begin in ((_BULLETS, line), (_SHORT_LINES, start)):
            if lines := pattern.match(text, begin, limit):
                return begin, lines.end()
    end = sentence_end(text, start, limit)
    while end < limit and text[start:end].rstrip().endswith((",", ";")):
        end = sentence_end(text, end + 1, limit)
    return start, end


def _line_end(text: str, start: int, limit: int) -> int:
    end = text.find("\n", start, limit)
    return limit if end < 0 else end


def _is_inside(text: str, start: int, match: re.Match[str], limit: int) -> bool:
    """Whether a mark is a part of its sentence: that of an abbreviation, an initial or a factorial."""
    if match[0] == "!":
        return bool(re.match(r"\s*[=+*/×<>]|\s+[a-z]", text[match.end() : limit])) and text[match.start() - 1].isdigit()
    # Only what stands near decides, so that a long text takes no longer than its length.
    word = _WORD_BEFORE.search(text, max(start, match.start() - 30), match.start())
    if match[0] != "." or not word:
        return False
    rest = text[match.end() : min(limit, match.end() + 20)]
    name = word[0].lower()
    if name in _ABBREVIATIONS_OF_NUMBERS and re.match(r"\s*\d", rest):
        return True
    if _NEXT_SENTENCE.match(rest):
        return False
    if _ABBREVIATION.fullmatch(name):
        return True
    before = text[max(start, word.start() - 60) : word.start()]
    if len(name) == 1 and before.endswith("."):  # D.C., i.e.
        return True
    if len(name) > 1 or not word[0].isupper():
        return False
    # An initial stands before a name, and after another name or nothing.
    return bool(re.match(r"\s+[^\W\d_a-z]", rest) and re.search(r"(?:^|[A-Z][\w’'-]*\.?)\W*\Z", before))
