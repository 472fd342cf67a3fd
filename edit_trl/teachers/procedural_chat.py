"""The procedural teacher behind the interface of the others (L3), so that the pipeline runs offline.

It knows its own problems and answers by the stage of a request: annotating rightly or wrongly, rectifying
with the right chain, corrupting with the wrong one. Which it is follows from the request, so a run can be
repeated. What it writes goes through the same parsing and checks as any teacher's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from edit_trl.common.errors import InputError
from edit_trl.data.procedural.families import Family
from edit_trl.data.procedural.teacher import ProceduralTeacher, question_of
from edit_trl.data.questions import Question
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, NoAnswer, RawResponse


class ProceduralChat:
    """Answers prompts about its own problems.

    Args:
        families: Families of problems; all by default.
        rows: How many problems.
        seed: Another seed, other problems.
        difficulty: 1 to 5.
        wrong_share: How often it annotates with a wrong chain, 0 to 1.

    Raises:
        InputError: As `ProceduralTeacher`, or a share out of range.
    """

    def __init__(
        self,
        families: Sequence[Family] | None = None,
        *,
        rows: int = 100,
        seed: int = 0,
        difficulty: int = 1,
        wrong_share: float = 0.4,
    ):
        if not 0 <= wrong_share <= 1:
            raise InputError(f"`wrong_share` must be from 0 to 1, got {wrong_share}")
        teacher = ProceduralTeacher(families, seed=seed, difficulty=difficulty)
        self._rows = list(teacher.rows(rows))
        self._wrong_share = wrong_share
        self.model = "procedural"
        self.address = f"seed {seed}, difficulty {difficulty}, wrong share {wrong_share}"

    def questions(self) -> list[Question]:
        """The problems, to be asked about."""
        return [question_of(row) for row in self._rows]

    async def check(self) -> None:
        """It is always there."""

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Answer for the last of its problems that the prompt holds; see `Teacher.attempt`."""
        prompt = request.messages[-1][1]
        places = [(prompt.rfind(row["prompt"]), number) for number, row in enumerate(self._rows)]
        place, number = max(places)
        if place < 0:
            raise NoAnswer("the procedural teacher knows no other problems than its own")
        text = self._text(request, self._rows[number])
        body = {"text": text, "prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        return RawResponse(json.dumps(body), 0.0)

    def read(self, raw: RawResponse) -> ChatResponse:
        """See `Teacher.read`."""
        body = json.loads(raw.body)
        return ChatResponse(
            body["text"], "stop", self.model, body["prompt_tokens"], body["completion_tokens"]
        )

    async def close(self) -> None:
        """Nothing is open."""

    def _text(self, request: ChatRequest, row: dict) -> str:
        rng = random.Random(f"{request.stage}/{row['id']}/{request.sample}")
        if request.stage in ("annotate", "student"):
            return row["rejected" if rng.random() < self._wrong_share else "chosen"]
        if request.stage == "corrupt":
            return row["rejected"]
        if request.stage == "label":
            return "Kinds: other"
        if request.stage == "check" and "Verdict:" in request.messages[-1][1]:
            return "Verdict: sound"
        return row["chosen"]
