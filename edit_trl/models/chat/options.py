"""The options of a model behind an endpoint, the same for every command that asks one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from edit_trl.common.checks import positive
from edit_trl.common.errors import InputError
from edit_trl.common.options import Options
from edit_trl.models.chat.connection import DEFAULT_KEY, url_problem
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat_templates import check_values

Arguments = TypeVar("Arguments", bound="EndpointArguments")
TeacherType = TypeVar("TeacherType", bound=OpenAICompatibleTeacher)


@dataclass(frozen=True)
class EndpointArguments(Options):
    """A model behind an endpoint that speaks OpenAI's chat completions.

    Attributes:
        model: The model's name at the endpoint.
        base_urls: Its endpoints, such as http://127.0.0.1:8000/v1; requests go to them in turn.
        api_key_env: The environment variable with the key; empty if the endpoint needs none.
        timeout: Seconds to wait for an answer.
        token_limit: The endpoint's name for the limit of an answer's length.
        extra_body: More fields to send to the endpoint; a field that is null is left out of every request, such as
            {"seed": null} for an endpoint that refuses a seed.
        check_model: Whether to refuse, before anything is sent, a model that the endpoint does not list.
    """

    model: str | None = None
    base_urls: list[str] | None = None
    api_key_env: str | None = DEFAULT_KEY
    timeout: float = 120.0
    token_limit: str = "max_tokens"
    extra_body: dict[str, Any] | None = None
    check_model: bool = True

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from positive(timeout=self.timeout)
        yield from (problem for url in self.base_urls or () if (problem := url_problem(url)))

    def with_chat_template(self: Arguments, values: Mapping[str, Any] | None) -> Arguments:
        """Return the options with values of the chat template's variables, which vLLM, SGLang and llama.cpp take.

        Raises:
            InputError: `extra_body` sets them too, or see `check_values`.
        """
        if not values:
            return self
        check_values(values)
        extra = self.extra_body or {}
        if "chat_template_kwargs" in extra:
            raise InputError("`chat_template_kwargs` is given twice: as an option and in `extra_body`; remove one")
        return replace(self, extra_body={**extra, "chat_template_kwargs": dict(values)})

    def endpoint(
        self,
        model: str | None = None,
        base_urls: Sequence[str] | None = None,
        kind: type[TeacherType] = OpenAICompatibleTeacher,  # type: ignore[assignment]  # mypy allows no default here
    ) -> TeacherType:
        """Return the model behind its endpoints, or another with the same options; nothing is sent yet."""
        return kind(
            model or self.model or "",
            base_urls or self.base_urls or (),
            api_key_env=self.api_key_env,
            timeout=self.timeout,
            token_limit=self.token_limit,
            extra_body=self.extra_body,
            check_model=self.check_model,
        )
