"""A scorer whose model is loaded by the machines of a Ray cluster, each of which scores whole batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.evaluation.runs.schema import SuiteItem
    from edit_trl.evaluation.suite.cases import SuiteCase
    from edit_trl.evaluation.suite.config import SuiteArguments


class RayScorer:
    """A `CaseScorer` on the machines of a Ray cluster.

    Args:
        arguments: The options of `edit-trl suite`.
        expected_hash: `model_hash` of the model where the command runs.
        cases: The suite.

    Raises:
        InputError: There is no cluster, or no room in it.
    """

    def __init__(self, arguments: SuiteArguments, expected_hash: str, cases: Sequence[SuiteCase]):
        from edit_trl.models.cluster.calls import RayCalls
        from edit_trl.models.cluster.cluster import connect, places

        connect()
        count, resources = places(arguments.actors, cpu=arguments.device == "cpu")
        makers = [partial(RemoteScorer, arguments, expected_hash, cases)] * count
        self._calls = RayCalls(makers, resources, errors=(InputError, FloatingPointError))

    def plan(self) -> list[list[int]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseScorer.plan`."""
        return self._calls.ask("plan")

    def run(self, batches: Sequence[list[int]]) -> Iterator[list[SuiteItem]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseScorer.run`; batches come in any order."""
        for _, items in self._calls.run("items", [(batch,) for batch in batches]):
            yield items


class RemoteScorer:
    """The scorer of one actor, made in the actor from the arguments of `RayScorer`.

    Raises:
        InputError: The model cannot be loaded, or has other weights on this machine.
    """

    def __init__(self, arguments: SuiteArguments, expected_hash: str, cases: Sequence[SuiteCase]):
        from edit_trl.evaluation.accuracy.generators_on_ray import check_same_model
        from edit_trl.evaluation.suite.model_scorer import load_scorer, tokenizer_of

        check_same_model(arguments.source.model, expected_hash)
        tokenizer, _ = tokenizer_of(arguments)
        self._scorer = load_scorer(arguments, tokenizer, cases)
        # A single run for all batches: each run begins with a check of the tree layout.
        self._batch: list[int] = []
        self._run = self._scorer.run(self._batches())

    def plan(self) -> list[list[int]]:
        """See `CaseScorer.plan`."""
        return self._scorer.plan()

    async def items(self, batch: list[int]) -> list[SuiteItem]:
        """Score a batch."""
        self._batch = batch
        # In a thread, so that the actor can answer in the meantime.
        return await asyncio.to_thread(next, self._run)

    def _batches(self) -> Iterator[list[int]]:
        while True:
            yield self._batch
