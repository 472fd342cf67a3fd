"""What an endpoint sends back: answers, and the messages of those that are none.

Everything here was written by others. Text is put on one line without control characters before it is shown, and
numbers are used only where they are possible.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from edit_trl.common.terminal import visible_line
from edit_trl.common.thoughts import FIELDS, join_thoughts, split_thoughts, thoughts_of
from edit_trl.models.chat.protocol import ChatResponse, FinishReason, MalformedResponse, RawResponse, read_json

_MOST_WORDS = 300
_MOST_NAME = 200
# The names under which endpoints and gateways say why an answer ended early; all others mean that it is whole.
_CUT_OFF = {"length", "max_tokens", "max_output_tokens", "model_length"}
_REFUSED = {"content_filter", "content-filter", "safety", "refusal", "recitation", "prohibited_content"}


def first_choice(raw: RawResponse) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the body of a response, and the first of its `choices`.

    Raises:
        MalformedResponse: The body is not JSON, holds an error, or has no choice.
    """
    try:
        body = raw.content
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(f"not JSON: {short(raw.body) or 'empty'}") from error
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise MalformedResponse(f"no choices: {message_of(body)}")
    for part in (body, choice):
        if part.get("error"):
            raise MalformedResponse(f"an error: {message_of(part)}")
    if choice.get("finish_reason") in ("error", "abort"):
        raise MalformedResponse(f"the answer was broken off ({choice['finish_reason']})")
    return body, choice


def read_completion(raw: RawResponse) -> ChatResponse:
    """Read a chat completion: what the model thinks and says as one text, in the form of `join_thoughts`.

    Thoughts are read from their own field, from parts of the content, or are left in the content between their tags.
    Without any content, they never end, and there is no answer.

    Raises:
        MalformedResponse: See `first_choice`.
    """
    body, choice = first_choice(raw)
    message = choice["message"] if isinstance(choice.get("message"), dict) else {}
    content, refusal = message.get("content"), _text_of(message.get("refusal"))
    reason = str(choice.get("finish_reason")).lower()
    text, thoughts = _text_of(content), _thoughts_in(message)
    # Some servers give the thoughts twice: in their field, and with tags in the content.
    if thoughts and split_thoughts(text).thoughts != thoughts:
        text = join_thoughts(thoughts, text if text.strip() else None)
    if refusal or reason in _REFUSED:
        return response_of(body, refusal or text, "refused")
    return response_of(body, text, "length" if reason in _CUT_OFF else "stop")


def response_of(body: Mapping[str, Any], text: str, reason: FinishReason) -> ChatResponse:
    """Make a response with the model and the token counts that the endpoint reports."""
    usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
    prompt, completion = (_possible_count(usage.get(name)) or 0 for name in ("prompt_tokens", "completion_tokens"))
    details = usage.get("completion_tokens_details")
    details = details if isinstance(details, dict) else usage
    thinking = _possible_count(details.get("reasoning_tokens"))
    model = visible_line(body.get("model") or "")[:_MOST_NAME]
    # JSON can hold half of a surrogate pair, which cannot be saved as UTF-8.
    return ChatResponse(text.encode("utf-8", "replace").decode(), reason, model, prompt, completion, thinking)


def listed_models(text: str) -> list[str] | None:
    """Return the names of models in an endpoint's list, and the aliases there; None if the text is no such list."""
    try:
        body = read_json(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict | list):
        return None
    entries = body.get("data") if isinstance(body, dict) else body
    names: list[Any] = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            aliases = entry.get("aliases")
            names += [entry.get("id"), *(aliases if isinstance(aliases, list) else ())]
    return [name for name in names if isinstance(name, str)]


def is_listed(model: str, names: Set[str]) -> bool:
    """Return whether a model is among the names, also with the tag `:latest` or the prefix `models/`."""
    return not names.isdisjoint({model, f"{model}:latest", model.removesuffix(":latest"), f"models/{model}"})


def message_of(body: Any) -> str:
    """Return the words in which an endpoint says what is wrong, wherever they stand; "" if it says nothing."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            return message_of(body[name])
    if body in (None, "", [], {}):
        return ""
    return short(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str))


def short(text: str) -> str:
    """Return the beginning of a text, as it may be shown."""
    return " ".join(visible_line(text[: 2 * _MOST_WORDS]).split())[:_MOST_WORDS]


def _thoughts_in(message: Mapping[str, Any]) -> str:
    """Return the thoughts in a message: of its own field, or of the parts of its content, without their markers."""
    fields = [message.get(name) for name in (*FIELDS, "reasoning_details")]
    lists = [[parts] if isinstance(parts, dict) else parts for parts in fields if isinstance(parts, dict | list)]
    content = message.get("content")
    if isinstance(content, list):
        lists.append([part for part in content if isinstance(part, dict) and _is_thought(part)])
    thoughts = thoughts_of(message) or next(filter(str.strip, map(_thoughts_of_parts, lists)), "")
    return split_thoughts(thoughts).thoughts or thoughts.strip()


def _thoughts_of_parts(parts: Sequence[Any]) -> str:
    """Return the thoughts in parts, each of which holds them as text or in parts of its own."""
    names = ("thinking", "reasoning", "text", "summary")
    texts = (
        [_text_of(part.get(name)) for name in names] if isinstance(part, dict) else [_text_of(part)] for part in parts
    )
    return "".join(next(filter(None, found), "") for found in texts)


def _is_thought(part: Mapping[str, Any]) -> bool:
    return str(part.get("type")).startswith(("thinking", "reasoning"))


def _text_of(content: Any) -> str:
    """Return a text, or the texts of a list of parts that are no thoughts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and not _is_thought(part) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _possible_count(value: Any) -> int | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 2**53 else None
