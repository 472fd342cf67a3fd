"""The engine: what it draws, in which order, and what it leaves alone."""

import asyncio

import pytest
import torch
from accelerate.utils import is_peft_model

from edit_trl.models.decoding import Decoding
from edit_trl.models.generation import Engine, Stream
from edit_trl.models.loading import ModelSource


@pytest.fixture
def engine(saved_student):
    return Engine(*ModelSource(str(saved_student), attn_implementation="sdpa").load())


@pytest.fixture
def prompts(engine):
    return [engine.tokenizer(f"{'word ' * count}?")["input_ids"] for count in (1, 4, 2)]


def test_padding_does_not_change_responses(engine, prompts):
    together = engine.generate(prompts, Decoding(8))
    alone = [engine.generate([prompt], Decoding(8))[0] for prompt in prompts]
    for batched, single in zip(together, alone, strict=True):
        assert engine.split_at_eos(batched) == engine.split_at_eos(single)


def test_responses_come_in_the_order_of_the_prompts_when_scheduled(engine, prompts):
    assert not is_peft_model(engine.model)
    assert engine.can_schedule
    padded = engine.generate(prompts, Decoding(8))
    scheduled = engine.schedule(prompts, Decoding(8))
    assert [engine.split_at_eos(ids) for ids in scheduled] == [engine.split_at_eos(ids) for ids in padded]


def test_a_stream_answers_prompts_that_arrive_one_at_a_time(engine, prompts):
    async def answers():
        stream = Stream(engine, Decoding(8))
        try:
            return await asyncio.gather(*(stream.generate(prompt) for prompt in prompts))
        finally:
            await asyncio.to_thread(stream.close)

    expected = [engine.split_at_eos(ids) for ids in engine.generate(prompts, Decoding(8))]
    assert [engine.split_at_eos(ids) for ids in asyncio.run(answers())] == expected


def test_a_seed_per_prompt_draws_alike_in_any_batch(engine, prompts):
    decoding = Decoding(8, temperature=1.0)
    together = engine.generate(prompts, decoding, seeds=[1, 2, 3])
    assert engine.generate(prompts[2:], decoding, seeds=[3]) == together[2:]
    assert engine.generate(prompts[2:], decoding, seeds=[4]) != together[2:]


@pytest.mark.parametrize("seeds", [None, [1, 2, 3]])
def test_the_random_state_is_left_alone(engine, prompts, seeds):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = engine.generate(prompts, Decoding(8, temperature=1.0), seed=5, seeds=seeds)
    assert torch.equal(torch.rand(3), expected)
    assert engine.generate(prompts, Decoding(8, temperature=1.0), seed=5, seeds=seeds) == first


def test_the_end_of_a_response(engine):
    eos = engine.eos_ids[0]
    assert engine.split_at_eos([5, 6, eos, 7]) == ([5, 6], True)
    assert engine.split_at_eos([5, 6]) == ([5, 6], False)
