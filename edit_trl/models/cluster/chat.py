"""Teachers and students on a Ray cluster: one process per endpoint, and one per GPU for local models.

Journal, pacing, retries and cost stay in the process that runs the command: a response is committed there
before anything is read from it. A journal in each actor would not be safer. An actor ends with its machine, whose disk
is then gone, or with the command; and SQLite does not lock reliably in a folder that machines share. Only responses
that are in flight when a machine dies can be lost, as when a connection breaks. They are asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from edit_trl.common.errors import InputError
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    NoAnswer,
    RawResponse,
    Teacher,
    TeacherUnusable,
    TryAgain,
)
from edit_trl.models.cluster.cluster import connect, places
from edit_trl.models.cluster.pool import RayPool

_ERRORS = (InputError, TryAgain, NoAnswer, TeacherUnusable)


class MovableTeacher(Teacher, Protocol):
    """A teacher that other processes can make too."""

    def makers(self) -> Sequence[Callable[[], Teacher]]:
        """Return what makes the same teacher elsewhere: one function for any number of processes, or one for each."""
        ...


def on_ray(teachers: Mapping[str, MovableTeacher], actors: int | None, calls: int) -> dict[str, Teacher]:
    """Move teachers to the machines of a cluster, which load or ask them.

    Args:
        teachers: The teachers by role; nothing is sent or loaded yet. Local models share their actors, as
            they would share one machine.
        actors: How many actors load them; see `edit_trl.models.cluster.cluster.places`.
        calls: The most requests to an actor at once.

    Returns:
        A `RayTeacher` for each role.

    Raises:
        InputError: There is no cluster, or no room in it.
    """
    connect()
    moved: dict[str, Teacher] = {}
    local = {role: teacher for role, teacher in teachers.items() if not isinstance(teacher, OpenAICompatibleTeacher)}
    if local:
        count, resources = places(actors)
        make = partial(host, {role: (teacher.makers()[0], teacher.address) for role, teacher in local.items()})
        pool = RayPool([make] * count, resources, calls=calls, errors=_ERRORS)
        moved |= {role: RayTeacher(teacher, pool, role) for role, teacher in local.items()}
    for role, teacher in teachers.items():
        if role not in local:
            makers = [partial(host, {role: (make, None)}) for make in teacher.makers()]
            pool = RayPool(makers, {}, calls=calls, errors=_ERRORS, passing=(TryAgain,))
            moved[role] = RayTeacher(teacher, pool, role, everywhere=True)
    return moved


class RayTeacher:
    """A `Teacher` whose attempts are made in the actors of a pool.

    Args:
        here: The same teacher in this process, which reads the answers.
        pool: A pool of `TeacherHost`s.
        role: The teacher's role in them.
        everywhere: Whether all hosts must be ready before the first request.
    """

    requests_at_once = batching = None  # the pool spreads requests over its actors

    def __init__(self, here: Teacher, pool: RayPool, role: str, *, everywhere: bool = False):
        self.model, self.address, self.ends_thoughts = here.model, here.address, here.ends_thoughts
        self._here, self._pool, self._role, self._everywhere = here, pool, role, everywhere

    async def check(self) -> None:
        """See `Teacher.check`."""
        await self._pool.ready(everyone=self._everywhere)

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """See `Teacher.attempt`."""
        return await self._pool.call("attempt", self._role, request)

    def read(self, raw: RawResponse) -> ChatResponse:
        """See `Teacher.read`."""
        return self._here.read(raw)

    async def close(self) -> None:
        """See `Teacher.close`."""
        self._pool.close()
        await self._here.close()


class TeacherHost:
    """The teachers of one actor, by role."""

    def __init__(self, teachers: Mapping[str, Teacher]):
        self._teachers = teachers

    async def attempt(self, role: str, request: ChatRequest) -> RawResponse:
        """See `Teacher.attempt`."""
        return await self._teachers[role].attempt(request)


async def host(makers: Mapping[str, tuple[Callable[[], Teacher], str | None]]) -> TeacherHost:
    """Make the teachers of an actor, and check that they can answer.

    Args:
        makers: A function that makes each teacher, by role; and its address on the machine that runs the
            command, if it must be the same here.

    Raises:
        InputError: A teacher cannot be reached or loaded, or has another address here.
    """
    teachers = {role: make() for role, (make, _) in makers.items()}
    for role, (_, address) in makers.items():
        if address not in (None, teachers[role].address):
            raise InputError(
                f"{teachers[role].model} has other weights than where the command runs; put the same on every "
                "machine, or a folder that all of them share"
            )
    await asyncio.gather(*(teacher.check() for teacher in teachers.values()))
    return TeacherHost(teachers)
