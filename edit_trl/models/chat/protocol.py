"""The protocol of a teacher: it answers chat prompts, one attempt at a time.

A teacher makes one attempt and returns or raises its outcome. Retries, pacing, cost and the journal are the
same for every teacher and live in `edit_trl.models.chat.dispatch`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from edit_trl.common.checks import at_least, not_negative, positive, share
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.terminal import visible_line
from edit_trl.models.decoding import Batching

Stage = Literal["annotate", "rectify", "corrupt", "check", "label", "critique", "student", "judge", "score", "continue"]
FinishReason = Literal["stop", "length", "refused"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled.

    Attributes:
        temperature: 0 is greedy decoding; None leaves it to the endpoint.
        top_p: The probability mass of nucleus sampling; None leaves it to the endpoint.
        max_tokens: The length in tokens at which an answer is cut off.
        stop: Texts that end an answer.
        max_thinking_tokens: The length in tokens of thoughts above which an answer counts as cut off.

    Raises:
        InputError: A value is out of range or not finite, which no request could hold.
    """

    temperature: float | None = 0.2
    top_p: float | None = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    max_thinking_tokens: int | None = None

    def __post_init__(self) -> None:
        problems = [*not_negative(temperature=self.temperature), *share(top_p=self.top_p)]
        problems += at_least(1, max_tokens=self.max_tokens)
        problems += positive(max_thinking_tokens=self.max_thinking_tokens)
        raise_problems(problems)


@dataclass(frozen=True)
class ChatRequest:
    """One prompt to a teacher.

    Attributes:
        stage: The step of the pipeline that the answer is for.
        row_id: The question it belongs to; used in reports and not sent.
        template: The version hash of the prompt template.
        messages: (role, content) in order. A last message of the assistant is the beginning of the answer,
            and the response continues it.
        sampling: How the answer is sampled.
        sample: The number of this answer among several to the same prompt, from 0.
        seed: Of sampling; sent to endpoints.
    """

    stage: Stage
    row_id: str
    template: str
    messages: tuple[tuple[str, str], ...]
    sampling: Sampling
    sample: int = 0
    seed: int | None = None

    def key(self, teacher: Teacher) -> str:
        """Return the key of the answer in the journal: a hash of everything that may change it.

        Raises:
            InputError: A text holds half of a surrogate pair, which neither a request nor a file can hold.
        """
        parts = asdict(self) | {"model": teacher.model, "address": teacher.address}
        row_id = parts.pop("row_id")
        if self.sampling.max_thinking_tokens is None or not teacher.ends_thoughts:
            del parts["sampling"]["max_thinking_tokens"]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        try:
            row_id.encode()
            return hashlib.sha256(text.encode()).hexdigest()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the {self.stage} request of {visible_line(row_id)} cannot be encoded: it holds "
                f"{error.object[error.start]!r}, half of a character; look at its question, the system prompt and the "
                "templates"
            ) from error


@dataclass(frozen=True)
class RawResponse:
    """An answer as it was received, before anything is read from it.

    Attributes:
        body: The whole text, such as the JSON of a chat completion.
        latency: Seconds from sending the request to receiving the answer.
    """

    body: str
    latency: float

    @cached_property
    def content(self) -> Any:
        """The body, read as JSON by `read_json`."""
        return read_json(self.body)


def read_json(text: str) -> Any:
    """Read JSON that others wrote; an integer that is too long to be one becomes infinite.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deep.
    """
    return _DECODER.decode(text.removeprefix("\ufeff"))


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 20 else math.inf


_DECODER = json.JSONDecoder(strict=False, parse_int=_number)


@dataclass(frozen=True)
class ChatResponse:
    """An answer that has been read.

    Attributes:
        text: What the teacher wrote; with thoughts, in the form of `edit_trl.common.thoughts.join_thoughts` or as it
            wrote them.
        finish_reason: `length` if the answer was cut off, `refused` if the teacher declined to answer.
        model: The name that the endpoint gives its model.
        prompt_tokens: The length of the prompt as reported; 0 if no possible number is.
        completion_tokens: The length of the answer as reported, thoughts included; 0 if no possible number is.
        thinking_tokens: The length of its thoughts as reported; None if no possible number is.
    """

    text: str
    finish_reason: FinishReason
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int | None = None


class Teacher(Protocol):
    """Answers chat prompts.

    Attributes:
        model: The name of the model.
        address: Whatever else an answer depends on, such as base URLs or weights; never an API key.
        ends_thoughts: Whether it ends an answer at `Sampling.max_thinking_tokens`, which is then another answer. An
            endpoint is not sent that limit: the answer is measured when it has come.
        requests_at_once: How many requests it wants to have from the beginning, to batch them; None where the number is
            found by asking, as at an endpoint.
        batching: How a model that is loaded batches requests; None for any other.
    """

    @property
    def model(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def ends_thoughts(self) -> bool: ...

    @property
    def requests_at_once(self) -> int | None: ...

    @property
    def batching(self) -> Batching | None: ...

    async def check(self) -> None:
        """Check that the teacher can be reached and has the model.

        Raises:
            InputError: It cannot be reached, or has only other models, which the message lists.
        """
        ...

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Send a request once.

        Raises:
            TryAgain: The attempt failed, and a later one may succeed.
            NoAnswer: This request can never be answered.
            TeacherUnusable: No request can be answered.
        """
        ...

    def read(self, raw: RawResponse) -> ChatResponse:
        """Read an answer, whether it is new or from the journal.

        Raises:
            MalformedResponse: It does not have the form of an answer.
        """
        ...

    async def close(self) -> None:
        """Release connections, threads and memory."""
        ...


class TryAgain(Exception):
    """An attempt failed, and a later one may succeed; the message is short, such as "status 429".

    Attributes:
        congestion: Whether too many requests were in flight.
        turned_away: Whether the endpoint rejected the request unread, so that it does not count as an attempt.
        retry_after: Seconds that the endpoint asks to wait; None if it does not say.
    """

    def __init__(
        self, reason: str, *, congestion: bool = False, turned_away: bool = False, retry_after: float | None = None
    ):
        super().__init__(reason)
        self.congestion = congestion
        self.turned_away = turned_away
        self.retry_after = retry_after


class NoAnswer(Exception):
    """This request can never be answered, such as one longer than the model's context."""


class TeacherUnusable(Exception):
    """No request can be answered, such as with a wrong key or an unknown model."""


class MalformedResponse(Exception):
    """A response does not have the form of an answer."""
