"""Thoughts and answers: how a response of a reasoning model splits into what it thought and what it answered.

Models mark their thoughts by tags (`<think>`, `[THINK]`, `<reasoning>`), by channels (gpt-oss, Gemma 4) or put them in
a field of their own beside the content. In this package a response with thoughts is one text:

    <think>
    2 + 2 = 4.
    </think>

    The answer is 4.

Thoughts that never end have no closing tag, and there is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Thoughts = Literal["keep", "drop", "only"]

FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The names under which a message holds its thoughts: at most endpoints, in newer vLLM, and in gpt-oss's template."""

_TAGS = r"think|thinking|thoughts?|thought_process|reasoning|reflection|scratchpad|seed:think"
# A tag in quotation marks or as code, such as `<think>`, is only spoken of.
_NOT_QUOTED = r"(?=[<\[])(?!(?:(?<=\A[`\"'])|(?<=[\s(:,][`\"']))[<\[][^<>\[\]]*[>\]][`\"'])"
_BEGIN = re.compile(
    rf"{_NOT_QUOTED}(?:<(?:{_TAGS})(?:\s[^<>\n]*)?>|\[THINK\])|◁think▷|<\|START_THINKING\|>|<\|channel>thought(?:\n|\Z)"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)(?:[^<\n]*<\|message\|>)?"
    # The same channels after a tokenizer left out its special tokens.
    r"|\Aanalysis(?-i:(?=[A-Z]))",
    re.IGNORECASE,
)
_END = re.compile(
    rf"{_NOT_QUOTED}(?:</(?:{_TAGS})>|\[/THINK\])|◁/think▷|<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?|<channel\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final(?:[^<\n]*(?:<\|constrain\|>[^<\n]*)?<\|message\|>)"
    r"|(?<=.)assistantfinal(?=[\W\d]|(?-i:[A-Z]))",
    re.IGNORECASE | re.DOTALL,
)
_AT_THE_END = re.compile(rf"(?:{_BEGIN.pattern})\s*\Z", re.IGNORECASE)
_EMPTY_AT_THE_END = re.compile(rf"(?:{_BEGIN.pattern})\s*(?:{_END.pattern})\s*\Z", re.IGNORECASE | re.DOTALL)
_CHANNEL_END = re.compile(r"<\|(?:end|return|END_RESPONSE)\|>\s*\Z")


# Each marker has one of these words, which are found faster than the markers are.
_WORDS = ("think", "thought", "reason", "reflection", "scratchpad", "channel", "analysis", "assistantfinal")


def _may_have_markers(text: str) -> bool:
    lower = text.lower()
    return any(word in lower for word in _WORDS)


class Parts(NamedTuple):
    """A response: its thoughts, "" where there are none, and its answer, None where the thoughts never end."""

    thoughts: str
    answer: str | None


def answer_part(response: str) -> tuple[int, int] | None:
    """Return the [start, end) of what follows the thoughts of a response; None if the thoughts never end."""
    start = 0
    if not _may_have_markers(response):
        return start, len(response)
    for closing in _END.finditer(response):
        start = closing.end()
    return None if _BEGIN.search(response, start) else (start, len(response))


def thoughts_part(response: str) -> tuple[int, int] | None:
    """Return the [start, end) of the thoughts of a response, without their markers; None if there are none."""
    if not _may_have_markers(response):
        return None
    opening, closings = _BEGIN.search(response), list(_END.finditer(response))
    if opening is None and not closings:
        return None
    is_open = not closings or _BEGIN.search(response, closings[-1].end())
    end = len(response) if is_open else closings[-1].start()
    # A prompt may have opened the thoughts, so that the response has the closing marker alone.
    start = opening.end() if opening and opening.end() <= end else 0
    return start, end


def split_thoughts(response: str) -> Parts:
    """Split a response into its thoughts and its answer, without markers and outer white space.

    Where a response thinks several times, everything from its first thoughts to its last ones is its thoughts.
    """
    thoughts, answer = thoughts_part(response), answer_part(response)
    return Parts(
        _without_markers(_without_markers(response[slice(*thoughts)], _BEGIN), _END).strip() if thoughts else "",
        _CHANNEL_END.sub("", response[slice(*answer)]).strip() if answer else None,
    )


def _without_markers(text: str, marker: re.Pattern[str]) -> str:
    """Return a text without markers; a line ends where one stood between two words."""

    def instead(match: re.Match[str]) -> str:
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        return "\n" if before.strip() and after.strip() else ""

    return marker.sub(instead, text)


def join_thoughts(thoughts: str, answer: str | None) -> str:
    """Return thoughts and answer as one text, in this package's form; an answer of None means that they never end."""
    if not thoughts:
        return answer or ""
    opened = f"<think>\n{thoughts.strip()}"
    return opened if answer is None else f"{opened}\n</think>\n\n{answer.lstrip()}".rstrip()


def in_our_form(text: str) -> str:
    """Return a response, with its thoughts, if there are any, in this package's form."""
    return text.strip() if thoughts_part(text) is None else join_thoughts(*split_thoughts(text))


def second_thoughts(response: str) -> str | None:
    """Return what follows the first thoughts of a response, if it has thoughts again; None if it has not.

    A model that thinks about how to write a response with thoughts has its own first.
    """
    closing = _END.search(response)
    rest = response[closing.end() :] if closing else ""
    return rest if _BEGIN.search(rest) else None


def without_opening(text: str) -> str:
    """Return a text without the marker that opens thoughts at its beginning, for one that continues thoughts."""
    opening = _BEGIN.match(text.lstrip())
    return text.lstrip()[opening.end() :].lstrip() if opening else text


def opens_thoughts(prompt: str) -> bool:
    """Return whether a prompt ends where a model thinks already, as the generation prompts of some templates do."""
    return bool(_AT_THE_END.search(prompt, max(0, len(prompt) - 80)))


def ends_with_no_thoughts(prompt: str) -> bool:
    """Return whether a text ends with thoughts that are empty, so that what follows is an answer."""
    return bool(_EMPTY_AT_THE_END.search(prompt, max(0, len(prompt) - 80)))


def thoughts_of(message: Mapping[str, Any]) -> str:
    """Return the thoughts in a message's own field; "" if it has none."""
    for name in FIELDS:
        if isinstance(value := message.get(name), str) and value.strip():
            return value
    return ""
