"""The options that say where a model is to be reached, the same for every command that asks one (L3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edit_trl.models.chat.endpoint import DEFAULT_KEY, OpenAICompatibleTeacher


@dataclass(frozen=True)
class EndpointArguments:
    """A model behind an endpoint that speaks OpenAI's chat completions.

    Attributes:
        model: Its name at the endpoint.
        base_urls: Endpoints of it, such as http://127.0.0.1:8000/v1; requests go to them in turn.
        api_key_env: The environment variable with the key; empty where the endpoint needs none.
        timeout: Seconds until an answer is given up.
        token_limit: What the endpoint calls the limit of an answer's length.
        extra_body: More fields to send to the endpoint.
    """

    model: str | None = None
    base_urls: list[str] | None = None
    api_key_env: str | None = DEFAULT_KEY
    timeout: float = 120.0
    token_limit: str = "max_tokens"
    extra_body: dict[str, Any] | None = None

    def endpoint(
        self, model: str | None = None, base_urls: Sequence[str] | None = None
    ) -> OpenAICompatibleTeacher:
        """The model, or another one reached with the same options; nothing is sent yet."""
        return OpenAICompatibleTeacher(
            model or self.model or "",
            base_urls or self.base_urls or (),
            api_key_env=self.api_key_env,
            timeout=self.timeout,
            token_limit=self.token_limit,
            extra_body=self.extra_body,
        )

    def not_positive(self, *names: str) -> Iterator[str]:
        """What is wrong with options that must be positive where they are given."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield f"`{name}` must be positive, got {value}"
