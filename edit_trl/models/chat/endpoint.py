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
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edit_trl.common.checks import positive
from edit_trl.common.errors import InputError
from edit_trl.models.chat.connection import DEFAULT_KEY, api_key, body_problems, connect, url_problem
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, MalformedResponse, RawResponse, TryAgain
from edit_trl.models.chat.refusals import Refusals
from edit_trl.models.chat.replies import first_choice, is_listed, listed_models, read_completion, short

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Seconds for which an endpoint that cannot be reached is left alone, if there are others.
_UNHEALTHY = 10.0
_MOST_NAMES = 20


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
        extra_body: More fields to send, such as `{"chat_template_kwargs": {"enable_thinking": false}}`. A field
            that is None is left out of the request.
        check_model: Whether `check` refuses a model that an endpoint does not list.

    Raises:
        InputError: The model, the URL or the key is missing, a URL is malformed or holds a key, a value cannot be
            sent, or the `openai` package is not installed.
    """

    ends_thoughts = False
    requests_at_once = batching = None

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str],
        *,
        api_key_env: str | None = DEFAULT_KEY,
        timeout: float = 120.0,
        token_limit: str = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        check_model: bool = True,
    ):
        problems = [] if model else ["`model` is empty; name the model as the endpoint knows it"]
        problems += [problem for url in base_urls if (problem := url_problem(url))]
        if not base_urls:
            problems.append("no base URL; name one such as http://127.0.0.1:8000/v1")
        problems += positive(timeout=timeout)
        if problems:
            raise InputError(problems)
        self._key = api_key(api_key_env, base_urls)
        if problems := list(body_problems(extra_body or {}, self._key)):
            raise InputError(problems)
        self.model = model
        self._check_model = check_model
        self._timeout = timeout
        self._token_limit = token_limit
        self._extra_body = dict(extra_body or {})
        # The extra fields are part of the address, since they may change the answer.
        self.address = " ".join(sorted(base_urls))
        if self._extra_body:
            self.address += " " + json.dumps(self._extra_body, sort_keys=True)
        names = tuple(self._extra_body)
        self._refusals = Refusals(model, self.address, api_key_env, self._key, token_limit, names)
        self._endpoints = deque(_Endpoint(url, connect(url, self._key, timeout)) for url in base_urls)
        self._make = partial(
            type(self),
            model,
            api_key_env=api_key_env,
            timeout=timeout,
            token_limit=token_limit,
            extra_body=extra_body,
            check_model=check_model,
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
        return await self._post("/completions", {"model": self.model, **body})

    async def _post(self, path: str, content: Mapping[str, Any]) -> RawResponse:
        started = time.monotonic()
        body = await self._call(lambda client: client.post(path, cast_to=str, body=self._fields(content)))
        return self._checked(RawResponse(body, time.monotonic() - started))

    def _fields(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is sent: the content and the extra fields, without those that are None."""
        return {name: value for name, value in {**content, **self._extra_body}.items() if value is not None}

    def _checked(self, raw: RawResponse) -> RawResponse:
        """Return a response that has an answer; see `Teacher.attempt` for what is raised of others."""
        try:
            first_choice(raw)
        except MalformedResponse as error:
            raise self._refusals.of_answer(raw.body, error) from error
        return raw

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[str]], extra_time: float = 0.0) -> str:
        """Let the next endpoint answer a call, and return its body; see `Teacher.attempt` for what is raised."""
        import aiohttp
        import openai

        endpoint = self._next_endpoint()
        try:
            # The client's own timeout is per read, so it would wait for ever for a body that trickles in.
            async with asyncio.timeout(self._timeout + extra_time):
                return await send(endpoint.client)
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
            response = error.response
            raise self._refusals.of_status(error.status_code, response.text, response.headers) from error
        except aiohttp.ClientError as error:  # the transport translates lost connections alone
            raise TryAgain(f"malformed HTTP: {short(str(getattr(error, 'message', error)))}") from error

    def read(self, raw: RawResponse) -> ChatResponse:
        """Read a chat completion; see `Teacher.read`."""
        return read_completion(raw)

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
            "stop": list(sampling.stop) or None,
            "seed": request.seed,
        }
        if request.messages[-1][0] == "assistant":  # vLLM and SGLang continue the message with these
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _next_endpoint(self) -> _Endpoint:
        """Return the next endpoint in turn that can be reached; if none can, the first to be tried again."""
        self._endpoints.rotate(-1)
        now = time.monotonic()
        return min(self._endpoints, key=lambda endpoint: max(endpoint.unhealthy_until - now, 0.0))

    async def _check(self, endpoint: _Endpoint) -> None:
        import aiohttp
        import openai

        try:
            async with asyncio.timeout(self._timeout):
                text = await endpoint.client.get("/models", cast_to=str)
        except (openai.APIConnectionError, TimeoutError) as error:
            cause = _first_cause(error)
            raise InputError(
                f"cannot reach {endpoint.url} ({type(cause).__name__}: {short(str(cause))}); is the server running, "
                "and the base URL complete (most end in /v1)?"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403) and self._check_model:
                refusal = self._refusals.of_status(error.status_code, error.response.text, error.response.headers)
                raise InputError(
                    f"{endpoint.url} refuses the key ({refusal}); if it only refuses to list its models, set "
                    "`check_model: false`"
                ) from error
            return  # the endpoint lists no models: the first request will show whether it has this one
        except aiohttp.ClientError:
            text = ""
        if self._check_model:
            self._check_list(endpoint.url, text)

    def _check_list(self, url: str, text: str) -> None:
        names = listed_models(text)
        if names is None:
            raise InputError(
                f"{url} does not answer as a chat endpoint does ({short(text) or 'no HTTP'!r}); is the base URL "
                "complete (most end in /v1)? `check_model: false` asks it all the same"
            )
        if names and not is_listed(self.model, set(names)):
            near = difflib.get_close_matches(self.model, names, n=_MOST_NAMES, cutoff=0.0)
            more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
            raise InputError(
                f"{url} has no model {self.model!r}; it has {', '.join(map(short, near))}{more}. If it has one that it "
                "does not list, set `check_model: false`"
            )


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
