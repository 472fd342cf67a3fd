"""The text of a chain of thought that is given as messages, and the places of that text in a rendered conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from edit_trl.common.thoughts import answer_part, join_thoughts, thoughts_of, thoughts_part

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Piece:
    """A part of a chain's text that a chat template writes: as it is, or else in parts with markers between them.

    Attributes:
        start: Its first character in the text of the chain.
        text: The part.
        parts: Its own parts, in order.
        spelling: For a text that a template may write in another way, such as with the escapes of JSON or without
            them: each of its characters as it is in the piece, and as it is in the other spelling.
    """

    start: int
    text: str
    parts: tuple[Piece, ...] = ()
    spelling: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """Characters of a rendered conversation that are characters of a chain: [start, end), and where in the chain."""

    start: int
    end: int
    of_chain: int


def messages_text(messages: Messages) -> str:
    """Return the text of a chain given as messages: what the assistant thinks, says and calls in all of its turns.

    The turns of others, such as the results of tools, are not part of it.
    """
    return "\n\n".join(filter(None, (turn_text(message) for message in messages if message["role"] == "assistant")))


def turn_text(message: Mapping[str, Any]) -> str:
    """Return what a turn thinks, says and calls; "" if it is empty."""
    thoughts, said, calls = thoughts_of(message), message.get("content") or "", message.get("tool_calls")
    said = join_thoughts(thoughts, said) if thoughts else said
    return "\n".join(filter(None, (said, *map(_call_text, calls)))) if calls else said


def pieces_of(messages: Messages) -> list[Piece]:
    """Return the pieces of `messages_text`, one for each turn of the assistant that has a text."""
    pieces, start = [], 0
    for message in messages:
        text = turn_text(message) if message["role"] == "assistant" else ""
        if text:
            pieces.append(Piece(start, text, tuple(_turn_pieces(message, start))))
            start += len(text) + 2
    return pieces


def arguments_texts(messages: Messages) -> list[str]:
    """Return the arguments of tool calls that are given as JSON text."""
    calls = [_function(call) for message in messages for call in message.get("tool_calls") or ()]
    return [call["arguments"] for call in calls if isinstance(call.get("arguments"), str)]


def find_places(pieces: Sequence[Piece], rendered: str, start: int, *, is_end: bool = True) -> list[Place] | None:
    """Find pieces in a rendered conversation, one after the other; None where one is missing.

    Args:
        pieces: The pieces of a chain.
        rendered: The conversation, as a chat template writes it.
        start: Where the search begins.
        is_end: Whether the conversation ends with these pieces: the last one is then searched from the end, since
            between two pieces a template writes more than after the last one.
    """
    places: list[Place] = []
    for number, piece in enumerate(pieces, 1):
        found = _find(piece, rendered, start, is_end and number == len(pieces))
        if found is None:
            return None
        places += found
        start = places[-1].end if places else start
    return places


def _find(piece: Piece, rendered: str, start: int, is_end: bool) -> list[Place] | None:
    stripped = piece.text.strip()  # templates may strip the text
    if not stripped:
        return []
    begin = (rendered.rfind if is_end else rendered.find)(stripped, start)
    if begin < 0:
        places = find_places(piece.parts, rendered, start, is_end=is_end) if piece.parts else None
        return _find_spelling(piece, rendered, start, is_end) if places is None else places
    indent = len(piece.text) - len(piece.text.lstrip())
    while indent and begin > start and rendered[begin - 1] == piece.text[indent - 1]:
        begin, indent = begin - 1, indent - 1
    end = begin + len(piece.text.rstrip()) - indent
    for character in piece.text[len(piece.text.rstrip()) :]:
        if rendered[end : end + 1] != character:
            break
        end += 1
    return [Place(begin, end, piece.start + indent)]


def _find_spelling(piece: Piece, rendered: str, start: int, is_end: bool) -> list[Place] | None:
    """Find a piece in its other spelling; only the characters that are the same in both have a place."""
    spelt = "".join(other for _, other in piece.spelling)
    place = (rendered.rfind if is_end else rendered.find)(spelt, start) if spelt else -1
    if place < 0:
        return None
    places, of_chain = [], piece.start
    for is_same, characters in groupby(piece.spelling, lambda pair: pair[0] == pair[1]):
        own, other = map("".join, zip(*characters, strict=True))
        if is_same:
            places.append(Place(place, place + len(other), of_chain))
        place, of_chain = place + len(other), of_chain + len(own)
    return places


def _turn_pieces(message: Mapping[str, Any], start: int) -> Iterator[Piece]:
    """Yield the parts of an assistant's turn: thoughts, answer and tool calls; none where it is one text."""
    text, calls = turn_text(message), message.get("tool_calls") or ()
    said = "\n".join(_call_text(call) for call in calls)
    said = text[: len(text) - len(said)] if calls else text
    spans = [span for span in (thoughts_part(said), answer_part(said)) if span]
    if len(spans) > 1 or calls:
        yield from (Piece(start + a, said[a:b]) for a, b in spans)
    place = start + len(said)
    for call in calls:
        yield Piece(place, _call_text(call), tuple(_call_pieces(call, place)))
        place += len(_call_text(call)) + 1


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool call in OpenAI's form holds its function under that name; others are the function themselves."""
    return call["function"] if isinstance(call.get("function"), Mapping) else call


def _call_text(call: Mapping[str, Any]) -> str:
    function = _function(call)
    return f'{{"name": {_json(function.get("name"))}, "arguments": {_arguments(function)}}}'


def _arguments(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else _json(arguments)


def _call_pieces(call: Mapping[str, Any], start: int) -> Iterator[Piece]:
    """Yield the name and the arguments of a tool call, and of the arguments the values, as templates write them."""
    function, text = _function(call), _call_text(call)
    yield Piece(start + len('{"name": "'), str(function.get("name") or ""))
    arguments, place = function.get("arguments"), text.rindex(_arguments(function))
    after, parts = place, []
    for key, value in arguments.items() if isinstance(arguments, Mapping) else ():
        after = text.index(f"{_json(key)}: ", after) + len(_json(key)) + 2
        parts.append(_value_piece(value, start + after))
        after += len(_json(value))
    # Some templates write arguments that are JSON text as a string of JSON.
    raw = arguments if isinstance(arguments, str) else ""
    spelling = tuple((character, _json(character)[1:-1]) for character in raw)
    if arguments:
        yield Piece(start + place, _arguments(function), tuple(parts), spelling)


def _value_piece(value: Any, start: int) -> Piece:
    """Return the piece of an argument, which templates write as in JSON, as it is, or as in Python."""
    if isinstance(value, str):
        spelling = tuple((_json(character)[1:-1], character) for character in value)
        return Piece(start + 1, _json(value)[1:-1], spelling=spelling)
    is_word = value is None or isinstance(value, bool)  # of the same length in JSON and in Python
    spelling = tuple(zip(_json(value), repr(value), strict=True)) if is_word else ()
    return Piece(start, _json(value), spelling=spelling)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
