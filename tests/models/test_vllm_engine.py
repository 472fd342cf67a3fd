"""Answers by vLLM: what is asked of it, and that its responses are read as ours are."""

import asyncio

import pytest
import vllm_stand_in
from peft import LoraConfig, get_peft_model

from edit_trl.common.errors import InputError
from edit_trl.evaluation.accuracy.generators import load_generator
from edit_trl.models.chat.local import TransformersTeacher
from edit_trl.models.chat.protocol import ChatRequest, Sampling
from edit_trl.models.decoding import Decoding, check_batching
from edit_trl.models.loading import ModelSource


@pytest.fixture
def vllm(monkeypatch):
    return vllm_stand_in.install(monkeypatch)


def adapter(saved_student, folder):
    model, tokenizer = ModelSource(str(saved_student)).load()
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    peft.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_without_vllm_it_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match="pip install vllm"):
        check_batching("vllm", None)
    with pytest.raises(InputError, match="pip install vllm"):
        TransformersTeacher(str(tmp_path / "none"), batching="vllm")


@pytest.mark.parametrize("samples", [1, 3])
def test_an_evaluation_reads_the_same_responses(saved_student, vllm, samples):
    source, decoding = ModelSource(str(saved_student)), Decoding(8, 1.0 if samples > 1 else 0.0, samples=samples)
    prompts = [source.load_tokenizer()(text)["input_ids"] for text in ("a?", "word word?")]
    drawn = {}
    for batching in ("padded", "vllm"):
        generator, _, positions, _ = load_generator(source, decoding, batch_size=None, batching=batching, seed=3)
        drawn[batching] = dict(
            pair
            for batch, responses in generator.run(prompts, generator.plan([*map(len, prompts)]))
            for pair in zip(batch, responses, strict=True)
        )
    assert drawn["vllm"] == drawn["padded"]
    assert positions == 512
    seeds = [settings.seed for settings, _ in vllm.made[0].asked]
    assert len(set(seeds)) == 2 * samples


def test_an_adapter_is_applied_by_vllm(saved_student, tmp_path, vllm):
    source, decoding = ModelSource(adapter(saved_student, tmp_path / "adapter")), Decoding(8)
    prompts = [source.load_tokenizer()("a?")["input_ids"]]
    expected = load_generator(source, decoding, batch_size=None, batching="padded", seed=0)[0]
    generator = load_generator(source, decoding, batch_size=None, batching="vllm", seed=0)[0]
    assert list(generator.run(prompts, [[0]])) == list(expected.run(prompts, [[0]]))
    (llm,) = vllm.made
    assert llm.model == str(saved_student)
    ((_, request),) = llm.asked
    assert request.lora_path == source.model


def test_a_student_that_writes_chains_is_asked_by_vllm(saved_student, vllm):
    sampling = Sampling(temperature=1.0, max_tokens=8, stop=("never",))
    requests = [
        ChatRequest("student", f"row {row}", "v1", (("user", f"{row}?"),), sampling, sample, seed=5)
        for row in range(3)
        for sample in range(2)
    ]

    async def ask(batching):
        teacher = TransformersTeacher(str(saved_student), batching=batching)
        raws = await asyncio.gather(*map(teacher.attempt, requests))
        await teacher.close()
        return [teacher.read(raw) for raw in raws]

    assert asyncio.run(ask("vllm")) == asyncio.run(ask("padded"))
    asked = [settings for settings, _ in vllm.made[0].asked]
    assert len({settings.seed for settings in asked}) == 6
    assert all(settings.stop == ["never"] and settings.max_tokens == 8 for settings in asked)
