"""The engine: what it draws, in which order, and what it leaves alone."""

import asyncio
import math

import pytest
import torch
from accelerate.utils import is_peft_model
from conftest import tiny_llama
from tiny_models import MODELS, TINY
from transformers import MambaConfig, MambaForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.cache_utils import DynamicLayer

from edit_trl.common.errors import InputError
from edit_trl.models.decoding import Decoding, pack
from edit_trl.models.drawing import Contrast, Draws, _RoomyLayer
from edit_trl.models.generation import Engine, ModelGenerator
from edit_trl.models.loading import ModelSource
from edit_trl.models.scheduling import Stream


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


def test_responses_that_end_leave_the_batch_and_change_no_other(engine, prompts, monkeypatch):
    """A sixth of the vocabulary ends a response, so a batch of 24 loses some at almost every step."""
    vocabulary = engine.model.config.vocab_size
    engine.eos_ids = list(range(0, vocabulary, 6))
    decoding, sizes = Decoding(12, temperature=1.0), []
    forward = engine.model.forward

    def watched(*args, **kwargs):
        sizes.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    alone = [engine.generate([prompt], decoding, seeds=[seed])[0] for seed in range(8) for prompt in prompts]
    monkeypatch.setattr(engine.model, "forward", watched)
    seeds = [seed for seed in range(8) for _ in prompts]
    together = engine.generate(prompts * 8, decoding, seeds=seeds)
    assert [engine.split_at_eos(ids) for ids in together] == [engine.split_at_eos(ids) for ids in alone]
    # Each prompt is computed once, then one token of each response that has not left.
    assert sizes[0] == (3, max(map(len, prompts)))
    assert sizes[1][0] <= 24
    assert sizes[-1][0] < 12
    assert all(length == 1 for _, length in sizes[1:])


def test_models_that_keep_offsets_by_row_keep_their_batch(engine, prompts):
    decoding = Decoding(6, temperature=1.0)
    expected = engine.generate(prompts[:1] * 3, decoding, seeds=[1, 2, 3])
    engine.model.model.rope_deltas = None  # as Qwen2-VL has
    assert engine.generate(prompts[:1] * 3, decoding, seeds=[1, 2, 3]) == expected


def test_the_nucleus_leaves_out_the_unlikely_and_every_seed_has_its_stream():
    logits = torch.tensor([[2.0, 1.0, -5.0]])
    draws = Draws(Decoding(4, temperature=1.0, top_p=0.9), range(300))
    tokens = draws.pick(logits.expand(300, -1), torch.arange(300), 0)
    assert set(tokens.tolist()) == {0, 1}
    some = draws.pick(logits.expand(5, -1), torch.tensor([7, 3, 250, 0, 9]), 0)
    assert torch.equal(some, tokens[[7, 3, 250, 0, 9]])
    assert not torch.equal(draws.pick(logits.expand(300, -1), torch.arange(300), 1), tokens)


def test_contrastive_scores_by_hand():
    """Of three tokens one is below the cut-off, and the likeliest loses to one that the other model finds unlikely."""
    logits = torch.tensor([[0.6, 0.37, 0.03]]).log()
    others = torch.tensor([[0.8, 0.1, 0.1]]).log()
    scores = Contrast(None, weight=0.5, cutoff=0.1).scores(logits, others)
    expected = [1.5 * math.log(0.6) - 0.5 * math.log(0.8), 1.5 * math.log(0.37) - 0.5 * math.log(0.1), -math.inf]
    assert scores[0].tolist() == pytest.approx(expected)
    assert scores.argmax() == 1
    # Without a weight the order is the model's own; with a cut-off of 1 only its likeliest token is left.
    assert torch.equal(Contrast(None, 0.0, 0.01).scores(logits, others).argsort(), logits.argsort())
    assert torch.equal(Contrast(None, 0.5, 1.0).scores(logits, others).isfinite(), logits == logits.max())


def test_decoding_against_another_model(engine, prompts):
    other = tiny_llama(engine.model.config.vocab_size, seed=5).eval()
    plain = engine.generate(prompts, Decoding(8))
    same = Engine(engine.model, engine.tokenizer, Contrast(other, weight=0.0, cutoff=0.1))
    assert same.generate(prompts, Decoding(8)) == plain
    against = Engine(engine.model, engine.tokenizer, Contrast(other, weight=1.0, cutoff=0.01))
    responses = against.generate(prompts * 2, Decoding(8))
    assert responses[:3] != plain
    assert not against.can_schedule
    # Token by token, without caches and batches.
    ids, scores = list(prompts[0]), against._contrast.scores
    for token in responses[0]:
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[:, -1].float() for model in (engine.model, other)]
        assert token == scores(*logits).argmax().item()
        ids.append(token)
        if token in engine.eos_ids:
            break
    with pytest.raises(InputError, match="a model of 500 tokens beside one of"):
        Engine(engine.model, engine.tokenizer, Contrast(tiny_llama(500)))


def mamba():
    sizes = {name: TINY[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}
    return MambaForCausalLM(MambaConfig(**sizes, state_size=4, eos_token_id=2))


def linear_attention():
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    heads |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    experts |= {"shared_expert_intermediate_size": 32}
    kinds = ["linear_attention", "full_attention"]
    return Qwen3NextForCausalLM(Qwen3NextConfig(**TINY, **heads, **experts, layer_types=kinds))


@pytest.mark.parametrize(
    "make", [*MODELS.values(), mamba, linear_attention], ids=[*MODELS, "mamba", "linear_attention"]
)
def test_every_kind_of_cache_draws_what_transformers_does(make, tokenizer):
    """Greedily, one prompt at a time without our loop; in ours, rows are copied and leave."""
    torch.manual_seed(1)
    model = make().eval()
    engine = Engine(model, tokenizer)
    engine.eos_ids = [399]
    prompts = [tokenizer(text)["input_ids"] for text in ("word " * 30, "two words?", "One, or three of them.", "x")]
    if model.config.model_type == "mamba":  # which knows no padding
        prompts = [prompt[:2] for prompt in prompts[:3]]

    def alone(prompt: list[int]) -> list[int]:
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), generation_config=engine.settings(Decoding(12)))
        return ids[0, len(prompt) :].tolist()

    # The third token of the first response is an EOS from here on, so that this response leaves at least.
    engine.eos_ids = [alone(prompts[0])[2]]
    expected = [engine.split_at_eos(alone(prompt)) for prompt in prompts]
    assert expected[0][1]
    together = engine.generate([prompt for prompt in prompts for _ in range(2)], Decoding(12))
    assert [engine.split_at_eos(ids) for ids in together[::2]] == expected
    assert together[::2] == together[1::2]


def test_batches_hold_so_many_tokens_and_the_longest_come_first():
    lengths = [10, 500, 20, 490, 30]
    assert pack(lengths, 100, batch_size=2) == [[1, 3], [4, 2], [0]]
    assert pack(lengths, 100, samples=2, batch_size=4) == [[1, 3], [4, 2], [0]]
    assert pack(lengths, 100, samples=8, batch_size=4) == [[1], [3], [4], [2], [0]]
    assert pack([], 100) == []
    long = pack([1500] * 25 + [10] * 600, 100)
    assert [len(batch) for batch in long] == [20, 20, 256, 256, 73]
    assert long[1] == [*range(20, 40)]
    assert [len(batch) for batch in pack([9000] * 20, 8000)] == [16, 4]


def test_a_cache_with_room_is_that_of_transformers():
    """Beyond its room, after rows were taken, and where the keys have another size than the values."""
    generator = torch.Generator().manual_seed(0)
    roomy, plain = _RoomyLayer(), DynamicLayer()
    rows = 3
    for new in [5, *[1] * 70, 90, 1]:
        keys, values = (torch.rand(rows, 2, new, size, generator=generator) for size in (4, 6))
        for mine, theirs in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()
        if plain.get_seq_length() % 20 == 0:
            taken = torch.tensor([2, 0])[: max(1, rows - 1)] % rows
            rows = len(taken)
            roomy.reorder_cache(taken)
            plain.reorder_cache(taken)


def out_of_memory_above(engine, monkeypatch, most):
    """Let the model run out of memory with more rows than `most`, as a GPU does; returns the sizes that were tried."""
    forward, tried = engine.model.forward, []

    def limited(*args, **kwargs):
        rows = len(kwargs["input_ids"])
        tried.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", limited)
    return tried


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(engine, prompts, monkeypatch, caplog):
    decoding, seeds = Decoding(4, temperature=1.0), list(range(12))
    asked = [prompt for prompt in prompts for _ in range(4)]
    expected = engine.generate(asked, decoding, seeds=seeds)
    tried = out_of_memory_above(engine, monkeypatch, 3)
    with caplog.at_level("WARNING"):
        assert engine.generate(asked, decoding, seeds=seeds) == expected
    assert "out of memory with 12 responses at once; going on with 6" in caplog.text
    assert "out of memory with 6 responses at once; going on with 3" in caplog.text
    tried.clear()
    assert engine.generate(asked, decoding, seeds=seeds) == expected
    assert max(tried) <= 3  # what did not fit is not tried again
    out_of_memory_above(engine, monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(prompts, decoding, seeds=[1, 2, 3])


def test_a_scheduler_without_memory_is_left_for_padded_batches(engine, prompts, monkeypatch, caplog):
    options = {"batch_size": 2, "batching": "continuous"}
    generator = ModelGenerator(engine.model, engine.tokenizer, Decoding(4), **options)
    batches = generator.plan([*map(len, prompts)])
    expected = list(generator.run(prompts, batches))

    def full(*args, **kwargs):
        raise RuntimeError("continuous batching answered 0 of 3 prompts (CUDA out of memory. Tried)")

    monkeypatch.setattr(generator.engine, "schedule", full)
    with caplog.at_level("WARNING"):
        assert list(generator.run(prompts, batches)) == expected
    assert generator.batching == "padded"
    assert caplog.text.count("continuous batching ran out of memory") == 1
