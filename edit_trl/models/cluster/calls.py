"""Calls to the objects of a Ray pool, for code that is not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.models.cluster.pool import RayPool


class RayCalls:
    """Calls to the objects of a pool, from code that is not asynchronous; see `RayPool` for the parameters."""

    def __init__(
        self,
        makers: Sequence[Callable[[], Any]],
        resources: dict[str, float],
        *,
        errors: tuple[type[Exception], ...] = (InputError,),
    ):
        self._pool = RayPool(makers, resources, errors=errors)
        self._runner = asyncio.Runner()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Make one call; see `RayPool.call`."""
        try:
            return self._runner.run(self._pool.call(method, *arguments))
        except BaseException:
            self.close()
            raise

    def run(self, method: str, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a method with the arguments of each job, then close the pool; raises what `RayPool.call` raises.

        Yields:
            The number of a job and the result of its call, in the order in which the calls finish.
        """
        done: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        numbers: dict[asyncio.Task[Any], int] = {}
        try:
            for number, job in enumerate(jobs):
                task = self._runner.get_loop().create_task(self._pool.call(method, *job))
                task.add_done_callback(done.put_nowait)
                numbers[task] = number
            for _ in jobs:
                task = self._runner.run(done.get())
                yield numbers[task], task.result()
        finally:
            self.close()

    def close(self) -> None:
        """End the actors, and cancel all calls."""
        self._pool.close()
        self._runner.close()
