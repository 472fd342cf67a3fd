"""A teacher behind any endpoint that speaks OpenAI's chat completions.

Such endpoints are OpenAI itself, vLLM, SGLang, `transformers serve`, llama.cpp, Ollama and many more. The
`openai` package sends the requests; its retries are off, since `edit_trl.models.chat.dispatch` has its own.

`AsyncOpenAI.post` returns the body unparsed, which is what the journal keeps. It takes a third of the
processor time of `chat.completions.create`, which walks through every message. aiohttp takes a third of the
time of the default transport (`python benchmarks/generate_speed.py`).

Read in openai 3.54: `AsyncOpenAI.post`, `DefaultAioHttpClient`, the exception classes.
"""

from __future__ import annotations

import asyncio
import difflib
import email.utils
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.models.chat.connection import DEFAULT_KEY, api_key, connect, url_problem
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    FinishReason,
    MalformedResponse,
    NoAnswer,
    RawResponse,
    TeacherUnusable,
    TryAgain,
)

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_TRY_AGAIN = {408, 409, 425, 429}
_UNUSABLE = {401, 403, 404}
# Seconds for which an endpoint that cannot be reached is left alone, if there are others.
_UNHEALTHY = 10.0
_MOST_NAMES = 20
_CONTEXT_WORDS = ("context length", "context_length", "maximum context", "too many tokens", "prompt is too long")


@dataclass
class _Endpoint:
    url: str
    client: AsyncOpenAI
    unhealthy_until: float = 0.0


class OpenAICompatibleTeacher:
    """A model behind one or more endpoints.

    Args:
        model: The model's name at the endpoints.
        base_urls: Endpoints that serve the same model, such as "http://127.0.0.1:8000/v1". Requests go to
            them in turn, past those that cannot be reached.
        api_key_env: The environment variable that holds the key; None if the endpoints need none, as local ones do.
        timeout: Seconds to wait for a whole answer.
        token_limit: The endpoint's name for the limit of an answer's length.
        extra_body: More fields to send, such as `{"chat_template_kwargs": {"enable_thinking": false}}`.

    Raises:
        InputError: The model, the URL or the key is missing, a URL is malformed, or the `openai` package is
            not installed.
    """

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str],
        *,
        api_key_env: str | None = DEFAULT_KEY,
        timeout: float = 120.0,
        token_limit: str = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
    ):
        problems = [] if model else ["`model` is empty; name the model as the endpoint knows it"]
        problems += [problem for url in base_urls if (problem := url_problem(url))]
        if not base_urls:
            problems.append("no base URL; name one such as http://127.0.0.1:8000/v1")
        if problems:
            raise InputError(problems)
        self.model = model
        self._timeout = timeout
        self._token_limit = token_limit
        self._extra_body = dict(extra_body or {})
        # The extra fields are part of the address, since they may change the answer.
        self.address = " ".join(sorted(base_urls))
        if self._extra_body:
            self.address += " " + json.dumps(self._extra_body, sort_keys=True)
        self._key_name = api_key_env
        self._key = api_key(api_key_env, base_urls)
        self._endpoints = deque(_Endpoint(url, connect(url, self._key, timeout)) for url in base_urls)
        self._make = partial(
            type(self), model, api_key_env=api_key_env, timeout=timeout, token_limit=token_limit, extra_body=extra_body
        )

    def makers(self) -> list[Callable[[], OpenAICompatibleTeacher]]:
        """Return functions that make the teacher in other processes, one per endpoint; keys are read there."""
        return [partial(self._make, [endpoint.url]) for endpoint in self._endpoints]

    async def check(self) -> None:
        """Check that every endpoint can be reached and has the model; sends no prompt.

        Raises:
            InputError: An endpoint cannot be reached, refuses the key or does not know the model.
        """
        await asyncio.gather(*(self._check(endpoint) for endpoint in self._endpoints))

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Send a request once; see `Teacher.attempt`."""
        return await self._post("/chat/completions", self._body(request))

    async def complete(self, body: Mapping[str, Any]) -> RawResponse:
        """Send a request to `/completions` once; `body` lacks the model. See `Teacher.attempt` for the errors."""
        return await self._post("/completions", {"model": self.model, **body} | self._extra_body)

    async def _post(self, path: str, content: Mapping[str, Any]) -> RawResponse:
        import openai

        endpoint = self._next_endpoint()
        started = time.monotonic()
        try:
            # The client's own timeout is per read, so it would wait for ever for a body that trickles in.
            async with asyncio.timeout(self._timeout):
                body = await endpoint.client.post(path, cast_to=str, body=content)
        except TimeoutError as error:
            raise TryAgain("timeout", congestion=True) from error
        except openai.APIConnectionError as error:
            # The aiohttp transport calls a lost connection a timeout, too; the first cause tells them apart.
            cause = _first_cause(error)
            if isinstance(cause, TimeoutError):
                raise TryAgain("timeout", congestion=True) from error
            endpoint.unhealthy_until = time.monotonic() + _UNHEALTHY
            raise TryAgain(f"{type(cause).__name__} at {endpoint.url}") from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        return RawResponse(body, time.monotonic() - started)

    def read(self, raw: RawResponse) -> ChatResponse:
        """Read a chat completion; see `Teacher.read`."""
        body, choice = first_choice(raw)
        message = choice["message"] if isinstance(choice.get("message"), dict) else {}
        text, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        if refusal or reason == "content_filter":
            return response_of(body, str(refusal or text or ""), "refused")
        if text is None and reason == "length":
            text = ""  # cut off before the answer began, such as while a reasoning model was thinking
        if not isinstance(text, str):
            raise MalformedResponse("no text")
        return response_of(body, text, "length" if reason == "length" else "stop")

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            await endpoint.client.close()

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._token_limit: sampling.max_tokens,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        if request.messages[-1][0] == "assistant":  # vLLM and SGLang continue the message with these
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | self._extra_body

    def _next_endpoint(self) -> _Endpoint:
        """Return the next endpoint in turn that can be reached; if none can, the first to be tried again."""
        self._endpoints.rotate(-1)
        now = time.monotonic()
        return min(self._endpoints, key=lambda endpoint: max(endpoint.unhealthy_until - now, 0.0))

    def _status_error(self, error: APIStatusError) -> Exception:
        """Return the exception of an HTTP status; see `Teacher.attempt`."""
        message = f"{error.status_code}: {self._message(error)}"
        if error.code == "insufficient_quota":
            return TeacherUnusable(message)
        if error.status_code in _TRY_AGAIN or error.status_code >= 500:
            congestion = error.status_code in (429, 503)
            return TryAgain(
                f"status {error.status_code}",
                congestion=congestion,
                turned_away=congestion,
                retry_after=_retry_after(error.response.headers),
            )
        if error.status_code in _UNUSABLE:
            return TeacherUnusable(f"{message}{self._hint(error.status_code)}")
        if "max_completion_tokens" in message and self._token_limit != "max_completion_tokens":
            return TeacherUnusable(f"{message}; set `token_limit: max_completion_tokens`")
        if any(words in message.lower() for words in _CONTEXT_WORDS):
            return NoAnswer("longer than the model's context")
        return NoAnswer(f"status {message}")

    def _hint(self, status: int) -> str:
        if status == 404:
            return f"; is the base URL right ({self.address}), and the model {self.model!r}?"
        return f"; look at the key in the environment variable {self._key_name}"

    def _message(self, error: Exception) -> str:
        """Return the endpoint's error message on one line, without the key."""
        text = " ".join(str(getattr(error, "message", error)).split())
        return text.replace(self._key, "***")[:300] if self._key else text[:300]

    async def _check(self, endpoint: _Endpoint) -> None:
        import openai

        try:
            names = [model.id async for model in endpoint.client.models.list()]
        except openai.APIConnectionError as error:
            cause = _first_cause(error)
            raise InputError(
                f"cannot reach {endpoint.url} ({type(cause).__name__}: {cause}); is the server running, and "
                "the base URL complete (most end in /v1)?"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise InputError(
                    f"{endpoint.url} refuses the key ({error.status_code}: {self._message(error)})"
                    f"{self._hint(error.status_code)}"
                ) from error
            return  # the endpoint lists no models: the first request will show whether it has this one
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{endpoint.url} does not answer as a chat endpoint does ({type(error).__name__}); is "
                "the base URL complete (most end in /v1)?"
            ) from error
        if names and self.model not in names:
            near = difflib.get_close_matches(self.model, names, n=_MOST_NAMES, cutoff=0.0)
            more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
            raise InputError(f"{endpoint.url} has no model {self.model!r}; it has {', '.join(near)}{more}")


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_choice(raw: RawResponse) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the body of a response, and the first of its `choices`.

    Raises:
        MalformedResponse: The body is not JSON, or has no choice.
    """
    try:
        body = json.loads(raw.body)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse("not JSON") from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedResponse("no choices")
    return body, choices[0]


def response_of(body: Mapping[str, Any], text: str, reason: FinishReason) -> ChatResponse:
    """Make a response with the model and the token counts that the endpoint reports."""
    usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
    reported = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counts = [count if isinstance(count, int) else 0 for count in reported]
    # JSON can hold half of a surrogate pair, which cannot be saved as UTF-8.
    text = text.encode("utf-8", "replace").decode()
    return ChatResponse(text, reason, str(body.get("model") or ""), *counts)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a response asks to wait; the header holds seconds or a date."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
