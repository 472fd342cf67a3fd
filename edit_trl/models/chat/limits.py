"""Limits of the requests to a teacher: rate, attempts and money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edit_trl.common.checks import at_least, not_negative, positive
from edit_trl.common.options import Options
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse

# What a chat template adds to a message, at most.
_MESSAGE_TOKENS = 16
_AT_ENDPOINT = 64


@dataclass(frozen=True)
class Limits(Options):
    """Limits of the requests to a teacher.

    Attributes:
        max_concurrency: The most requests in flight: 64 by default at an endpoint, and fewer while it cannot take as
            many; for a model that is loaded, as many as fill its batches.
        max_attempts: How often a request is tried; a request to slow down does not count.
        requests_per_minute: The rate of requests; None for no limit.
        tokens_per_minute: The rate of prompt and completion tokens together; None for no limit.
        give_up_after: Seconds of nothing but failures after which the run stops.
        prompt_price: The price of a million prompt tokens, in any currency.
        completion_price: The price of a million completion tokens.
        max_cost: The most to spend, journaled answers included; a request is sent if its longest answer still fits.

    Raises:
        InputError: A value is out of range.
    """

    max_concurrency: int | None = None
    max_attempts: int = 6
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    give_up_after: float = 120.0
    prompt_price: float | None = None
    completion_price: float | None = None
    max_cost: float | None = None

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from at_least(1, max_concurrency=self.max_concurrency, max_attempts=self.max_attempts)
        yield from positive(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            give_up_after=self.give_up_after,
            max_cost=self.max_cost,
        )
        yield from not_negative(prompt_price=self.prompt_price, completion_price=self.completion_price)
        if self.max_cost is not None and self.prompt_price is None and self.completion_price is None:
            yield "`max_cost` needs a price: set `prompt_price` and `completion_price` (per million tokens)"

    def most_in_flight(self, wanted: int | None = None) -> int:
        """Return the most requests in flight, for a teacher that wants so many."""
        return self.max_concurrency or wanted or _AT_ENDPOINT

    def cost(self, request: ChatRequest, response: ChatResponse) -> tuple[float, bool]:
        """Return the cost of an answer, and whether the endpoint reported the tokens that it is computed from.

        Tokens that are not reported are counted at their most: a token for each byte of the prompt, and as many as
        the answer may have. So `max_cost` also holds at an endpoint that does not say what it used.
        """
        prompt, completion = response.prompt_tokens, response.completion_tokens
        if not prompt and self.prompt_price:
            prompt = _most_prompt_tokens(request)
        if not completion and response.text and self.completion_price:
            completion = request.sampling.max_tokens
        cost = self._price(prompt, completion)
        return cost, (prompt, completion) == (response.prompt_tokens, response.completion_tokens)

    def most(self, request: ChatRequest) -> float:
        """Return the most that an answer can cost: a token for each byte of the prompt, and the longest answer."""
        return self._price(_most_prompt_tokens(request), request.sampling.max_tokens)

    def _price(self, prompt: int, completion: int) -> float:
        return (prompt * (self.prompt_price or 0.0) + completion * (self.completion_price or 0.0)) / 1e6


def _most_prompt_tokens(request: ChatRequest) -> int:
    return sum(len(text.encode()) + _MESSAGE_TOKENS for _, text in request.messages)
