"""What a teacher is: something that answers chat prompts, one attempt at a time (L3).

A teacher makes one attempt and says what came of it. Retries, pacing, cost and the journal are
`edit_trl.models.chat.dispatch`'s, and the same for every teacher.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

Stage = Literal["annotate", "rectify", "corrupt", "check", "label", "student", "judge", "score", "continue"]
FinishReason = Literal["stop", "length", "refused"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus sampling.
        max_tokens: Where an answer is cut off.
        stop: Texts at which an answer ends.
    """

    temperature: float = 0.2
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """One prompt to a teacher.

    Attributes:
        stage: What the answer is for.
        row_id: The question it belongs to; for reports, not part of what is sent.
        template: The version hash of the prompt template.
        messages: (role, content) in order; a last one of the assistant is the beginning of the answer, and
            the response is what follows it.
        sampling: How the answer is drawn.
        sample: Which of several answers to the same prompt this is, from 0.
        seed: Sent where the endpoint takes one.
    """

    stage: Stage
    row_id: str
    template: str
    messages: tuple[tuple[str, str], ...]
    sampling: Sampling
    sample: int = 0
    seed: int | None = None

    def key(self, teacher: Teacher) -> str:
        """What the journal knows the answer by: everything that may change it, and nothing else."""
        parts = asdict(self) | {"model": teacher.model, "address": teacher.address}
        del parts["row_id"]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class RawResponse:
    """An answer as it came, before anything was read from it.

    Attributes:
        body: The whole text, such as the JSON of a chat completion.
        latency: Seconds.
    """

    body: str
    latency: float


@dataclass(frozen=True)
class ChatResponse:
    """An answer, read.

    Attributes:
        text: What the teacher wrote.
        finish_reason: `length` where it was cut off, `refused` where it would not answer.
        model: The model that the endpoint says it is.
        prompt_tokens: As reported; 0 where it is not.
        completion_tokens: Likewise.
    """

    text: str
    finish_reason: FinishReason
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Teacher(Protocol):
    """Answers chat prompts.

    Attributes:
        model: The model asked for.
        address: What else an answer depends on, such as base URLs; never a key.
    """

    model: str
    address: str

    async def check(self) -> None:
        """See that the teacher can be reached and has the model.

        Raises:
            InputError: It cannot, or has not; says what it has.
        """
        ...

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Ask once.

        Raises:
            TryAgain: Later it may work.
            NoAnswer: For this request it never will.
            TeacherUnusable: For no request it will.
        """
        ...

    def read(self, raw: RawResponse) -> ChatResponse:
        """Read an answer, fresh or from the journal.

        Raises:
            MalformedResponse: It is not what the teacher should send.
        """
        ...

    async def close(self) -> None:
        """Let go of connections, threads and memory."""
        ...


class TryAgain(Exception):
    """An attempt failed in a way that may pass.

    Attributes:
        reason: Such as "429 Too Many Requests".
        congestion: Whether there were too many requests at once.
        turned_away: Whether the endpoint did not take the request up at all, so that it was no attempt.
        retry_after: Seconds to wait, where the endpoint says so.
    """

    def __init__(
        self,
        reason: str,
        *,
        congestion: bool = False,
        turned_away: bool = False,
        retry_after: float | None = None,
    ):
        super().__init__(reason)
        self.reason = reason
        self.congestion = congestion
        self.turned_away = turned_away
        self.retry_after = retry_after


class NoAnswer(Exception):
    """This request cannot be answered, such as one over the model's context."""


class TeacherUnusable(Exception):
    """No request can be answered: a wrong key, an unknown model."""


class MalformedResponse(Exception):
    """A response that is not what the teacher should send."""
