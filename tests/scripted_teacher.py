"""A teacher that answers by a function of the request, and the pipeline run with it."""

import asyncio
import json
import random
from pathlib import Path

from edit_trl.models.chat.dispatch import Dispatcher, Limits
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import ChatResponse, RawResponse
from edit_trl.teachers.generation import Generation, PipelineOptions
from edit_trl.teachers.pipeline import make_dual_cots


def generate(folder: Path, teacher, questions, *, student=None, exemplars=(), watch=None, **options):
    async def main() -> tuple[Generation, Dispatcher]:
        with Journal(folder) as journal:
            dispatcher = Dispatcher(teacher, journal, Limits(max_concurrency=16))
            made = await make_dual_cots(
                questions,
                dispatcher,
                options=PipelineOptions(**options),
                exemplars=exemplars,
                student=None if student is None else Dispatcher(student, journal),
                watcher=watch and watch(dispatcher),
            )
            await teacher.close()
            return made, dispatcher

    return asyncio.run(main())


class Scripted:
    """A teacher that says what a function of the request says, after a while of its own."""

    model, address, requests_at_once = "scripted", "", None

    def __init__(self, say, seed: int | None = None):
        self.say, self.rng, self.asked = say, None if seed is None else random.Random(seed), []

    async def check(self):
        pass

    async def attempt(self, request):
        self.asked.append(request)
        if self.rng:
            await asyncio.sleep(self.rng.random() / 100)
        said = self.say(request)
        text, reason = said if isinstance(said, tuple) else (said, "stop")
        return RawResponse(json.dumps([text, reason]), 0.0)

    def read(self, raw):
        return ChatResponse(*json.loads(raw.body), self.model, 3, 2)

    async def close(self):
        pass
