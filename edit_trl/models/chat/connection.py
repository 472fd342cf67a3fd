"""The connection to an endpoint: its URL, its key and its client."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edit_trl.common.errors import InputError, show

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_KEY = "OPENAI_API_KEY"

_SECRET = re.compile(r"api[-_]?key|authori[sz]ation|secret|password|(access|auth|bearer)[-_]?token", re.IGNORECASE)


def connect(url: str, key: str, timeout: float) -> AsyncOpenAI:
    """Make a client of an endpoint, without retries of its own; nothing is sent yet.

    Raises:
        InputError: The `openai` package is not installed.
    """
    try:
        from openai import AsyncOpenAI, DefaultAioHttpClient
    except ImportError as error:
        raise InputError(
            "an endpoint is asked through the `openai` package, which is not installed: "
            "pip install 'edit_trl[generate]'"
        ) from error
    return AsyncOpenAI(
        base_url=url,
        api_key=key or "none",
        max_retries=0,
        timeout=timeout,
        http_client=DefaultAioHttpClient(base_url=url, timeout=timeout, event_hooks={"response": [_as_utf8]}),
    )


async def _as_utf8(response: Any) -> None:
    """Read a response as UTF-8, as all JSON is, whatever character set it names: some names cannot be decoded."""
    response.encoding = "utf-8"


def api_key(name: str | None, urls: Sequence[str]) -> str:
    """Return the key in an environment variable; empty if there is none and all endpoints are on this machine.

    Raises:
        InputError: There is no key, and some endpoint is on another machine; or it can be no key, or is in a URL.
    """
    key = os.environ.get(name, "").strip() if name else ""
    if not re.fullmatch(r"[!-~]*", key):
        raise InputError(f"the key in the environment variable {name} has characters that no HTTP header can hold")
    if not key and name and not all(_is_local(url) for url in urls):
        raise InputError(
            f"no API key: set the environment variable {name}, name another with `api_key_env`, or set "
            "`api_key_env: null` if the endpoint needs none"
        )
    if key and any(key in url for url in urls):
        raise InputError(f"a base URL holds the key of {name}; leave it out: it is sent as a header")
    return key


def url_problem(url: str) -> str | None:
    """Return the error message for a base URL that cannot be used; None for one that can."""
    malformed = f"base URL {show(url)} is not a URL; write it as http://127.0.0.1:8000/v1"
    if not isinstance(url, str):
        return malformed
    if {"@", "?"} & set(url):  # what may hold a key is not shown
        malformed = "a base URL is not a URL; write it as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return malformed
    if parts.username is not None:
        return "a base URL holds a password or key; keys come from the environment (`api_key_env`)"
    if parts.query or parts.fragment:
        return "a base URL has a query (`?...`), which may hold a key; keys come from the environment (`api_key_env`)"
    return None if is_url and re.fullmatch(r"[!-~]+", url) else malformed


def body_problems(fields: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield an error message for each of the fields to send that cannot be sent, or that should not be."""
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        yield f"`extra_body` cannot be sent as JSON ({error}); give it texts, numbers, lists and mappings"
        return
    if fields.get("stream"):
        yield "`extra_body` asks for a stream; answers are read as a whole: leave `stream` out"
    if (key and key in text) or any(_SECRET.search(name) for name in _names_in(fields)):
        yield "`extra_body` holds a key, which would be written to files; keys come from `api_key_env`, the environment"


def _names_in(value: Any) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield str(name)
        yield from _names_in(inner)


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
