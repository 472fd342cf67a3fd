"""An endpoint that has OpenAI's batch API: a file of requests is uploaded, answered within a day, and fetched.

Read in openai 3.57: `files.with_raw_response.create`, and the paths and fields of `batches` and `files.content`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.protocol import (
    ChatRequest,
    MalformedResponse,
    NoAnswer,
    RawResponse,
    TeacherUnusable,
    TryAgain,
    read_json,
)
from edit_trl.models.chat.replies import message_of, short

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_PATH = "/v1/chat/completions"

# An upload may take this much longer than an answer: seconds per byte, at 2 Mbit/s.
_UPLOAD_TIME = 4e-6

# The status of a batch, of which the last one is in `_ENDED`.
WAITING = {"validating", "in_progress", "finalizing", "cancelling"}
_ENDED = {"completed", "expired", "cancelled", "failed"}

_SIZE, _LIMIT = r"\b(size|lines|requests|tasks|bytes|[mg]b)\b", r"exceed|maximum|at most|limit"
_TOO_LARGE = re.compile(
    rf"status 413|too[ _](many|large|big)|token[ _]limit|{_SIZE}.*({_LIMIT})|({_LIMIT}).*{_SIZE}", re.IGNORECASE
)


class TooLarge(NoAnswer):
    """A file has more requests, bytes or tokens than the endpoint takes at once."""


class BatchEndpoint(OpenAICompatibleTeacher):
    """A model behind an endpoint that has OpenAI's `/files` and `/batches`; see `OpenAICompatibleTeacher`.

    Each call raises `TryAgain`, `NoAnswer` or `TeacherUnusable`, as `Teacher.attempt` does.
    """

    def line(self, key: str, request: ChatRequest) -> bytes:
        """Return the line of a request in a file."""
        entry = {"custom_id": key, "method": "POST", "url": _PATH, "body": self._fields(self._body(request))}
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"

    async def upload(self, data: bytes) -> str:
        """Upload a file of requests, and return its id; raises `TooLarge`."""
        seconds = len(data) * _UPLOAD_TIME

        async def send(client: AsyncOpenAI) -> str:
            file = ("requests.jsonl", data, "application/jsonl")
            files = client.files.with_raw_response
            return (await files.create(file=file, purpose="batch", timeout=self._timeout + seconds)).text

        try:
            return self._named(await self._call(send, seconds))["id"]
        except NoAnswer as error:
            raise _refusal(str(error)) from error

    async def create(self, file: str) -> str:
        """Make a batch of an uploaded file, and return its id; raises `TooLarge`."""
        body = {"input_file_id": file, "endpoint": _PATH, "completion_window": "24h"}
        try:
            return self._named(await self._call(lambda client: client.post("/batches", cast_to=str, body=body)))["id"]
        except NoAnswer as error:
            raise _refusal(str(error)) from error

    async def find(self, file: str) -> str | None:
        """Return the batch that was made of a file, if one was."""
        body = self._read(await self._call(lambda client: client.get("/batches?limit=100", cast_to=str)))
        data = body.get("data")
        batches = [batch for batch in data if isinstance(batch, dict)] if isinstance(data, list) else []
        ids = [batch.get("id") for batch in batches if batch.get("input_file_id") == file]
        return next((name for name in ids if isinstance(name, str)), None)

    async def state(self, batch: str) -> dict[str, Any]:
        """Return a batch, as the endpoint describes it; its `status` is one that is known."""
        path = f"/batches/{quote(batch, safe='')}"
        state = self._named(await self._call(lambda client: client.get(path, cast_to=str)))
        state["status"] = str(state.get("status")).lower()
        if state["status"] not in WAITING | _ENDED:
            raise TeacherUnusable(f"batch {batch} has the unknown status {short(state['status'])!r}")
        return state

    def why_failed(self, state: Mapping[str, Any]) -> Exception:
        """Return the exception for a batch that failed before any request of it was answered."""
        errors = state.get("errors")
        errors = errors.get("data") if isinstance(errors, dict) else errors
        first = errors[0] if isinstance(errors, list) and errors else "no reason is given"
        message = str(self._refusals.of_status(400, json.dumps({"error": first}), {}))
        code = first.get("code") if isinstance(first, dict) else None
        return _refusal(f"{short(str(code))}, {message}" if code else message)

    async def content(self, file: str) -> str:
        """Return the text of a file of answers."""
        path = f"/files/{quote(file, safe='')}/content"
        return await self._call(lambda client: client.get(path, cast_to=str))

    def outcome(self, line: Mapping[str, Any], latency: float) -> RawResponse:
        """Return the response in a line of a file of answers; what is none raises what it would without a batch."""
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict) and isinstance(response.get("body"), dict):
            body, status = json.dumps(response["body"]), response.get("status_code")
            if isinstance(status, int) and status >= 400:
                raise self._refusals.of_status(status, body, {})
            return self._checked(RawResponse(body, latency))
        code = error.get("code") if isinstance(error, dict) else None
        reason = f"{short(str(code or 'a line without a response'))}: {message_of(error)}"
        raise self._refusals.of_answer(json.dumps({"error": error}), MalformedResponse(reason))

    def _named(self, text: str) -> dict[str, Any]:
        body = self._read(text)
        if not isinstance(body.get("id"), str) or not body["id"]:
            raise self._refusals.of_answer(text, MalformedResponse(f"no id: {message_of(body)}"))
        return body

    def _read(self, text: str) -> dict[str, Any]:
        try:
            body = read_json(text)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise TryAgain(f"no JSON object: {short(text) or 'empty'}")
        return body


def _refusal(message: str) -> Exception:
    return TooLarge(message) if _TOO_LARGE.search(message) else TeacherUnusable(message)
