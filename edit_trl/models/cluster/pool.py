"""Work for the machines of an existing Ray cluster (L0): what is lost with a machine is done again elsewhere.

Objects are made in processes of their own (actors), one a GPU, a machine or an endpoint, and called there.
Ray's own restarts stay off: Ray would hold a call back until its actor has a place again, and on a full
cluster that is never, while another actor could take the call at once.

Ray is imported when a pool is made, and not before. Read in ray 2.60: the exception classes, and that
awaiting an `ObjectRef` raises them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.models.cluster.cluster import connect, nodes_of_cluster

logger = logging.getLogger(__name__)

# A call that ends so many processes, or a process that ends so often before it is ready, is given up.
_MOST_LOSSES = 4
# Seconds until it is said that no machine has room; and that an object whose call failed is left alone.
_PATIENCE, _REST = 30.0, 10.0


class Worker:
    """What runs in an actor: an object, made there, and calls to it.

    Args:
        make: Makes the object; may give an awaitable of it.
        folder: Where paths are looked for, where it exists on that machine.
        errors: What is handed back as a value; anything else is a bug, and comes with its traceback.
    """

    def __init__(self, make: Callable[[], Any], folder: str, errors: tuple[type[Exception], ...]):
        self._make, self._errors = make, errors
        with contextlib.suppress(OSError):
            os.chdir(folder)

    async def machine(self) -> str:
        """Its name."""
        return socket.gethostname()

    async def start(self, version: str) -> Exception | None:
        """Make the object."""
        if version != installed_version("edit_trl"):
            return InputError(
                f"edit_trl {installed_version('edit_trl')} is installed there, and {version} here"
            )
        try:
            self._object = await _done(self._make())
        except self._errors as error:
            return error

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the object."""
        try:
            return await _done(getattr(self._object, method)(*arguments))
        except self._errors as error:
            return error


async def _done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@dataclass(eq=False)
class _Seat:
    """An actor's place in a pool, and the node it should be on, if it matters.

    `losses` counts the actors in a row that ended before they were ready.
    """

    make: Callable[[], Any]
    node: str | None = None
    losses: int = 0
    actor: Any = None
    machine: str | None = None
    ready: bool = False
    lost: bool = False
    rests_until: float = 0.0


@dataclass(order=True)
class _Turn:
    """The right to call an actor; those with the fewest calls before them come first."""

    calls: int
    number: int
    seat: _Seat | None = field(compare=False)


class RayPool:
    """Objects in actors of a cluster, and calls to whichever is free. All methods but `close` in one loop.

    Args:
        makers: How each object is made; picklable. A maker may give an awaitable.
        resources: What an actor takes of its machine, as `places` gives it.
        calls: The most calls to an object at once.
        errors: Exceptions that a call may end in, which are raised here as they were there.
        passing: Those of them after which an object is left alone for a while, where there are others.

    Raises:
        InputError: See `connect`.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], Any]],
        resources: dict[str, float],
        *,
        calls: int = 1,
        errors: tuple[type[Exception], ...] = (InputError,),
        passing: tuple[type[Exception], ...] = (),
    ):
        connect()
        from ray import exceptions

        self._lost = (
            exceptions.RayActorError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )
        self._resources, self._calls, self._errors, self._passing = resources, calls, errors, passing
        nodes = itertools.cycle([None] if resources else sorted(nodes_of_cluster()))
        self._seats = [_Seat(make, node) for make, node in zip(makers, nodes, strict=False)]
        self._turns: asyncio.PriorityQueue[_Turn] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: Exception | None = None

    async def ready(self, everyone: bool = False) -> None:
        """Wait for the first object, or for all of them.

        Raises:
            InputError: One could not be made.
        """
        self._begin()
        while self._error is None and not (all if everyone else any)(seat.ready for seat in self._seats):
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:  # no seat may be left
            raise self._error

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of an object that is free, again where the object is lost.

        Raises:
            InputError: No object can be made any more, or every object that was called so was lost.
            Exception: Whatever the method raises.
        """
        self._begin()
        for _ in range(_MOST_LOSSES):
            turn = await self._turn()
            try:
                outcome = await turn.seat.actor.call.remote(method, arguments)
            except self._lost as error:
                self._replace(turn.seat, error)
                continue
            except BaseException:
                self._turns.put_nowait(turn)
                raise
            if isinstance(outcome, self._passing):
                turn.seat.rests_until = time.monotonic() + _REST
            self._turns.put_nowait(turn)
            if isinstance(outcome, self._errors):
                raise outcome
            return outcome
        raise InputError(
            f"{_MOST_LOSSES} processes of the Ray cluster ended over the same work; if it is their memory, "
            "lower `batch_size`. What is done is kept: run the same command again to go on"
        )

    def close(self) -> None:
        """End the actors."""
        import ray

        for task in self._tasks:
            task.cancel()
        for seat in self._seats:
            if seat.actor is not None and ray.is_initialized():
                ray.kill(seat.actor)
        self._seats = []

    def _begin(self) -> None:
        if not self._tasks:
            self._keep(self._watch())
            for seat in self._seats:
                self._keep(self._fill(seat))

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fail(task.exception())

    async def _fill(self, seat: _Seat) -> None:
        """Start an actor, and let it be called once its object is made."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Actors that take nothing Ray may put on one node.
        near = NodeAffinitySchedulingStrategy(seat.node, soft=True) if seat.node else "SPREAD"
        remote = ray.remote(Worker).options(
            **({"num_cpus": 0} | self._resources),
            max_restarts=0,
            max_concurrency=self._calls + 2,
            scheduling_strategy=near,
        )
        seat.actor = remote.remote(seat.make, os.getcwd(), self._errors)
        try:
            seat.machine = await seat.actor.machine.remote()
            error = await seat.actor.start.remote(installed_version("edit_trl"))
        except self._lost as lost:
            self._replace(seat, lost)
            return
        if error is not None:
            raise type(error)(f"on {seat.machine}, in the Ray cluster: {error}") from error
        seat.ready, seat.losses = True, 0
        for calls in range(self._calls):
            self._turns.put_nowait(_Turn(calls, next(self._numbers), seat))
        self._changed.set()

    def _replace(self, seat: _Seat, error: Exception) -> None:
        if seat.lost:  # another call to it has seen it
            return
        import ray

        seat.lost = True
        # One that only could not be reached would come back, and keep its GPU.
        ray.kill(seat.actor)
        self._seats.remove(seat)
        losses = 0 if seat.ready else seat.losses + 1
        # On a line of its own, under a progress bar.
        where = f"on {seat.machine}" if seat.machine else "of the Ray cluster"
        logger.warning(f"\nlost a process {where} ({type(error).__name__}): its work is done again elsewhere")
        if losses < _MOST_LOSSES:
            self._seats.append(_Seat(seat.make, losses=losses))
            self._keep(self._fill(self._seats[-1]))
        elif not self._seats:
            self._fail(InputError(f"no process of the Ray cluster lives until it is ready: {error}"))

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._changed.set()
        self._turns.put_nowait(_Turn(-1, next(self._numbers), None))

    async def _turn(self) -> _Turn:
        while True:
            turn = await self._turns.get()
            if turn.seat is None:
                self._turns.put_nowait(turn)
                raise self._error
            if turn.seat.lost:
                continue
            now = time.monotonic()
            wait = turn.seat.rests_until - now
            if wait <= 0 or all(seat.rests_until > now for seat in self._seats):
                return turn
            asyncio.get_running_loop().call_later(wait, self._turns.put_nowait, turn)

    async def _watch(self) -> None:
        """Say that no machine has room, once each time."""
        told = False
        while True:
            await asyncio.sleep(_PATIENCE)
            waiting = all(seat.machine is None for seat in self._seats)
            if waiting and not told:
                needed = " and ".join(f"{n:g} {name[4:-1].upper()}" for name, n in self._resources.items())
                logger.warning(f"waiting for a machine of the Ray cluster with {needed or 'room'} free")
            told = waiting
