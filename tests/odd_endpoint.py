"""A chat endpoint with every habit that servers and gateways have; which one, the number in the question decides.

The question is "What is N + 1?". Passing faults come once for each question. Others are there for good.
"""

import json
import re
from collections import Counter

from chat_server import ChatServer, completion


def _with(text: str, **values) -> str:
    """A completion with other fields than the usual ones."""
    return json.dumps(json.loads(completion(text)) | values)


def _message(finish_reason: str = "stop", **message) -> str:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return _with("", choices=[choice])


def _error(message: str, **values) -> str:
    return json.dumps({"error": {"message": message, **values}})


def _http(body: str, headers: str = "") -> bytes:
    data = body.encode()
    return f"HTTP/1.1 200 OK\r\nconnection: close\r\n{headers}content-length: {len(data)}\r\n\r\n".encode() + data


BROKEN_OFF = {"message": {"content": "half"}, "finish_reason": "error", "error": {"message": "gone"}}

PASSING = [
    _error("Rate limit exceeded: free-models-per-min", code=429),
    _error("upstream", code="bad_gateway"),
    json.dumps([{"error": {"code": 500, "message": "internal"}}]),
    json.dumps({"object": "error", "message": "worker died", "code": 50001}),
    json.dumps({"choices": []}),
    json.dumps({"choices": [BROKEN_OFF]}),
    "<html><body>502 Bad Gateway</body></html>",
    completion("half")[:40],
    "429 0.1",
    "500",
    "503",
    "reset",
    "half a body",
    b'{"error": "no"}\r\n\r\n',
    b"HTTP/1.1 abc OK\r\n\r\n",
    _http(completion("x"), "content-encoding: gzip\r\n"),
    _http("data: {}\n\n", "content-type: text/event-stream\r\n"),
]
"""Faults of the first attempt at a question."""

TOO_LONG = (
    "'max_tokens' or 'max_completion_tokens' is too large: 1024. This model's maximum context length is 2048 tokens "
    "and your request has 1900 input tokens"
)
FOR_GOOD = {
    f"400 {_error(TOO_LONG, param='max_tokens', code=400)}": (
        f"longer than the model's context (status 400: {TOO_LONG})"
    ),
    f"400 {_error('filtered', code='content_filter')}": "status 400: filtered",
    f"403 {_error('your input was flagged', code=403)}": "status 403: your input was flagged",
    '422 {"error": {"message": "\\ud800 no\\u001b[31m"}}': "status 422: \N{REPLACEMENT CHARACTER} no\u241b[31m",
    _error("maximum context length is 10", code="context_length_exceeded"): (
        "longer than the model's context (status 400: maximum context length is 10)"
    ),
    # Six attempts would take half a minute: two are asked for.
    _error("no worker takes it", code=500): "status 500: no worker takes it (2 attempts)",
}
"""Questions that are never answered, and what is said of them."""

WHOLE = [
    completion,
    lambda text: _message(content=[{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]),
    lambda text: _with(text, usage=None),
    lambda text: _with(text, usage={"prompt_tokens": -5, "completion_tokens": 1e300}),
    lambda text: _with(text, usage={"prompt_tokens": 10.0, "completion_tokens": "many"}),
    lambda text: completion(text).replace('"prompt_tokens": 10', f'"prompt_tokens": {"9" * 5000}'),
    lambda text: _with(text, model="\ud800 {{x}} | \x1b[31m"),
    lambda text: "\ufeff" + completion(text),
    lambda text: _http(completion(text), "content-type: application/json; charset=base64\r\n"),
    lambda text: _message(content=text, reasoning_content="Hm. The answer is 7."),
]
"""Forms of a whole answer."""

WITHOUT_ANSWER = {
    "unparsed": [
        _message(content=None),
        _message(content=None, reasoning_content="The answer is 7."),
        _message(content=[{"type": "thinking", "thinking": "The answer is 7."}]),
        _with("", choices=[{"message": "text"}]),
    ],
    "refused": [_message(content=None, refusal="I will not."), _message("content_filter", content="The answer is 1.")],
    "cut off": [_message("length", content="The answer is 1"), _message("MAX_TOKENS", content="The answer is 1")],
}
"""Answers that are paid for and of no use, by outcome."""


def number_in(body: dict) -> int:
    return int(re.findall(r"What is (\d+)", body["messages"][-1]["content"])[-1])


def kind_of(number: int) -> tuple[str, int]:
    """Every tenth question is never answered, every tenth has no answer, the others are "whole"."""
    return {3: "never", 7: "none"}.get(number % 10, "whole"), number // 10


class OddEndpoint(ChatServer):
    """The endpoint. `answered` counts the answers that it was paid for, by question."""

    def __init__(self, write):
        super().__init__(lambda body: "", self._habit)
        self._write, self._tried = write, Counter()
        self.answered: Counter[str] = Counter()

    def _habit(self, _: int, body: dict):
        number, prompt = number_in(body), body["messages"][-1]["content"]
        kind, place = kind_of(number)
        self._tried[prompt] += 1
        if kind == "never":
            return list(FOR_GOOD)[place % len(FOR_GOOD)]
        is_first_stage = "Hint:" not in prompt and "Wrong reasoning:" not in prompt
        if is_first_stage and self._tried[prompt] == 1 and number % 2:
            return PASSING[number // 2 % len(PASSING)]
        self.answered[prompt] += 1
        if kind == "none":
            bodies = [body for bodies in WITHOUT_ANSWER.values() for body in bodies]
            return bodies[place % len(bodies)]
        return WHOLE[place % len(WHOLE)](self._write(body))
