"""The procedural teacher with the interface of the other teachers, so that the pipeline runs offline.

It only knows its own problems. It annotates with the right or the wrong chain, rectifies with the right one
and corrupts with the wrong one. The choice depends on the request alone, so a run can be repeated. Its
answers go through the same parsing and checks as those of any teacher.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edit_trl.common.checks import difficulty_range
from edit_trl.common.errors import raise_problems
from edit_trl.common.steps import step_spans
from edit_trl.data.mistake_views import critique_of
from edit_trl.data.procedural.teacher import ProceduralTeacher, question_of
from edit_trl.data.questions import Question
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, NoAnswer, RawResponse


class ProceduralChat:
    """Answers prompts about problems of `ProceduralTeacher`; a share of its annotations is wrong.

    Args:
        families: The families of the problems, in turn.
        rows: Number of problems.
        seed: See `ProceduralTeacher`.
        difficulty: See `ProceduralTeacher`; of several, each in turn. It is part of a problem's id, as `/d2/`.
        wrong_share: The share of wrong annotations, of all problems or by difficulty.

    Raises:
        InputError: See `ProceduralTeacher`; or a share out of range, or a difficulty without one.
    """

    ends_thoughts = False
    requests_at_once = batching = None

    def __init__(
        self,
        families: Sequence[str] | None = None,
        *,
        rows: int = 100,
        seed: int = 0,
        difficulty: int | Sequence[int] = 1,
        wrong_share: float | Mapping[int, float] = 0.4,
    ):
        raise_problems(share_problems(difficulty, wrong_share))
        levels = [difficulty] if isinstance(difficulty, int) else list(difficulty)
        streams = [ProceduralTeacher(families, seed=seed, difficulty=level).rows(rows) for level in levels]
        self._rows = [next(streams[number % len(levels)]) for number in range(rows)]
        shares = wrong_share if isinstance(wrong_share, Mapping) else dict.fromkeys(levels, wrong_share)
        self._wrong_shares = [shares[levels[number % len(levels)]] for number in range(rows)]
        self.model = "procedural"
        self.address = f"seed {seed}, difficulty {difficulty}, wrong share {wrong_share}"

    def questions(self) -> list[Question]:
        """Return the questions of the problems."""
        return [question_of(row) for row in self._rows]

    async def check(self) -> None:
        """Does nothing: the teacher is always available."""

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Answer the last of its problems in the prompt; see `Teacher.attempt`."""
        prompt = request.messages[-1][1]
        position, number = max((prompt.rfind(str(row["prompt"])), i) for i, row in enumerate(self._rows))
        if position < 0:
            raise NoAnswer("the procedural teacher knows no other problems than its own")
        text = self._text(request, self._rows[number], self._wrong_shares[number])
        body = {"text": text, "prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        return RawResponse(json.dumps(body), 0.0)

    def read(self, raw: RawResponse) -> ChatResponse:
        """See `Teacher.read`."""
        body = json.loads(raw.body)
        return ChatResponse(body["text"], "stop", self.model, body["prompt_tokens"], body["completion_tokens"])

    async def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def _text(self, request: ChatRequest, row: Mapping[str, Any], wrong_share: float) -> str:
        rng = random.Random(f"{request.stage}/{row['id']}/{request.sample}")
        if request.stage in ("annotate", "student"):
            return row["rejected" if rng.random() < wrong_share else "chosen"]
        if request.stage == "corrupt":
            return row["rejected"]
        if request.stage == "label":
            return _steps_of_mistake(row) if "Steps:" in request.messages[-1][1] else "Kinds: other"
        if request.stage == "critique":
            return f"{critique_of(row)}\nVerdict: wrong"
        if request.stage == "check" and "Verdict:" in request.messages[-1][1]:
            return "Verdict: sound"
        return row["chosen"]


def share_problems(difficulty: int | Sequence[int], wrong_share: float | Mapping[int, float]) -> Iterator[str]:
    """Yield what is wrong with the difficulties and the shares of wrong annotations."""
    levels = [difficulty] if isinstance(difficulty, int) else list(difficulty)
    if not levels or len({*levels}) < len(levels):
        yield f"`difficulty` must be a difficulty, or a list of different ones, got {difficulty!r}"
    for level in levels:
        yield from difficulty_range(difficulty=level)
    shares: Mapping[Any, float] = wrong_share if isinstance(wrong_share, Mapping) else {None: wrong_share}
    yield from (
        f"`wrong_share` must be from 0 to 1, got {share}" + ("" if level is None else f" for difficulty {level}")
        for level, share in shares.items()
        if not 0 <= share <= 1
    )
    if isinstance(wrong_share, Mapping) and {*levels} != shares.keys():
        yield f"`wrong_share` has the difficulties {sorted(shares)}, and the problems have {sorted(levels)}"


def _steps_of_mistake(row: Mapping[str, Any]) -> str:
    """Return the step of the wrong chain in which its mistake begins."""
    first = min(start for start, _ in row["rejected_key_spans"] or [(0, 0)])
    number = next(n for n, (_, end) in enumerate(step_spans(row["rejected"]), 1) if first < end)
    return f"Steps: {number}"
