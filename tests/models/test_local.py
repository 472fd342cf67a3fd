"""A local model as teacher and as student."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
import torch
from conftest import CHAT_TEMPLATE, tiny_llama
from scripted_teacher import generate
from thinking_models import taught, thinking_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.limits import Limits
from edit_trl.models.chat.local import TransformersTeacher
from edit_trl.models.chat.protocol import ChatRequest, MalformedResponse, NoAnswer, RawResponse, Sampling
from edit_trl.models.chat_templates import check_variables, render
from edit_trl.models.decoding import Decoding
from edit_trl.models.drawing import Draws
from edit_trl.models.generation import Engine
from edit_trl.models.identity import model_hash


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


def test_prompts_of_similar_lengths_are_batched_and_samples_share_their_prompt(saved_student, monkeypatch):
    batches = []
    generate = Engine.generate

    def watched(self, prompts, *args, **kwargs):
        batches.append([len(prompt) for prompt in prompts])
        return generate(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Engine, "generate", watched)
    requests = [replace(request("word " * (n % 3 * 9) + "?", n), sample=n) for n in range(12)]
    answers = ask(saved_student, *requests, batch_size=4)
    assert [len(set(batch)) for batch in batches] == [1, 1, 1]
    assert [batch[0] for batch in batches] == sorted((batch[0] for batch in batches), reverse=True)
    batches.clear()
    assert ask(saved_student, *requests) == answers
    assert len(batches) == 1


def test_a_model_that_is_loaded_has_as_many_requests_as_fill_its_batches(saved_student, tmp_path):
    teacher = TransformersTeacher(str(saved_student))
    with Journal(tmp_path) as journal:
        assert Dispatcher(teacher, journal).pacer.limit == teacher.requests_at_once
        assert Dispatcher(teacher, journal, Limits(max_concurrency=16)).pacer.limit == 16


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


def going_on(text: str, begun: str, **sampling) -> ChatRequest:
    asked = request(text, **sampling)
    return replace(asked, messages=(*asked.messages, ("assistant", begun)))


@pytest.mark.parametrize("template", [True, False])
def test_an_answer_that_was_begun_is_gone_on_with(saved_student, template):
    """As text: what is begun stands where the model would have written it."""
    tokenizer = AutoTokenizer.from_pretrained(saved_student)
    if not template:
        tokenizer.chat_template = None
        (saved_student / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(saved_student)
    prompt = "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n" if template else "a?\n"
    ids = tokenizer(f"{prompt}White: 2 / 2 = 1 bolt.", return_tensors="pt", add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(saved_student)
    expected = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].size(1) :]
    (answer,) = ask(saved_student, going_on("a?", "White: 2 / 2 = 1 bolt."))
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).rstrip()
    assert answer.prompt_tokens == ids["input_ids"].size(1)


def test_the_space_before_a_continuation_is_kept(saved_student):
    tokenizer = AutoTokenizer.from_pretrained(saved_student)
    token = tokenizer(" Therefore", add_special_tokens=False)["input_ids"]
    teacher = TransformersTeacher(str(saved_student))
    asyncio.run(teacher.check())
    asked = going_on("a?", "So it is.")
    raw = teacher._raw(asked, teacher._encode(asked), token, 0.0)
    assert teacher.read(raw).text == " Therefore"
    raw = teacher._raw(request("a?"), teacher._encode(request("a?")), token, 0.0)
    assert teacher.read(raw).text == "Therefore"


def test_seeds_decide_what_is_drawn_whatever_the_batch(saved_student):
    drawn = [replace(request("a?", n, temperature=1.0), seed=5 + n) for n in range(4)]
    together = ask(saved_student, *drawn, batch_size=4)
    assert ask(saved_student, drawn[2], replace(request("other?", temperature=1.0), seed=1))[0] == together[2]
    assert [ask(saved_student, one)[0] for one in drawn] == together
    assert len({answer.text for answer in together}) == 4
    cold = replace(request("a?"), seed=5)
    assert ask(saved_student, cold) == ask(saved_student, request("a?"))


def test_a_seeded_draw_is_a_draw_from_the_model():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).log_softmax(-1)
    decoding = Decoding(temperature=2.0, top_p=0.85)
    draws = Draws(decoding, range(4000)).pick(logits.expand(4000, -1), torch.arange(4000), step=3)
    counts = torch.bincount(draws, minlength=4) / 4000
    kept = (logits[0] / 2).softmax(-1) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert torch.allclose(counts, kept / kept.sum(), atol=0.03)


def test_models_that_are_loaded_at_once_have_their_heads(saved_student, tmp_path):
    """As teacher and student of a recipe are. Loading leaves transformers as it was, too."""
    tied = tiny_llama()
    tied.config.tie_word_embeddings = True
    type(tied)(tied.config).save_pretrained(saved_student)
    tie_weights = PreTrainedModel.tie_weights

    async def load() -> None:
        teachers = [TransformersTeacher(str(saved_student)) for _ in range(6)]
        await asyncio.gather(*(teacher.check() for teacher in teachers))
        for teacher in teachers:
            model = teacher._engine.model
            assert model.lm_head.weight is model.model.embed_tokens.weight

    asyncio.run(load())
    assert PreTrainedModel.tie_weights is tie_weights


def test_other_weights_are_another_teacher(saved_student, tmp_path):
    before = request("a?").key(TransformersTeacher(str(saved_student)))
    assert request("a?").key(TransformersTeacher(str(saved_student))) == before
    tiny_llama(seed=1).save_pretrained(saved_student)
    assert request("a?").key(TransformersTeacher(str(saved_student))) != before


def test_what_cannot_be_loaded_or_read(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
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


THINKS = CHAT_TEMPLATE.replace("assistant\n{%", "assistant\n{% if hidden is not defined %}<think>\n{% endif %}{%")
"""Opens the thoughts in the prompt, as R1's template, if it is not told otherwise."""


@pytest.fixture
def thinker(tmp_path):
    """A student that has learnt to think by heart."""
    tokenizer = thinking_tokenizer("think", special=False)
    tokenizer.chat_template = THINKS
    prompt = render(tokenizer, [{"role": "user", "content": "a?"}], add_generation_prompt=True)
    model = taught(tokenizer, {prompt: "2 + 2 = 4.\n</think>\n\nThe answer is 4."})
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "thinker")
    return tmp_path / "thinker"


def test_thoughts_that_the_prompt_opens_are_part_of_the_answer(thinker):
    (answer,) = ask(thinker, request("a?", max_tokens=60))
    assert (answer.text, answer.finish_reason) == ("<think>\n2 + 2 = 4.\n</think>\n\nThe answer is 4.", "stop")
    short, shorter = ask(thinker, *(request("a?", max_tokens=60, max_thinking_tokens=limit) for limit in (30, 5)))
    assert short == answer
    assert (shorter.finish_reason, shorter.completion_tokens) == ("length", 5)
    assert split_thoughts(shorter.text).answer is None
    # A beginning of the answer goes on where the prompt stops, and not with thoughts that are opened twice.
    (rest,) = ask(thinker, going_on("a?", "<think>\n2 + 2", max_tokens=60))
    assert rest.text == " = 4.\n</think>\n\nThe answer is 4."


def test_values_of_the_chat_template_reach_the_prompt_and_the_key(thinker):
    plain = TransformersTeacher(str(thinker))
    given = TransformersTeacher(str(thinker), chat_template_kwargs={"hidden": 1})
    asked = request("a?")
    assert plain.address == f"weights {model_hash(str(thinker))}"
    assert given.address == plain.address + ' {"hidden": 1}'
    assert asked.key(given) != asked.key(plain)
    assert given.makers()[0]().address == given.address
    with_values, without = (ask(thinker, asked, chat_template_kwargs=values)[0] for values in ({"hidden": 1}, None))
    assert with_values.prompt_tokens < without.prompt_tokens


def test_values_that_the_chat_template_does_not_know_are_named_before_the_model_is_loaded(thinker, tokenizer):
    teacher = TransformersTeacher(str(thinker), chat_template_kwargs={"hiden": 1})
    with pytest.raises(InputError, match="has no variable 'hiden'; did you mean `hidden`"):
        asyncio.run(teacher.check())
    assert teacher._engine is None
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template; leave them out"):
        check_variables(tokenizer, {"hidden": 1})


def test_a_limit_for_thoughts_is_part_of_a_local_answers_key(thinker):
    teacher = TransformersTeacher(str(thinker))
    assert request("a?", max_thinking_tokens=5).key(teacher) != request("a?").key(teacher)
