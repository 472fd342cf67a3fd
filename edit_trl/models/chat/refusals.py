"""What it means that an endpoint does not answer: try again, this question has no answer, or none has."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edit_trl.models.chat.protocol import MalformedResponse, NoAnswer, TeacherUnusable, TryAgain, read_json
from edit_trl.models.chat.replies import message_of

_TRY_AGAIN = {408, 409, 425, 429}
_UNUSABLE = {401, 402, 403, 404}
_OVERLOADED = {429, 503, 529}
_CONTEXT = re.compile(
    r"context.?(length|window|size)|maximum context|too many tokens|(prompt|input) is too long|maximum (input|prompt)",
    re.IGNORECASE,
)
_SPENT = re.compile(
    r"insufficient[ _](quota|balance|credit|funds)|exceeded_current_quota|credit balance|out of credits|more credits|"
    r"available credits|payment required",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"flagged|moderation|content[ _](filter|policy|management)|safety system", re.IGNORECASE)


@dataclass(frozen=True)
class Refusals:
    """Reads the refusals of an endpoint.

    Attributes:
        model: The model that it is asked for.
        address: Where it is.
        key_name: The environment variable with its key.
        key: The key, which no message shows.
        token_limit: Its name for the limit of an answer's length.
        extra: The names of the fields in `extra_body`.
    """

    model: str
    address: str
    key_name: str | None
    key: str = field(repr=False)
    token_limit: str
    extra: tuple[str, ...]

    def of_status(self, status: int, text: str, headers: Mapping[str, str]) -> Exception:
        """Return the exception of `Teacher.attempt` for an HTTP status and its body."""
        body = _read(self._without_key(text))
        waits = status in _OVERLOADED
        return self._exception(status, body, turned_away=waits, retry_after=wait_asked_for(headers))

    def of_answer(self, text: str, problem: MalformedResponse) -> Exception:
        """Return the exception for a body of status 200 that is no answer; many gateways send their errors so."""
        reason, body = self._without_key(str(problem)), _read(self._without_key(text))
        if not isinstance(body, dict):
            return TryAgain(reason)
        error = body.get("error")
        codes = [part.get(name) for part in (error, body) if isinstance(part, dict) for name in ("code", "status")]
        status = next((int(code) for code in map(str, codes) if re.fullmatch("[45][0-9]{2}", code)), None)
        if status is None and not any(pattern.search(message_of(body)) for pattern in (_SPENT, _CONTEXT, _FILTERED)):
            return TryAgain(reason)
        return self._exception(status or 400, body)

    def _exception(
        self, status: int, body: Any, turned_away: bool = False, retry_after: float | None = None
    ) -> Exception:
        words = message_of(body)
        error = body.get("error", body) if isinstance(body, dict) else {}
        fields = {name: str(error.get(name)) for name in ("code", "type", "param")} if isinstance(error, dict) else {}
        message = f"status {status}: {words}" if words else f"status {status}"
        everything = " ".join((words, *fields.values()))
        if status == 402 or _SPENT.search(everything):
            return TeacherUnusable(f"{message}; the balance is exhausted: top it up, or ask with another key")
        if status in _TRY_AGAIN or not 400 <= status < 500:
            congestion = status in _OVERLOADED
            return TryAgain(message, congestion=congestion, turned_away=turned_away, retry_after=retry_after)
        if _CONTEXT.search(everything):
            return NoAnswer(f"longer than the model's context ({message})")
        if status in _UNUSABLE and not _FILTERED.search(everything):
            return TeacherUnusable(f"{message}{self._hint(status)}")
        if "max_completion_tokens" in words and re.search("unsupported|not supported|instead", words, re.IGNORECASE):
            return TeacherUnusable(f"{message}; set `token_limit: max_completion_tokens`")
        return NoAnswer(f"{message}{self._leave_out(words, fields.get('param'))}")

    def _hint(self, status: int) -> str:
        if status == 404:
            return f"; is the base URL right ({self.address}), and the model {self.model!r}?"
        return f"; look at the key in the environment variable {self.key_name}"

    def _leave_out(self, words: str, parameter: str | None) -> str:
        """Return which options leave out the parameters that a message names."""
        plain = ("temperature", "top_p", "seed")
        quoted = ("stop", self.token_limit, *self.extra)
        names = {name for name in plain if re.search(rf"(?<![\w-]){name}(?![\w-])", words)}
        names |= {name for name in quoted if re.search(rf"[\"'`]{re.escape(name)}[\"'`]", words)}
        names |= {name for name in (*plain, *quoted) if name == parameter}
        return "".join(f"; `extra_body: {{{name}: null}}` leaves `{name}` out" for name in sorted(names))

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _read(text: str) -> Any:
    """Return what an endpoint says: its JSON, without the list that some put around an error, or else the text."""
    try:
        body = read_json(text)
    except (ValueError, RecursionError):
        return text
    return body[0] if isinstance(body, list) and len(body) == 1 else body


def wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a response asks to wait; the header holds seconds or a date."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
