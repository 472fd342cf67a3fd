"""Students on a Ray cluster (L3): each machine or GPU loads the model, and answers whole batches.

What is answered, in which batches, and with which seeds, is what one machine would do; items come in any
order, which `RunFolder` is made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.models.cluster.cluster import connect, places
from edit_trl.models.cluster.pool import RayCalls

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.models.decoding import Generated


class RayGenerator:
    """A `Generator` whose model is on the machines of a Ray cluster; waits until one of them has it.

    Args:
        arguments: What `edit-trl evaluate` was given.
        known: `model_hash` of the model here.

    Attributes:
        batching: As `ModelGenerator` there found it.
        positions: How many tokens the model takes, where it says so.

    Raises:
        InputError: No cluster, no room, or a model that cannot be loaded there or is another one there.
    """

    def __init__(self, arguments: EvaluateArguments, known: str):
        connect()
        count, resources = places(arguments.actors, cpu=arguments.device == "cpu")
        self._calls = RayCalls([partial(RemoteStudent, arguments, known)] * count, resources)
        self.batching, self.positions = self._calls.ask("facts")

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        return self._calls.ask("plan", list(lengths))

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`.

        Raises:
            InputError: A batch could not be answered; the others that were are kept.
        """
        jobs = [(self.batching, [prompts[index] for index in batch]) for batch in batches]
        for number, samples in self._calls.run("answer", jobs):
            yield batches[number], samples


class RemoteStudent:
    """The generator of one machine, made there.

    Args:
        arguments: What `edit-trl evaluate` was given.
        known: `model_hash` of the model where it was given.

    Raises:
        InputError: The model cannot be loaded, or is another one here.
    """

    def __init__(self, arguments: EvaluateArguments, known: str):
        from edit_trl.evaluation.accuracy.generators import load_generator
        from edit_trl.models.identity import model_hash

        check_same_model(arguments.model, model_hash(arguments.model), known)
        self._generator, _, self._positions, _ = load_generator(arguments)

    def facts(self) -> tuple[str, int | None]:
        """How it batches, and how many tokens the model takes."""
        return self._generator.batching, self._positions

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `Generator.plan`."""
        return self._generator.plan(lengths)

    def answer(self, batching: str, prompts: Sequence[list[int]]) -> list[list[Generated]]:
        """A batch.

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


def check_same_model(model: str, found: str, known: str) -> None:
    """See that a path or Hub id leads to the same weights here.

    Args:
        model: The path or Hub id.
        found: Its `model_hash` here.
        known: Its `model_hash` where the command runs.

    Raises:
        InputError: It does not.
    """
    if found != known:
        raise InputError(
            f"`model: {model}` has other weights than where the command runs; put the same on every machine, "
            "or a folder that all of them share"
        )
