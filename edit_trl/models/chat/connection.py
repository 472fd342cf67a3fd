"""The connection to an endpoint: its URL, its key and its client."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_KEY = "OPENAI_API_KEY"


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
        http_client=DefaultAioHttpClient(base_url=url, timeout=timeout),
    )


def api_key(name: str | None, urls: Sequence[str]) -> str:
    """Return the key in an environment variable; empty if there is none and all endpoints are on this machine.

    Raises:
        InputError: There is no key, and some endpoint is on another machine.
    """
    key = os.environ.get(name, "") if name else ""
    if not key and name and not all(_is_local(url) for url in urls):
        raise InputError(
            f"no API key: set the environment variable {name}, name another with `api_key_env`, or set "
            "`api_key_env: null` if the endpoint needs none"
        )
    return key


def url_problem(url: str) -> str | None:
    """Return the error message for a base URL that cannot be used; None for one that can."""
    parts = urlsplit(url)
    if parts.password:
        return "a base URL holds a password; keys come from the environment (`api_key_env`)"
    if parts.scheme in ("http", "https") and parts.hostname:
        return None
    return f"base URL {url!r} is not a URL; write it as http://127.0.0.1:8000/v1"


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
