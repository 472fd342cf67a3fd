"""The numbers of a suite, held against plain logits and a loop over tokens."""

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from suite_rows import SEVERAL
from tiny_models import MODELS, TINY
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from edit_trl import evaluate_suite
from edit_trl.common.errors import InputError
from edit_trl.data.row import chain_text
from edit_trl.data.tokenization import tokenize_with_offsets
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import finish_run
from edit_trl.evaluation.runs.schema import Run, RunRecord, SuiteItem
from edit_trl.evaluation.runs.scores import mean_scores
from edit_trl.evaluation.runs.tables import run_table
from edit_trl.evaluation.suite import model_scorer as suite_model
from edit_trl.evaluation.suite.cases import cases_of
from edit_trl.evaluation.suite.evaluate_suite import score_cases
from edit_trl.evaluation.suite.model_scorer import ModelScorer


def adapted(model, **options):
    return get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False, **options))


def qwen3_next():
    """Layers that carry a state: no tree."""
    layers = ["linear_attention", "full_attention"]
    more = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "layer_types": layers}
    more |= {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}
    more |= {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")}
    more |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**TINY, **more))


STUDENTS = {
    "llama": tiny_llama,
    "qwen3": MODELS["qwen3"],
    "gemma2": MODELS["gemma2"],
    "gemma3": MODELS["gemma3"],
    "gpt2": MODELS["gpt2"],
    "lora": lambda: adapted(tiny_llama()),
    "prompt_tuning": lambda: get_peft_model(
        tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
    "qwen3_next": qwen3_next,
}

NO_TREE = ("prompt_tuning", "qwen3_next")


@torch.no_grad()
def naive_logits(model, ids: list[int]) -> torch.Tensor:
    """Of each position, the virtual tokens of an adapter left out."""
    return model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :].float()


def naive_chain(model, prompt: list[int], chain: list[int]) -> tuple[list[float], list[int]]:
    """Log-probability of each token of a chain, and the likeliest in its place."""
    logits = naive_logits(model, prompt + chain)[len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1)
    return [logps[place, token].item() for place, token in enumerate(chain)], logits.argmax(-1).tolist()


def naive_continuation(model, ids: list[int], eos: int, limit: int) -> list[int]:
    written: list[int] = []
    while len(written) < limit and eos not in written:
        written.append(naive_logits(model, ids + written)[-1].argmax().item())
    return written


def check_against_naive(model, tokenizer, row: dict, item: SuiteItem, limit: int) -> None:
    tokens, offsets = tokenize_with_offsets(row, tokenizer)
    means = {}
    for side in ("chosen", "rejected"):
        ids, mask = tokens[f"{side}_ids"], tokens[f"{side}_key_mask"]
        logps, best = naive_chain(model, tokens["prompt_ids"], ids)
        assert [logp for _, _, logp in item["tokens"][side]] == pytest.approx(logps, abs=2e-4)
        spans = [tuple(span) for *span, _ in item["tokens"][side] if span[0] < span[1]]
        assert spans == [span for span in offsets[side] if span[0] < span[1]]
        means[side] = sum(logps) / len(logps)
        key = [logp for logp, marked in zip(logps, mask, strict=True) if marked]
        means[f"{side}_key"] = sum(key) / len(key) if key else None
        if side == "chosen":
            wrong = next((n for n, pair in enumerate(zip(ids, best, strict=True)) if len({*pair}) > 1), None)
            if wrong is None:
                assert item["first_wrong"] is None
            else:
                turn = item["first_wrong"]
                assert turn["token"] == tokenizer.decode([ids[wrong]])
                assert turn["instead"] == tokenizer.decode([best[wrong]])
                assert turn["logp"] == pytest.approx(logps[wrong], abs=2e-4)
                assert turn["at_key"] == mask[wrong]
                start, end = offsets["chosen"][wrong]
                assert (turn["start"], turn["end"]) == (start, end)
    for name, value in means.items():
        assert item["logps"][name] == pytest.approx(value, abs=1e-4), name
    assert item["margin"] == pytest.approx(means["chosen"] - means["rejected"], abs=2e-4)
    assert item["preferred"] == (item["margin"] > 0)
    fork = tokens["fork"]
    written = naive_continuation(
        model, tokens["prompt_ids"] + tokens["chosen_ids"][:fork], tokenizer.eos_token_id, limit
    )
    branches = {tokens["rejected_ids"][fork]: "wrong", tokens["chosen_ids"][fork]: "right"}
    assert item["greedy"]["branch"] == branches.get(written[0], "neither")
    assert item["greedy"]["cut_off"] == (tokenizer.eos_token_id not in written)
    assert item["greedy"]["response"] == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_numbers_are_those_of_plain_logits(name, tokenizer):
    torch.manual_seed(1)
    model = STUDENTS[name]().eval()
    rows = [*ROWS, {**SEVERAL, "rejected": SEVERAL["rejected"][1]}]
    result = evaluate_suite(model, tokenizer, Dataset.from_list(rows), batch_size=3, max_new_tokens=5, progress=False)
    assert len(result.items) == len(rows) == 4 + 1
    for row, item in zip(rows, result.items, strict=True):
        check_against_naive(model, tokenizer, row, item, limit=5)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_tree_is_taken_where_there_can_be_one(name, tokenizer, monkeypatch):
    seen = []
    make = suite_model.make_pair_scorer

    def watched(*args, **kwargs):
        seen.append(make(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(suite_model, "make_pair_scorer", watched)
    evaluate_suite(STUDENTS[name]().eval(), tokenizer, ROWS, greedy=False, progress=False)
    assert (seen[0].tree is None) == (name in NO_TREE)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_conversations_and_the_layouts_agree(layout, model, tokenizer):
    rows = [conversational(row) for row in ROWS]
    result = evaluate_suite(
        model.eval(), tokenizer, rows, layout=layout, batch_size=2, max_new_tokens=4, progress=False
    )
    for row, item in zip(rows, result.items, strict=True):
        assert item["prompt"] == row["prompt"]
        assert item["chosen"] == chain_text(row["chosen"])
        check_against_naive(model, tokenizer, row, item, limit=4)


def teach(model, tokenizer, row: dict, side: str, steps: int = 150) -> None:
    """Let a model learn one chain by heart."""
    tokens, _ = tokenize_with_offsets(row, tokenizer)
    prompt, chain = tokens["prompt_ids"], tokens[f"{side}_ids"]
    ids, labels = torch.tensor([prompt + chain]), torch.tensor([[-100] * len(prompt) + chain])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_model_that_knows_one_chain_takes_its_way(side, model, tokenizer):
    row = next(row for row in ROWS if row["id"] == "boolean")
    teach(model, tokenizer, row, side)
    [item] = evaluate_suite(model, tokenizer, [row], max_new_tokens=60, progress=False).items
    right = side == "chosen"
    assert item["preferred"] == item["key_preferred"] == right
    assert item["greedy"]["branch"] == ("right" if right else "wrong")
    assert item["greedy"]["verdict"] == ("correct" if right else "wrong")
    assert item["greedy"]["value"] == ("true" if right else "false")
    assert item["greedy"]["cut_off"] is False
    if right:
        assert item["first_wrong"] is None
    else:
        turn = item["first_wrong"]
        assert row["chosen"][turn["start"] : turn["end"]].strip() == "True"
        assert turn["instead"].strip() == "False"
        assert turn["at_key"]
    response = item["greedy"]["response"]
    assert row[side].endswith(response)
    assert 0 < len(response) < len(row[side])


def test_several_wrong_chains_are_several_items(model, tokenizer):
    alone = {"prompt": "What is 1 + 2?\n", "chosen": "The answer is 3.", "rejected": [], "id": "alone"}
    result = evaluate_suite(model, tokenizer, [SEVERAL, alone], progress=False, max_new_tokens=3)
    assert [(item["task"], item["id"]) for item in result.items] == [("sums", "sum"), ("sums", "sum/2")]
    assert [item["rejected"] for item in result.items] == SEVERAL["rejected"]
    assert result.left_out == 1
    assert result.groups["task"]["sums"]["items"] == 2
    assert result.groups["mistake"]["arithmetic"]["items"] == 2
    assert result.groups["source"] == {}
    assert result.scores == mean_scores(result.items, "suite")
    assert set(result.to_dict()) == {"items", "scores", "intervals", "groups", "left_out", "seconds"}


def test_rows_without_id_are_called_by_their_number_and_limited(model, tokenizer):
    rows = [{k: v for k, v in row.items() if k != "id"} for row in ROWS]
    result = evaluate_suite(model, tokenizer, rows, greedy=False, limit=2, progress=False)
    assert [(item["task"], item["id"]) for item in result.items] == [("all", "1"), ("all", "2")]
    assert all(item["greedy"] is None for item in result.items)
    assert result.scores["right_branch"] is None


def test_key_steps_are_found_as_asked(model, tokenizer):
    row = {**ROWS[0], "chosen_key_spans": [[0, 4]], "rejected_key_spans": []}
    [item] = evaluate_suite(model, tokenizer, [row], key_step_method="spans", greedy=False, progress=False).items
    assert item["chosen_key_spans"][0][0] == 0
    assert item["rejected_key_spans"] == []
    assert item["logps"]["chosen_key"] is not None
    assert item["logps"]["rejected_key"] is item["key_margin"] is item["key_preferred"] is None


@pytest.mark.parametrize("peft", [False, True])
def test_the_student_is_left_as_it_was(peft, tokenizer):
    model = tiny_llama()
    model.model.layers[0].self_attn.attention_dropout = 0.1
    model = adapted(model, lora_dropout=0.1) if peft else model
    model.train()
    model.get_submodule("base_model.model.lm_head" if peft else "lm_head").eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    settings = model.generation_config.to_dict()
    random = torch.get_rng_state()
    attention = model.config._attn_implementation
    attributes = [set(vars(module)) for module in model.modules()]
    evaluate_suite(model, tokenizer, ROWS, max_new_tokens=4, progress=False)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.generation_config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config._attn_implementation == attention
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_is_left_so_after_an_error_too(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    model.train()
    with pytest.raises(FloatingPointError, match=r"row \d \(\w+\): the log-probability of token \d+"):
        evaluate_suite(model, tokenizer, ROWS, greedy=False, progress=False)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_eos_in_its_outputs_is_cut_off_and_counted(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely: the first one is taken
    result = evaluate_suite(model, tokenizer, ROWS, max_new_tokens=3, progress=False)
    assert [item["greedy"]["cut_off"] for item in result.items] == [True] * len(ROWS)
    assert result.scores["cut_off"] == 1.0
    assert result.scores["greedy_accuracy"] == 0.0


BAD = {
    "no rows": ([], "the suite is empty"),
    "alone": ([{"prompt": "a\n", "chosen": "b", "rejected": []}], "all of its 1 rows are correct chains alone"),
    "no wrong chain": ([{"prompt": "a\n", "chosen": "b"}], "no column rejected"),
    "equal": ([{"prompt": "a\n", "chosen": "b", "rejected": "b"}], "row 1, rejected: equals chosen"),
    "same id": ([ROWS[0], ROWS[0]], "row 2, id"),
    "id of a second pair": ([SEVERAL, {**ROWS[0], "task": "sums", "id": "sum/2"}], "would have the id 'sum/2'"),
    "no answer": ([{**ROWS[0], "answer": "12", "answer_type": "choice"}], "row 1: the known answer '12'"),
    "too long": ([ROWS[0], {**ROWS[1], "prompt": "word " * 600}], "row 2: prompt and chain have"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name, model, tokenizer):
    rows, says = BAD[name]
    with pytest.raises(InputError, match=says):
        evaluate_suite(model, tokenizer, rows, progress=False)


def test_bad_options_are_named(model, tokenizer):
    with pytest.raises(InputError, match="batch_size"):
        evaluate_suite(model, tokenizer, ROWS, batch_size=0)
    with pytest.raises(InputError, match=r"exceed the\s+model's 512 positions"):
        evaluate_suite(model, tokenizer, ROWS, max_new_tokens=600)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="row 1: the rows are conversational"):
        evaluate_suite(model, tokenizer, [conversational(ROWS[0])])


def record() -> RunRecord:
    return RunRecord("suite", "tiny", "tiny", "0", settings={}, tasks={"all": "1"}, data_hash="0")


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(killed_after, tmp_path, model, tokenizer):
    rows = [*ROWS, SEVERAL]
    cases, _ = cases_of(rows, tokenizer, max_new_tokens=4)
    whole = RunFolder(tmp_path / "whole", record())
    score_cases(cases, ModelScorer(model, tokenizer, cases, batch_size=2, max_new_tokens=4), folder=whole)
    run = finish_run(whole, cases)
    assert [item["id"] for item in run.items] == [case.id for case in cases]

    scorer = ModelScorer(model, tokenizer, cases, batch_size=2, max_new_tokens=4)
    part = RunFolder(tmp_path / "part", record())
    part.start()
    for _, items in zip(range(killed_after), scorer.run(scorer.plan()), strict=False):
        part.append(items)
    with (part.path / "items.jsonl").open("ab") as file:
        file.write(b'{"task": "half a li')
    part.release()
    part = RunFolder(tmp_path / "part", record())
    ran = []
    run_batches = scorer.run
    scorer.run = lambda batches: ran.extend(batches) or run_batches(batches)
    score_cases(cases, scorer, folder=part)
    assert len(ran) == len(scorer.plan()) - killed_after
    finish_run(part, cases)
    assert (part.path / "items.jsonl").read_bytes() == (whole.path / "items.jsonl").read_bytes()


def test_the_table_shows_every_score_and_group(model, tokenizer):
    rows = [{**row, "task": "[red]b\x1b[2J", "source": "mine"} for row in ROWS]
    result = evaluate_suite(model, tokenizer, [*rows, SEVERAL], max_new_tokens=3, progress=False)
    scores = {"scores": result.scores, "intervals": result.intervals, "groups": result.groups}
    record = RunRecord("suite", "mine", "m", "h", {}, {}, "d", items=len(result.items), **scores)
    text = run_table(Run(Path(), record, result.items))
    assert text.startswith(f"mine: {len(ROWS) + 2} pairs")
    assert "[red]b␛[2J" in text
    assert "\x1b" not in text
    for name in (*result.scores, "arithmetic", "sums", "mine", "95% interval"):
        assert name in text
