"""Errors of the Hugging Face Hub: explained in one sentence, and retried if they are temporary.

`huggingface_hub` is slow to import, so it is imported where it is used.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_TRIES = 5
_FIRST_WAIT = 1.0  # seconds
# The Hub counts requests in windows of five minutes.
_LONGEST_WAIT = 600.0
_TEMPORARY = (408, 429, 500, 502, 503, 504)
# The client itself retries these requests.
_RETRIED_BY_CLIENT = re.compile(r"/preupload/|\.git/info/lfs|/lfs/")
_AGAIN = "run the same command again; what has arrived is not sent again"


def whoami(token: str | None = None) -> dict[str, Any] | None:
    """Return the Hub's record of the login; None without a login, or if the Hub cannot be reached."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError

    if not (token or get_token()):
        return None
    try:
        return HfApi(token=token).whoami(cache=True)
    except (HTTPError, OSError):
        return None


@contextmanager
def explained(repo_id: str, revision: str | None = None, token: str | None = None) -> Iterator[HfApi]:
    """Yield the Hub's client for writing to a repository.

    Raises:
        InputError: The Hub refused a request of the block, or the connection broke.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield HfApi(token=token)
    except InputError:
        raise
    except OfflineModeIsEnabled as error:
        raise InputError("the Hub cannot be reached: HF_HUB_OFFLINE is set; unset it for this command") from error
    except HfHubHTTPError as error:
        raise InputError(_refusal(error, repo_id, revision, token)) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # The client wraps the error that broke an upload.
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
        raise InputError(_refusal(cause, repo_id, revision, token) if cause else _broken(error, repo_id)) from error


def _broken(error: BaseException, repo_id: str) -> str:
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    if isinstance(error, ValueError):
        return f"the Hub does not take {repo_id}: {reason}"
    return f"the upload to {repo_id} broke ({reason}); {_AGAIN}"


def _refusal(error: Any, repo_id: str, revision: str | None, token: str | None) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import RevisionNotFoundError

    status, message = error.response.status_code, " ".join((error.server_message or str(error)).split())
    if status in (401, 403) and not (token or get_token()):
        return f"no login for {repo_id}: log in with `hf auth login`, or set HF_TOKEN to a token with write access"
    if status == 401:
        return (
            f"the Hub does not know this token, so {repo_id} cannot be written: it has expired or was "
            "mistyped; log in again with `hf auth login` (HF_TOKEN overrides the login)"
        )
    if status == 403:
        return f"{_token_name(token)} may not write to {repo_id}; {message}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no branch {revision!r}"
    if status == 404:
        return f"there is no {repo_id} on the Hub, or this token may not see it"
    if status in (409, 412):
        return f"someone else changed {repo_id} meanwhile (HTTP {status}); {_AGAIN}"
    if status == 429:
        return f"the Hub asks for fewer requests (HTTP 429); wait a few minutes and {_AGAIN}"
    if status >= 500:
        return f"the Hub is in trouble (HTTP {status}, asked {_TRIES} times); {_AGAIN}"
    return f"the Hub does not take {repo_id} (HTTP {status}): {message}"


def _token_name(token: str | None) -> str:
    who = whoami(token)
    if who is None:
        return "this token"
    record = who.get("auth", {}).get("accessToken", {})
    name = f" {record['displayName']!r}" if record.get("displayName") else ""
    role = f" (role: {record['role']})" if record.get("role") else ""
    return f"the token{name} of {who.get('name')!r}{role}"


def patiently(call: Callable[[], Result]) -> Result:
    """Make a request up to five times: retry temporary errors when the Hub allows it, else after 1, 2, 4 and 8 s.

    Raises:
        HTTPError: The error is not temporary, or the last try failed.
    """
    from huggingface_hub.errors import HTTPError

    for tries in range(1, _TRIES + 1):
        try:
            return call()
        except HTTPError as error:
            wait = _wait(error, tries)
            if wait is None or tries == _TRIES:
                raise
            logger.warning("temporary error of the Hub; trying again in %.0f s", wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _wait(error: Any, tries: int) -> float | None:
    """Return the seconds to wait before the request is repeated; None if it should not be."""
    response = getattr(error, "response", None)
    try:
        url = str(error.request.url)
    except RuntimeError:  # an error without a request
        url = ""
    if _RETRIED_BY_CLIENT.search(url) or (response is not None and response.status_code not in _TEMPORARY):
        return None
    wait = None if response is None else _requested_wait(response.headers)
    if wait is None:
        wait = _FIRST_WAIT * 2 ** (tries - 1)
    return wait if wait <= _LONGEST_WAIT else None


def _requested_wait(headers: Any) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = headers.get("retry-after", "")
    return float(after) if after.isdigit() else None
