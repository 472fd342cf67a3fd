"""A suite on a Ray cluster (L4): each GPU, machine or endpoint makes the items of whole batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.evaluation.suite.scorers import judge_of, of_model

if TYPE_CHECKING:
    from edit_trl.evaluation.runs.schema import SuiteItem
    from edit_trl.evaluation.suite.cases import SuiteCase
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher


class RayJudge:
    """A `CaseJudge` on the machines of a Ray cluster.

    Args:
        arguments: What `edit-trl suite` was given.
        client: The model at its endpoints, each of which gets an actor; None for a model to be loaded.
        known: `model_hash` of a model to be loaded.
        cases: The suite.

    Raises:
        InputError: No cluster, or no room in it.
    """

    def __init__(
        self,
        arguments: SuiteArguments,
        client: OpenAICompatibleTeacher | None,
        known: str,
        cases: Sequence[SuiteCase],
    ):
        from edit_trl.models.cluster.calls import RayCalls
        from edit_trl.models.cluster.cluster import connect, places

        connect()
        if client is None:
            count, resources = places(arguments.actors, cpu=arguments.device == "cpu")
            clients = [None] * count
        else:
            resources, clients = {}, client.makers()
        makers = [partial(RemoteJudge, arguments, make, known, cases) for make in clients]
        self._calls = RayCalls(makers, resources, errors=(InputError, FloatingPointError))

    def plan(self) -> list[list[int]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseJudge.plan`."""
        return self._calls.ask("plan")

    def run(self, batches: Sequence[list[int]]) -> Iterator[list[SuiteItem]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseJudge.run`; batches come in any order."""
        for _, items in self._calls.run("items", [(batch,) for batch in batches]):
            yield items


class RemoteJudge:
    """The judge of one actor, made there.

    Args:
        arguments: What `edit-trl suite` was given.
        make_client: Makes the client of this actor's endpoint; None for a model to be loaded.
        known: `model_hash` of the model where the command runs.
        cases: The suite.

    Raises:
        InputError: The model cannot be loaded, or is another one here.
    """

    def __init__(
        self,
        arguments: SuiteArguments,
        make_client: Callable[[], OpenAICompatibleTeacher] | None,
        known: str,
        cases: Sequence[SuiteCase],
    ):
        from edit_trl.evaluation.accuracy.generators_on_ray import check_same_model

        client = make_client() if make_client is not None else None
        found, tokenizer, _ = of_model(arguments, client)
        if client is None:
            check_same_model(arguments.model, found, known)
        self._judge = judge_of(arguments, client, tokenizer, cases)
        # One run over all that will be asked for: a run begins with a check of its own.
        self._batch: list[int] = []
        self._run = self._judge.run(self._batches())

    def plan(self) -> list[list[int]]:
        """See `CaseJudge.plan`."""
        return self._judge.plan()

    async def items(self, batch: list[int]) -> list[SuiteItem]:
        """The items of a batch."""
        self._batch = batch
        # In a thread: the judge of an endpoint has an event loop of its own.
        return await asyncio.to_thread(next, self._run)

    def _batches(self) -> Iterator[list[int]]:
        while True:
            yield self._batch
