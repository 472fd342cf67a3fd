"""A local model as teacher and as student."""

import asyncio
import json
import time

import pytest
from test_pipeline import generate

from edit_trl.errors import InputError
from edit_trl.questions import Question
from edit_trl.teachers.teacher import ChatRequest, MalformedResponse, NoAnswer, RawResponse, Sampling
from edit_trl.teachers.transformers_local import TransformersTeacher


def request(text: str, number: int = 0, **sampling) -> ChatRequest:
    settings = Sampling(**({"temperature": 0.0, "max_tokens": 8} | sampling))
    return ChatRequest("annotate", f"row {number}", "v1", (("user", text),), settings, number)


def ask(folder, *requests: ChatRequest, **options) -> list:
    async def main():
        teacher = TransformersTeacher(str(folder), **options)
        raws = await asyncio.gather(*map(teacher.attempt, requests), return_exceptions=True)
        await teacher.close()
        return [teacher.read(raw) if isinstance(raw, RawResponse) else raw for raw in raws]

    return asyncio.run(main())


def test_batches_answer_as_single_prompts_do(saved_student):
    requests = [request(f"{'word ' * n}?", n) for n in range(5)]
    together = ask(saved_student, *requests, batch_size=3)
    alone = [ask(saved_student, one)[0] for one in requests]
    assert together == alone
    for answer in together:
        assert answer.model == str(saved_student)
        assert answer.finish_reason == ("length" if answer.completion_tokens == 8 else "stop")
    assert len({answer.prompt_tokens for answer in together}) == 5


def test_settings_are_kept_apart(saved_student):
    cold = [request("a?", n) for n in range(3)]
    warm = [request("a?", n, temperature=1.5, max_tokens=12) for n in range(3)]
    answers = ask(saved_student, *cold, *warm)
    assert answers[0] == answers[1] == answers[2]
    assert all(answer.completion_tokens <= 8 for answer in answers[:3])
    assert any(answer.completion_tokens > 8 for answer in answers[3:])


def test_a_prompt_over_the_context_is_no_answer(saved_student):
    long, short = ask(saved_student, request("word " * 2000), request("a?"))
    assert isinstance(long, NoAnswer)
    assert "longer than the model's context" in str(long)
    assert short.text is not None


def test_other_weights_are_another_teacher(saved_student, tmp_path):
    from conftest import tiny_llama

    before = request("a?").key(TransformersTeacher(str(saved_student)))
    assert request("a?").key(TransformersTeacher(str(saved_student))) == before
    tiny_llama(seed=1).save_pretrained(saved_student)
    assert request("a?").key(TransformersTeacher(str(saved_student))) != before


def test_what_cannot_be_loaded_or_read(tmp_path):
    with pytest.raises(InputError, match="no model could be loaded from"):
        asyncio.run(TransformersTeacher(str(tmp_path / "none")).check())
    for body in ("", "{}", "[]"):
        with pytest.raises(MalformedResponse):
            TransformersTeacher(str(tmp_path)).read(RawResponse(body, 0))


def test_a_student_goes_through_the_pipeline(saved_student, tmp_path):
    """An untrained one writes nothing that can be read: counted, and nothing comes of it."""
    questions = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1)) for n in range(4)]
    teacher = TransformersTeacher(str(saved_student))
    started = time.monotonic()
    made, dispatcher = generate(tmp_path / "run", teacher, questions, max_tokens=8)
    assert sum(made.counts["annotate"].values()) == 4
    assert set(made.counts["annotate"]) <= {"unparsed", "cut off"}
    assert dispatcher.stats.models == {str(saved_student): 4}
    assert json.dumps(made.failures) == "[]"
    assert time.monotonic() - started < 60
