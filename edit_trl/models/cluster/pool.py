"""A pool of objects on the machines of a Ray cluster; work that is lost with a machine is repeated elsewhere.

Each object is made and called in a process of its own (an actor), one per GPU, machine or endpoint. Ray's own
restarts are off: Ray would hold a call back until its actor has a place again, which on a full cluster is
never, while another actor could take the call at once.

Ray is imported only when a pool is made. Read in ray 2.60: the exception classes, and that awaiting an
`ObjectRef` raises them.
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

# A call is given up after it has ended so many processes, and a process after so many that were never ready.
_MOST_LOSSES = 4
# Seconds until a warning that no machine has room; and seconds that an object rests after a failed call.
_PATIENCE, _REST = 30.0, 10.0


class Worker:
    """Runs in an actor: makes an object there, and calls its methods.

    Args:
        make: Makes the object, or an awaitable of it.
        folder: The working directory, if it exists on that machine.
        errors: Exceptions that are returned as values. Any other is a bug, and is raised with its traceback.
    """

    def __init__(self, make: Callable[[], Any], folder: str, errors: tuple[type[Exception], ...]):
        self._make, self._errors = make, errors
        with contextlib.suppress(OSError):
            os.chdir(folder)

    async def machine(self) -> str:
        """The name of the actor's machine."""
        return socket.gethostname()

    async def start(self, version: str) -> Exception | None:
        """Make the object; returns an error in place of raising it."""
        if version != installed_version("edit_trl"):
            return InputError(f"edit_trl {installed_version('edit_trl')} is installed there, and {version} here")
        try:
            self._object = await _done(self._make())
        except self._errors as error:
            return error
        return None

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the object; returns an error in place of raising it."""
        try:
            return await _done(getattr(self._object, method)(*arguments))
        except self._errors as error:
            return error


async def _done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@dataclass(eq=False)
class _Seat:
    """An actor's place in a pool.

    Attributes:
        make: Makes the actor's object.
        node: The node that the actor should be on, if it matters.
        losses: The number of actors in a row that ended before they were ready.
        actor: The actor.
        machine: The name of its machine, once it runs.
        ready: Whether its object is made.
        lost: Whether the actor has ended.
        rests_until: The time until which it is left alone.
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
    """The right to call an actor; turns with the fewest calls before them come first."""

    calls: int
    number: int
    seat: _Seat | None = field(compare=False)


class RayPool:
    """Objects in the actors of a cluster, each call going to one that is free.

    All methods but `close` must be called in one event loop.

    Args:
        makers: Picklable functions that make an object each, or an awaitable of it.
        resources: The resources that an actor takes, from `places`.
        calls: The most calls to an object at once.
        errors: Exceptions of the objects' methods that are raised here as they are.
        passing: Those of `errors` after which an object rests for a while, if there are others.

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
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

        self._lost = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError)
        self._resources, self._calls, self._errors, self._passing = resources, calls, errors, passing
        nodes = itertools.cycle([None] if resources else sorted(nodes_of_cluster()))
        self._seats = [_Seat(make, node) for make, node in zip(makers, nodes, strict=False)]
        self._turns: asyncio.PriorityQueue[_Turn] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    async def ready(self, everyone: bool = False) -> None:
        """Wait until the first object is made, or all of them.

        Raises:
            InputError: An object could not be made.
        """
        self._begin()
        while self._error is None and not (all if everyone else any)(seat.ready for seat in self._seats):
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:  # also where no seat is left
            raise self._error

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of an object that is free; repeated on another one if the object is lost.

        Raises:
            InputError: No object can be made any more, or every object that got this call was lost.
            Exception: Whatever the method raises.
        """
        self._begin()
        for _ in range(_MOST_LOSSES):
            turn, seat = await self._turn()
            try:
                outcome = await seat.actor.call.remote(method, arguments)
            except self._lost as error:
                self._replace(seat, error)
                continue
            except BaseException:
                self._turns.put_nowait(turn)
                raise
            if isinstance(outcome, self._passing):
                seat.rests_until = time.monotonic() + _REST
            self._turns.put_nowait(turn)
            if isinstance(outcome, self._errors):
                raise outcome
            return outcome
        raise InputError(
            f"{_MOST_LOSSES} processes of the Ray cluster ended over the same work; if it is their memory, "
            "lower `batch_size`. What is done is kept: run the same command again to resume"
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
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _fill(self, seat: _Seat) -> None:
        """Start an actor, and open it to calls once its object is made."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Ray may put actors that take no resources on one node.
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
        if seat.lost:  # another call has noticed it already
            return
        import ray

        seat.lost = True
        # An actor that was only unreachable would come back, and keep its GPU.
        ray.kill(seat.actor)
        self._seats.remove(seat)
        losses = 0 if seat.ready else seat.losses + 1
        # The line break keeps the warning off the line of a progress bar.
        where = f"on {seat.machine}" if seat.machine else "of the Ray cluster"
        logger.warning(f"\nlost a process {where} ({type(error).__name__}): its work is done again elsewhere")
        if losses < _MOST_LOSSES:
            self._seats.append(_Seat(seat.make, losses=losses))
            self._keep(self._fill(self._seats[-1]))
        elif not self._seats:
            self._fail(InputError(f"no process of the Ray cluster lives until it is ready: {error}"))

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._changed.set()
        self._turns.put_nowait(_Turn(-1, next(self._numbers), None))

    async def _turn(self) -> tuple[_Turn, _Seat]:
        while True:
            turn = await self._turns.get()
            if turn.seat is None:
                self._turns.put_nowait(turn)
                assert self._error is not None  # `_fail` sets it before
                raise self._error
            if turn.seat.lost:
                continue
            now = time.monotonic()
            wait = turn.seat.rests_until - now
            if wait <= 0 or all(seat.rests_until > now for seat in self._seats):
                return turn, turn.seat
            asyncio.get_running_loop().call_later(wait, self._turns.put_nowait, turn)

    async def _watch(self) -> None:
        """Warn that no machine has room, once each time that it begins."""
        warned = False
        while True:
            await asyncio.sleep(_PATIENCE)
            waiting = all(seat.machine is None for seat in self._seats)
            if waiting and not warned:
                needed = " and ".join(f"{n:g} {name[4:-1].upper()}" for name, n in self._resources.items())
                logger.warning(f"waiting for a machine of the Ray cluster with {needed or 'room'} free")
            warned = waiting
