"""A generator on a Ray cluster: each machine or GPU loads the model and answers whole batches.

Batches and seeds are those of a run on one machine. Batches finish in any order, which `RunFolder` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.models.cluster.calls import RayCalls
from edit_trl.models.cluster.cluster import connect, places

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.generators import Loaded
    from edit_trl.models.decoding import Generated
    from edit_trl.models.loading import ModelSource


class RayGenerator:
    """A `Generator` whose model is on the machines of a Ray cluster; waits until one of them has loaded it.

    Args:
        load: Loads the model and its generator; called on each machine.
        source: The model that it loads.
        expected_hash: `model_hash` of the model on this machine.
        actors: How many models to load; see `edit_trl.models.cluster.cluster.places`.

    Attributes:
        batching: How the first machine batches.
        positions: Maximum number of tokens of the model; None if it is unknown.

    Raises:
        InputError: There is no cluster or no room in it, or the model cannot be loaded there or differs.
    """

    def __init__(self, load: Callable[[], Loaded], source: ModelSource, expected_hash: str, actors: int | None):
        connect()
        count, resources = places(actors, cpu=source.device == "cpu")
        self._calls = RayCalls([partial(RemoteStudent, load, source.model, expected_hash)] * count, resources)
        self.batching, self.positions = self._calls.ask("facts")

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        return self._calls.ask("plan", list(lengths))

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`.

        Raises:
            InputError: A batch could not be answered; those already yielded are valid.
        """
        jobs = [(self.batching, [prompts[index] for index in batch]) for batch in batches]
        for number, samples in self._calls.run("answer", jobs):
            yield batches[number], samples


class RemoteStudent:
    """The generator of one machine, loaded there.

    Raises:
        InputError: The model cannot be loaded, or has other weights on this machine; see `check_same_model`.
    """

    def __init__(self, load: Callable[[], Loaded], model: str, expected_hash: str):
        check_same_model(model, expected_hash)
        self._generator, _, self._positions, _ = load()

    def facts(self) -> tuple[str, int | None]:
        """Return how the machine batches, and the maximum number of tokens of the model."""
        return self._generator.batching, self._positions

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        return self._generator.plan(lengths)

    def answer(self, batching: str, prompts: Sequence[list[int]]) -> list[list[Generated]]:
        """Answer one batch.

        Raises:
            InputError: This machine batches in another way than the one that planned.
        """
        if batching != self._generator.batching:
            raise InputError(
                f"some machines of the Ray cluster batch {batching}, others {self._generator.batching}; name "
                "one as `batching`"
            )
        [(_, samples)] = self._generator.run(prompts, [list(range(len(prompts)))])
        return samples


def check_same_model(model: str, expected_hash: str) -> None:
    """Raise an InputError if the weights of a model on this machine are not those where the command runs.

    Args:
        model: The path or Hub id.
        expected_hash: Its `model_hash` on the machine that runs the command.
    """
    from edit_trl.models.identity import model_hash

    if model_hash(model) != expected_hash:
        raise InputError(
            f"`model: {model}` has other weights than where the command runs; put the same on every machine, "
            "or a folder that all of them share"
        )
