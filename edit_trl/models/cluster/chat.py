"""Teachers and students on a Ray cluster (L3): a process for each endpoint, one a GPU for local models.

Journal, pacing, retries and cost stay with the process that runs the command, and so does what they promise:
a response is committed there before anything is read from it. A journal in each actor would promise no
more: an actor ends with its machine, whose disk goes with it, or with the command, which it belongs to; and
SQLite does not lock reliably in a folder that machines share. What can be lost are the responses that were
under way to a machine that dies, as they are where a connection breaks; those are asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

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


def on_ray(teachers: Mapping[str, Teacher], actors: int | None, calls: int) -> dict[str, Teacher]:
    """The same teachers, asked and loaded by the machines of a cluster.

    Args:
        teachers: By what they are called; nothing is sent or loaded yet. Models that are loaded share their
            actors, as they would share one machine.
        actors: How many actors load them; see `edit_trl.models.cluster.cluster.places`.
        calls: The most requests to an actor at once.

    Raises:
        InputError: No cluster, or no room in it.
    """
    connect()
    moved: dict[str, Teacher] = {}
    local = {who: one for who, one in teachers.items() if not isinstance(one, OpenAICompatibleTeacher)}
    if local:
        count, resources = places(actors)
        make = partial(host, {who: (one.makers()[0], one.address) for who, one in local.items()})
        pool = RayPool([make] * count, resources, calls=calls, errors=_ERRORS)
        moved |= {who: RayTeacher(one, pool, who) for who, one in local.items()}
    for who, one in teachers.items():
        if who not in local:
            makers = [partial(host, {who: (make, None)}) for make in one.makers()]
            pool = RayPool(makers, {}, calls=calls, errors=_ERRORS, passing=(TryAgain,))
            moved[who] = RayTeacher(one, pool, who, everywhere=True)
    return moved


class RayTeacher:
    """A `Teacher` whose attempts are made in the actors of a pool.

    Args:
        here: The same teacher in this process, which reads what the others bring.
        pool: Where `TeacherHost`s are.
        who: What they call it.
        everywhere: Whether all of them must be ready before the first request.
    """

    def __init__(self, here: Teacher, pool: RayPool, who: str, *, everywhere: bool = False):
        self.model, self.address = here.model, here.address
        self._here, self._pool, self._who, self._everywhere = here, pool, who, everywhere

    async def check(self) -> None:
        """See `Teacher.check`."""
        await self._pool.ready(everyone=self._everywhere)

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """See `Teacher.attempt`."""
        return await self._pool.call("attempt", self._who, request)

    def read(self, raw: RawResponse) -> ChatResponse:
        """See `Teacher.read`."""
        return self._here.read(raw)

    async def close(self) -> None:
        """See `Teacher.close`."""
        self._pool.close()
        await self._here.close()


class TeacherHost:
    """The teachers of one actor.

    Args:
        teachers: By what they are called.
    """

    def __init__(self, teachers: Mapping[str, Teacher]):
        self._teachers = teachers

    async def attempt(self, who: str, request: ChatRequest) -> RawResponse:
        """See `Teacher.attempt`."""
        return await self._teachers[who].attempt(request)


async def host(makers: Mapping[str, tuple[Callable[[], Teacher], str | None]]) -> TeacherHost:
    """Make teachers, and see that they can answer.

    Args:
        makers: How each is made, and its address where the command runs, if it must be the same.

    Raises:
        InputError: One cannot be reached or loaded, or is another one here.
    """
    teachers = {who: make() for who, (make, _) in makers.items()}
    for who, (_, address) in makers.items():
        if address not in (None, teachers[who].address):
            raise InputError(
                f"{teachers[who].model} has other weights than where the command runs; put the same on every "
                "machine, or a folder that all of them share"
            )
    await asyncio.gather(*(teacher.check() for teacher in teachers.values()))
    return TeacherHost(teachers)
