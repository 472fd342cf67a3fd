"""What each view makes of a few dual CoTs, by hand; the paper's systems are these rows."""

import subprocess
import sys

import pytest
import torch
from conftest import ROWS, byte_level_tokenizer, conversational, tiny_llama
from datasets import Dataset

from edit_trl import DualCoTConfig, DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.row import chain_text
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.data.row_rewriting import answer_statement
from edit_trl.data.tokenization import tokenize_dual_cot
from edit_trl.data.views import PAIR_VIEWS, WEIGHTED_VIEWS, View, apply_view, select_rows

ROBE, APPLES, BOOLEAN, STEPS = (
    row | {"source": source, "mistake": mistake}
    for row, source, mistake in zip(
        ROWS,
        ("corrupted", "rectified", "rectified_minimal", "on_policy"),
        (["logical"], ["calculation"], ["logical", "knowledge"], None),
        strict=True,
    )
)
PAIRS = [ROBE, APPLES, BOOLEAN, STEPS]
ALL_VIEWS = View.__args__


def ids(rows):
    return [row["id"] for row in rows]


def test_pairs_are_told_apart_by_where_they_began():
    assert apply_view(PAIRS, "pairs") == PAIRS
    assert ids(apply_view(PAIRS, "rectified")) == ["apples", "boolean", "steps"]
    assert ids(apply_view(PAIRS, "corrupted")) == ["robe"]


def test_correct_chains_alone():
    rows = apply_view([*PAIRS, ROBE | {"id": "again", "rejected": ROWS[1]["rejected"]}], "chosen")
    assert ids(rows) == ["robe", "apples", "boolean", "steps"]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [(row["chosen"], []) for row in ROWS]
    assert ids(apply_view(PAIRS, "unrectified")) == ["robe"]


def test_repeat_sampling_makes_up_the_volume_of_all_chains():
    other = ROBE | {"id": "robe2", "chosen": "Half of 2 is 1, and 2 + 1 = 3. Therefore, the answer is 3."}
    rows = apply_view([*PAIRS, other], "repeat_sampling")
    # 5 correct chains and 4 wrong ones: both samples of the robe come in turn.
    assert ids(rows)[:4] == ["robe", "robe2", "robe/again 1", "robe2/again 1"]
    assert len(rows) == 9
    assert len(set(ids(rows))) == 9
    assert {row["chosen"] for row in rows} == {ROBE["chosen"], other["chosen"]}


def test_wrong_chains_are_marked():
    rows = apply_view(PAIRS[:2], "dual_cot_sft")
    assert [(row["prompt"], row["chosen"]) for row in rows] == [
        (ROBE["prompt"], ROBE["chosen"]),
        (APPLES["prompt"], APPLES["chosen"]),
        (f"[Counterfactual] {ROBE['prompt']}", ROBE["rejected"]),
        (f"[Counterfactual] {APPLES['prompt']}", APPLES["rejected"]),
    ]
    assert len(set(ids(rows))) == 4


def test_a_row_with_several_wrong_chains():
    row = APPLES | {"rejected": [APPLES["rejected"], "12 + 5 = 17. Therefore, the answer is 17."]}
    rows = apply_view([row, BOOLEAN | {"rejected": []}], "dual_cot_sft")
    assert [row["chosen"] for row in rows[2:]] == row["rejected"]
    assert len(set(ids(rows))) == 4
    assert ids(apply_view([row, BOOLEAN | {"rejected": []}], "rectified")) == ["apples"]


def test_mt_cot_is_two_tasks():
    explain, predict = apply_view([APPLES], "mt_cot")
    question = "Ann has 12 apples and eats 5. How many are left?\n"
    assert explain["prompt"] == f"{question}[Explanation Generation]:\n"
    assert (explain["chosen"], explain["chosen_key_spans"]) == (APPLES["chosen"], None)
    assert predict["prompt"] == f"{question}[Answer Prediction]:\n"
    assert predict["chosen"] == "Therefore, the answer is 7."
    assert predict["chosen_key_spans"] == [[0, 27]]


def test_sbs_is_rationale_and_label():
    rationale, label = apply_view([conversational(APPLES)], "sbs")
    question = "Ann has 12 apples and eats 5. How many are left?"
    assert rationale["prompt"] == [{"role": "user", "content": f"{question}\nRationale:"}]
    assert rationale["chosen"][0]["content"] == "She starts with 12 and eats 5, so 12 - 5 = 7."
    assert label["prompt"] == [{"role": "user", "content": f"{question}\nAnswer:"}]
    assert label["chosen"] == [{"role": "assistant", "content": "Therefore, the answer is 7."}]


def test_scott_learns_of_wrong_chains_the_answer_alone():
    factual, counterfactual = apply_view([APPLES], "scott")
    assert factual["prompt"] == f"[Factual] {APPLES['prompt']}"
    assert factual["chosen_key_spans"] == [[0, len(APPLES["chosen"])]]
    assert counterfactual["prompt"] == f"[Counterfactual] {APPLES['prompt']}"
    [[start, end]] = counterfactual["chosen_key_spans"]
    assert counterfactual["chosen"][start:end] == "8."


def test_chains_without_an_answer_are_left_out_and_told(caplog):
    silent = APPLES | {"id": "silent", "chosen": "Who knows."}
    assert answer_statement(silent, silent["chosen"]) is None
    rows = apply_view([ROBE, silent], "mt_cot", source="pairs.jsonl")
    assert len(rows) == 2
    assert "pairs.jsonl: 1 of 2 chains state no answer that could be found" in caplog.text


@pytest.mark.parametrize("view", ALL_VIEWS)
@pytest.mark.parametrize("form", ["plain", "conversational"])
def test_every_view_is_valid_dual_cots_and_leaves_its_input_alone(view, form):
    rows = PAIRS if form == "plain" else [conversational(row) for row in PAIRS]
    before = repr(rows)
    dataset = select_rows(Dataset.from_list(rows), view)
    validate_dual_cots(dataset)
    assert repr(rows) == before
    assert all((row["rejected"] == []) == (view not in PAIR_VIEWS) for row in dataset)
    assert list(dataset) == list(select_rows(Dataset.from_list(rows), view))


def test_what_is_key_ends_with_the_text(tokenizer):
    """SCOTT gives context no weight: it is the key tokens that must learn to stop."""
    for row in apply_view([conversational(APPLES), conversational(ROBE)], "scott"):
        alone = {**row, "rejected": row["chosen"]}
        tokens = tokenize_dual_cot(alone, tokenizer, key_step_method="spans")
        mask, end = tokens["chosen_key_mask"], tokenizer.eos_token_id
        assert [key for key, token in zip(mask, tokens["chosen_ids"], strict=True) if token == end] == [True]
        assert not any(tokens["rejected_key_mask"] + tokens["chosen_fork_mask"])
        kept = [token for key, token in zip(mask, tokens["chosen_ids"], strict=True) if key]
        start, _ = row["chosen_key_spans"][0]
        assert tokenizer.decode(kept, skip_special_tokens=True).strip() == row["chosen"][0]["content"][start:]


def test_scott_is_the_sum_of_both_means(tmp_path):
    """The authors' loss, by hand: the mean over a correct chain, and over a wrong chain's answer."""
    tokenizer, model = byte_level_tokenizer(), tiny_llama()
    rows = select_rows(Dataset.from_list([APPLES]), "scott")
    trainer = DualCoTTrainer(
        model,
        DualCoTConfig(
            str(tmp_path),
            key_step_method="spans",
            chosen_key_weight=1.0,
            chosen_context_weight=0.0,
            preference_weight=0.0,
            normalization="key_tokens",
            per_device_eval_batch_size=2,
            report_to="none",
            bf16=False,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )

    def mean_nll(prompt: str, answer: str) -> float:
        ids = torch.tensor([tokenizer(prompt + answer + tokenizer.eos_token)["input_ids"]])
        begin = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return -logps[begin - 1 :].mean().item()

    before, answer = APPLES["rejected"][:-3], APPLES["rejected"][-3:]  # " 8."
    factual = mean_nll(f"[Factual] {APPLES['prompt']}", APPLES["chosen"])
    counterfactual = mean_nll(f"[Counterfactual] {APPLES['prompt']}{before}", answer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx((factual + counterfactual) / 2, rel=1e-5)


def test_one_kind_of_mistake():
    dataset = Dataset.from_list(PAIRS)
    assert ids(select_rows(dataset, mistake=["logical"])) == ["robe", "boolean"]
    assert ids(select_rows(dataset, "rectified", mistake=["logical", "calculation"])) == ["apples", "boolean"]
    # Correct chains have no mistake.
    assert len(select_rows(dataset, "chosen", mistake=["logical"])) == 4


def test_sizes_are_matched_by_a_draw_that_the_seed_decides():
    dataset = Dataset.from_list([{**APPLES, "id": str(number)} for number in range(40)])
    first = ids(select_rows(dataset, rows=10, seed=3))
    assert len(set(first)) == 10
    assert first == sorted(first, key=int)
    code = (
        "import sys; from datasets import Dataset; from edit_trl.data.views import select_rows; "
        "rows = Dataset.from_list([{'id': str(n)} for n in range(40)]); "
        "print(select_rows(rows, rows=10, seed=3)['id'][:])"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == str(first)
    assert first != ids(select_rows(dataset, rows=10, seed=4))


def test_a_kind_of_mistake_that_is_not_there():
    with pytest.raises(InputError) as error:
        select_rows(Dataset.from_list(PAIRS), mistake=["logicl"], source="pairs.jsonl")
    assert str(error.value) == (
        "pairs.jsonl: no pair has the mistake 'logicl'; did you mean `logical`?; there are: calculation (1), "
        "knowledge (1), logical (2)"
    )
    with pytest.raises(InputError, match="none, `mistake` is empty or missing"):
        select_rows(Dataset.from_list(ROWS), mistake=["logical"])


def test_a_view_that_leaves_nothing():
    with pytest.raises(InputError) as error:
        select_rows(Dataset.from_list(ROWS), "rectified", source="pairs.jsonl")
    assert str(error.value) == (
        "pairs.jsonl: the view 'rectified' leaves none of 4 rows (it takes pairs whose `source` is "
        "rectified, rectified_minimal, on_policy; by `source`: 4 no source)"
    )
    with pytest.raises(InputError, match="unknown view 'rectifed'; did you mean `rectified`"):
        apply_view(ROWS, "rectifed")


def test_more_rows_than_there_are():
    with pytest.raises(InputError, match=r"`rows: 3`, but pairs has 2 rows here \(view pairs, mistake logical\)"):
        select_rows(Dataset.from_list(PAIRS), mistake=["logical"], rows=3, source="pairs")


def test_views_with_spans_are_those_named():
    for view in ALL_VIEWS:
        rows = apply_view(PAIRS, view)
        assert any(row.get("chosen_key_spans") for row in rows) == (view in WEIGHTED_VIEWS)


# Chains with thoughts, and of several turns


def thinking(row: dict) -> dict:
    """The row as messages, with all but the last sentence of each chain as thoughts in a field of their own."""

    def parted(chain: str) -> list[dict]:
        thoughts, _, answer = chain.rpartition(" Therefore")
        return [{"role": "assistant", "content": f"Therefore{answer}", "reasoning_content": thoughts}]

    row = conversational(row) | {side: parted(row[side]) for side in ("chosen", "rejected")}
    return row | {"prompt": [*row["prompt"], {"role": "assistant", "content": None}, {"role": "tool", "content": "x"}]}


def with_turns(row: dict) -> dict:
    turns = [{"role": "assistant", "content": "Wait."}, {"role": "user", "content": "Go on."}]
    row = conversational(row)
    return row | {side: [*turns, *row[side]] for side in ("chosen", "rejected")}


@pytest.mark.parametrize("view", ALL_VIEWS)
def test_views_of_chains_with_thoughts(view):
    rows = apply_view(list(map(thinking, PAIRS)), view)
    for row in rows:
        assert row["prompt"][1:] == thinking(ROBE)["prompt"][1:]  # the question is marked, not the result of a tool
        assert len(row["chosen"]) == 1
        text = chain_text(row["chosen"])
        assert text.count("<think>") <= 1
        for start, end in row.get("chosen_key_spans") or ():
            assert 0 <= start < end <= len(text)
    if view == "sbs":
        rationale, label = rows[:2]
        thoughts = thinking(ROBE)["chosen"][0]["reasoning_content"]
        assert chain_text(rationale["chosen"]) == f"<think>\n{thoughts}\n</think>"
        assert chain_text(label["chosen"]) == "Therefore, the answer is 3."
    if view == "mt_cot":
        assert rows[0]["chosen"] == thinking(ROBE)["chosen"]
        assert rows[1]["chosen"] == [{"role": "assistant", "content": "Therefore, the answer is 3."}]
    if view == "scott":
        wrong = rows[-1]
        assert chain_text(wrong["chosen"])[slice(*wrong["chosen_key_spans"][0])] == "no."
    if view == "critique":
        thoughts, answer = split_thoughts(chain_text(rows[0]["chosen"]))
        assert thoughts == thinking(ROBE)["chosen"][0]["reasoning_content"]
        assert "is wrong" in answer
        assert answer.endswith("Therefore, the answer is 3.")


def test_views_of_chains_with_thoughts_are_datasets():
    rows = [row | {"prompt": row["prompt"][:1]} for row in map(thinking, PAIRS)]
    for view in ALL_VIEWS:
        validate_dual_cots(select_rows(Dataset.from_list(rows), view))


@pytest.mark.parametrize("view", ALL_VIEWS)
def test_views_of_chains_of_several_turns(view):
    rows = [with_turns(row) for row in PAIRS]
    if view in ("sbs", "critique", "lema"):
        with pytest.raises(InputError, match="rewrites the correct chain, and that of 'robe' has 3 turns; use"):
            apply_view(rows, view)
        return
    for row in apply_view(rows, view):
        text = chain_text(row["chosen"])
        assert len(row["chosen"]) == 3 or row["id"].endswith(("answer", "chosen", "rejected"))
        for start, end in row.get("chosen_key_spans") or ():
            assert 0 <= start < end <= len(text)


def test_a_prefix_is_no_beginning_of_an_answer():
    row = conversational(ROBE) | {"prefix": "White: 2 / 2"}
    explanation, answer = apply_view([row], "mt_cot")
    assert (explanation["prefix"], answer["prefix"]) == (row["prefix"], None)
