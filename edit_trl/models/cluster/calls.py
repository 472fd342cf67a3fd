"""Calls to the objects of a Ray pool, for code that is not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.models.cluster.pool import RayPool


class RayCalls:
    """Calls to the objects of a pool of its own, from code that is not asynchronous.

    Args:
        makers: See `RayPool`.
        resources: See `RayPool`.
        errors: See `RayPool`.

    Raises:
        InputError: See `RayPool`.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], Any]],
        resources: dict[str, float],
        *,
        errors: tuple[type[Exception], ...] = (InputError,),
    ):
        self._pool = RayPool(makers, resources, errors=errors)
        self._loop = asyncio.new_event_loop()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Make one call; see `RayPool.call`."""
        try:
            return self._loop.run_until_complete(self._pool.call(method, *arguments))
        except BaseException:
            self.close()
            raise

    def run(self, method: str, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Make a call for each job, then close the pool.

        Args:
            method: The method to call.
            jobs: The arguments of each call.

        Yields:
            The number of a job and the result of its call, in the order in which the calls finish.

        Raises:
            InputError: See `RayPool.call`.
            Exception: Whatever the method raises.
        """
        done: asyncio.Queue[tuple[int, asyncio.Task[Any]]] = asyncio.Queue()
        tasks = []
        try:
            for number, job in enumerate(jobs):
                task = self._loop.create_task(self._pool.call(method, *job))
                task.add_done_callback(partial(_put, done, number))
                tasks.append(task)
            for _ in tasks:
                number, task = self._loop.run_until_complete(done.get())
                yield number, task.result()
        finally:
            for task in tasks:
                task.cancel()
            self.close()

    def close(self) -> None:
        """End the actors."""
        if not self._loop.is_closed():
            self._pool.close()
            self._loop.run_until_complete(_cancel_all(self._loop))
            self._loop.close()


def _put(done: asyncio.Queue[tuple[int, asyncio.Task[Any]]], number: int, task: asyncio.Task[Any]) -> None:
    done.put_nowait((number, task))


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks, and wait until they end."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
