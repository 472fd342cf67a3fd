import copy
import json
import math
import re
from contextlib import suppress
from itertools import islice

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_invariants import config
from transformers import GenerationConfig

from edit_trl import DualCoTTrainer, evaluate_accuracy
from edit_trl.common.errors import InputError
from edit_trl.evaluation.accuracy.answering import answer_problems, checked_item, format_table
from edit_trl.evaluation.accuracy.problems import encode, problems_of
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import finish_run
from edit_trl.evaluation.runs.schema import RunRecord
from edit_trl.models.decoding import Decoding, Generated
from edit_trl.models.generation import ModelGenerator

PROBLEMS = [conversational(row) | {"task": "sums" if row["answer"].isdigit() else "logic"} for row in ROWS]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A tiny model that has learnt the first three problems by heart, and never saw the fourth."""
    from conftest import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    trainer = DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path_factory.mktemp("student"), max_steps=150, preference_weight=0.0),
        train_dataset=Dataset.from_list(PROBLEMS[:3]),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.model.eval(), tokenizer


def evaluate(student, problems=PROBLEMS, **options):
    options = {"max_new_tokens": 90, "progress": False} | options
    return evaluate_accuracy(*student, problems, **options)


def responses(result):
    return [item["samples"][0]["response"] for item in result.items]


def test_verdicts_by_item_task_and_overall(student):
    result = evaluate(student)
    assert [item["verdict"] for item in result.items[:3]] == ["correct"] * 3
    assert result.items[3]["verdict"] != "correct"
    first = result.items[0]
    assert [first[name] for name in ("id", "task", "answer", "value")] == ["robe", "sums", "3", "3"]
    assert first["prompt"] == PROBLEMS[0]["prompt"]  # before the chat template, so that models can be compared
    (sample,) = first["samples"]
    assert sample["response"] == ROWS[0]["chosen"]  # cut at the end of the turn
    assert sample["response"][slice(*sample["span"])] == "3"
    assert sample["tokens"] == len(student[1](ROWS[0]["chosen"])["input_ids"]) + 1
    assert (result.overall.items, result.overall.correct, result.overall.accuracy) == (4, 3, 0.75)
    assert list(result.tasks) == ["sums", "logic"]
    assert result.tasks["sums"].accuracy == 1.0
    assert result.tasks["logic"].accuracy == 0.5


def test_batches_do_not_change_responses(student):
    alone = evaluate(student, batch_size=1)
    for size in (2, 4):
        together = evaluate(student, batch_size=size)
        assert responses(together) == responses(alone)
        assert together.generated_tokens == alone.generated_tokens


def test_cut_off_and_unparsed_are_counted(student):
    result = evaluate(student, max_new_tokens=5)
    assert (result.overall.cut_off, result.overall.unparsed, result.overall.correct) == (4, 4, 0)
    assert result.generated_tokens == 20


def test_leaves_everything_as_it_was(student):
    model, tokenizer = student
    tokenizer.padding_side = "right"
    model.generation_config.temperature = 0.3  # sampling settings of the model's own, not asked for
    model.generation_config.do_sample = True
    model.train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = evaluate(student, max_new_tokens=3)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert tokenizer.padding_side == "right"
    model.eval()
    assert responses(first) == responses(evaluate(student, max_new_tokens=3))
    model.generation_config.do_sample = False


@pytest.mark.parametrize(
    "setting",
    [
        *[{"repetition_penalty": 9.0}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": list(range(3, 200))}],
        *[{"max_time": 1e-9}, {"stop_strings": "a"}, {"num_beams": 3}, {"use_cache": False}],
        {"do_sample": True, "temperature": 9.0, "top_k": 0},
    ],
)
def test_the_models_generation_settings_stay_out(student, setting, monkeypatch, capfd):
    expected = responses(evaluate(student, max_new_tokens=12))
    model = student[0]
    own = GenerationConfig(eos_token_id=2, pad_token_id=0, **setting)
    monkeypatch.setattr(model, "generation_config", own)
    capfd.readouterr()
    assert responses(evaluate(student, max_new_tokens=12)) == expected
    assert model.generation_config is own
    assert "generation" not in capfd.readouterr().err  # no warning either


def test_with_an_adapter(student):
    model, tokenizer = student
    expected = responses(evaluate(student, max_new_tokens=12))
    model = copy.deepcopy(model)
    model.generation_config.repetition_penalty = 9.0
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    result = evaluate((adapted, tokenizer), max_new_tokens=12)  # a new adapter changes nothing
    assert responses(result) == expected
    assert adapted.get_base_model().generation_config.repetition_penalty == 9.0


def test_modules_keep_their_own_mode(student):
    model = copy.deepcopy(student[0]).train()
    model.lm_head.eval()  # as a frozen part may be
    before = {name: module.training for name, module in model.named_modules()}
    evaluate((model, student[1]), max_new_tokens=2)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {True, False}


def test_a_failure_leaves_everything_as_it_was(student, monkeypatch):
    model = copy.deepcopy(student[0]).train()
    own = model.generation_config

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate((model, student[1]))
    assert model.training
    assert model.generation_config is own


def test_the_longest_prompts_come_first(student, monkeypatch):
    model, widths = copy.deepcopy(student[0]), []
    generate = model.generate

    def watched(**inputs):
        widths.append(inputs["input_ids"].size(1))
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    evaluate((model, student[1]), batch_size=1, max_new_tokens=1)
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 1


def test_a_tokenizer_without_a_pad_token(student):
    model, tokenizer = student
    expected = responses(evaluate(student))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    assert responses(evaluate((model, tokenizer), batch_size=4)) == expected
    assert tokenizer.pad_token is None


def test_plain_prompts_and_given_types(student):
    rows = [{"prompt": row["prompt"], "answer": row["answer"], "answer_type": "text"} for row in ROWS]
    result = evaluate(student, rows, max_new_tokens=2)
    assert [item["id"] for item in result.items] == ["1", "2", "3", "4"]
    assert list(result.tasks) == ["all"]
    assert result.items[0]["prompt"] == ROWS[0]["prompt"]


def test_json_and_table(student):
    result = evaluate(student)
    assert json.loads(json.dumps(result.to_dict()))["overall"]["accuracy"] == 0.75
    lines = format_table({"before": result, "after": result}).splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[2].split() == ["sums", "100.0%", "100.0%"]
    assert lines[5].split() == ["all", "75.0%", "75.0%"]
    assert lines[6].split() == ["all,", "lenient", "75.0%", "75.0%"]
    assert lines[7].split()[0] == "unparsed"
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "row 2: `answer` must be a text that is not empty, got None"),
        ({"answer": " "}, "row 2: `answer` must be a text"),
        ({"answer": 7}, "row 2: `answer` must be a text that is not empty, got 7"),
        ({"prompt": []}, "row 2: `prompt` is missing or empty"),
        ({"answer_type": "numbr"}, "row 2: unknown `answer_type` 'numbr'"),
        ({"answer_type": "number", "answer": "seven"}, "row 2: the known answer 'seven' is not of type"),
    ],
)
def test_bad_rows(student, change, message):
    with pytest.raises(InputError) as caught:
        evaluate(student, [PROBLEMS[0], PROBLEMS[1] | change])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "row 2: `prompt` must be a text or a list of messages, got 7"),
        (" \n", "row 2: `prompt` is missing or empty"),
        ("plain", "row 2: `prompt` is of another kind than row 1's"),
        ([{"role": "user"}], 'row 2: `prompt`: a message must be {"role": ..., "content": text}, got'),
        (["Hi"], 'row 2: `prompt`: a message must be {"role": ..., "content": text}, got'),
        ([{"role": "user", "content": "a " * 600}], "row 2: a prompt of "),
    ],
)
def test_bad_prompts(student, prompt, message):
    with pytest.raises(InputError) as caught:
        evaluate(student, [PROBLEMS[0], PROBLEMS[1] | {"prompt": prompt}])
    assert message in str(caught.value)


def test_all_problems_are_told_up_to_twenty(student):
    with pytest.raises(InputError) as caught:
        evaluate(student, [PROBLEMS[0] | {"answer": None}] * 25)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 5 more"


@pytest.mark.parametrize("column", ["prompt", "answer"])
def test_a_missing_column(student, column):
    rows = [{key: value for key, value in row.items() if key != column} for row in PROBLEMS]
    with pytest.raises(InputError, match=f"^no column {column}; the columns are "):
        evaluate(student, rows)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
        ({"answer_type": "numbr"}, "unknown answer_type 'numbr'"),
    ],
)
def test_bad_options(student, option, message):
    with pytest.raises(InputError, match=message):
        evaluate(student, **option)


def test_samples_and_the_majority(student):
    drawn = evaluate(student, PROBLEMS[:2], samples=5, temperature=1.5, seed=3)
    assert [len(item["samples"]) for item in drawn.items] == [5, 5]
    for item in drawn.items:
        values = [sample["value"] for sample in item["samples"] if sample["value"] is not None]
        counts = {value: values.count(value) for value in values}
        assert item["value"] == (max(values, key=counts.__getitem__) if values else None)
    assert len({sample["response"] for item in drawn.items for sample in item["samples"]}) > 2
    again = evaluate(student, PROBLEMS[:2], samples=5, temperature=1.5, seed=3)
    assert again.items == drawn.items
    assert evaluate(student, PROBLEMS[:2], samples=5, temperature=1.5, seed=4).items != drawn.items


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("source", {"from": "web"}, "`source` must be a text, got {'from': 'web'} (dict)"),
        ("source", ["web"], "`source` must be a text"),
        ("task", 3, "`task` must be a text, got 3 (int)"),
        ("id", 3.5, "`id` must be a text, got 3.5 (float)"),
        ("mistake", "calculation", "`mistake` must be a list of texts, got 'calculation'"),
        ("mistake", [1], "`mistake` must be a list of texts"),
        ("prompt", "half \ud83d", "prompt: has '\\ud83d', half of a surrogate pair"),
        ("prompt", [{"role": "user", "content": "\udc00"}], "prompt: has '\\udc00', half of a surrogate pair"),
        ("answer", "\ud83d 4", "answer: has '\\ud83d', half of a surrogate pair"),
        ("id", "\ud83d", "id: has '\\ud83d', half of a surrogate pair"),
    ],
)
def test_rows_that_could_not_become_items_are_refused(column, value, message):
    row = {"prompt": "1 + 1?", "answer": "2"}
    good = row | ({"prompt": [{"role": "user", "content": "1?"}]} if isinstance(value, list) else {})
    with pytest.raises(InputError) as caught:
        problems_of(
            [good, good | {column: value}], where="t.yaml", answer_type="number" if column != "answer" else "text"
        )
    assert re.search(rf"row 2[:,] {re.escape(message)}", str(caught.value))


def test_votes():
    problem = problems_of([{"prompt": "1 + 1?", "answer": "2"}])[0]

    def verdict(*texts):
        item = checked_item(problem, [Generated(text, 3, False) for text in texts])
        return item["verdict"], item["value"]

    right, wrong, none = "The answer is 2.", "The answer is 3.", "Hm."
    assert verdict(wrong, right, right) == ("correct", "2")
    assert verdict(right, wrong, wrong, none) == ("wrong", "3")
    assert verdict(right, none, none, none) == ("correct", "2")  # who gives no answer has no vote
    assert verdict(wrong, right) == ("wrong", "3")  # the earliest of equals
    assert verdict(none, none) == ("unparsed", None)


@pytest.mark.parametrize("broken", [{"cut_off": True}, {"cut_off": False, "refused": True}])
def test_an_answer_that_is_not_whole_is_never_right(broken):
    problem = problems_of([{"prompt": "How many?", "answer": "12"}])[0]
    cut = Generated("It is 4000 * 3. The answer is 12", 9, **broken)  # 12000, perhaps
    item = checked_item(problem, [cut])
    assert (item["verdict"], item["value"], item["lenient_verdict"]) == ("unparsed", None, "unparsed")
    assert item["samples"][0]["span"] is item["samples"][0]["lenient_span"] is None
    assert item["samples"][0]["response"] == cut.text
    assert item["cut_off"] == cut.cut_off
    whole = Generated("The answer is 13.", 5, False)
    assert checked_item(problem, [cut, cut, whole])["value"] == "13"  # what is not whole has no vote


def test_a_response_ends_where_another_question_begins():
    problem = problems_of([{"prompt": "2 + 2?", "answer": "4"}])[0]
    text = "The answer is 4.\n\nQ: What is 5 + 5?\nThe answer is 10.\n\nQ: What"
    item = checked_item(problem, [Generated(text, 30, cut_off=True)], ("\n\nQ:",))
    assert (item["verdict"], item["value"], item["cut_off"]) == ("correct", "4", 0)
    assert item["samples"][0]["response"] == "The answer is 4."
    assert checked_item(problem, [Generated(text, 30, cut_off=True)])["value"] is None


def test_continuous_batching_answers_alike(student):
    with pytest.raises(InputError, match="`batching: continuous` cannot run"):  # the attention of the tree layout
        evaluate(student, batching="continuous")
    model = tiny_llama()
    model.load_state_dict(student[0].state_dict())
    student = (model.eval(), student[1])
    padded = evaluate(student, batch_size=4, max_new_tokens=40)
    continuous = evaluate(student, batch_size=4, max_new_tokens=40, batching="continuous")
    assert responses(continuous) == responses(padded)
    assert continuous.generated_tokens == padded.generated_tokens


def test_a_run_that_is_taken_up_answers_as_one_left_alone(student, tmp_path):
    model, tokenizer = student
    problems = problems_of(PROBLEMS)
    prompts = encode(problems, tokenizer, max_new_tokens=20, positions=512)

    def answer(folder, generator_runs=None):
        decoding = Decoding(20, temperature=1.0, samples=2)
        generator = ModelGenerator(model, tokenizer, decoding, batch_size=2, batching="padded")
        if generator_runs is not None:
            run = generator.run
            generator.run = lambda prompts, batches: islice(run(prompts, batches), generator_runs)
        record = RunRecord("evaluate", "x", "m", "h", {}, {"sums": "1", "logic": "1"}, "d")
        folder = RunFolder(folder, record)
        with suppress(KeyError):  # the items of the batches that were not run
            answer_problems(problems, prompts, generator, folder=folder, progress=False)
        return folder

    finish_run(answer(tmp_path / "whole"), problems)
    for batches in (1, 2, 0):
        assert len(answer(tmp_path / "parts", batches).done) < 4
    finish_run(answer(tmp_path / "parts"), problems)
    whole, parts = ((tmp_path / name / "items.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_no_eos(student):
    model, tokenizer = (copy.deepcopy(part) for part in student)
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither the model nor the tokenizer has an EOS token"):
        evaluate((model, tokenizer))


def test_no_rows(student):
    with pytest.raises(InputError, match="no rows"):
        evaluate(student, [])


def test_no_chat_template(student):
    model, tokenizer = student
    template, tokenizer.chat_template = tokenizer.chat_template, None
    with pytest.raises(InputError, match="no chat template"):
        evaluate((model, tokenizer))
    tokenizer.chat_template = template


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"from": "web"}}, r"row 2: `source` must be a text, got \{'from': 'web'\} \(dict\)"),
        ({"task": ["a"]}, r"row 2: `task` must be a text"),
        ({"id": 1.5}, r"row 2: `id` must be a text, got 1.5 \(float\)"),
        ({"mistake": "arithmetic"}, "row 2: `mistake` must be a list of texts"),
        ({"source": "\ud83d"}, "row 2, source: has '.ud83d', half of a surrogate pair"),
        ({"prompt": [{"role": "user", "content": "1?", "n": math.nan}]}, "row 2, prompt: cannot be written to a file"),
        ({"mistake": [{1}]}, "row 2, mistake: cannot be written to a file: .* set"),
    ],
)
def test_rows_in_memory_that_no_run_could_hold(change, message):
    rows = [{"prompt": "0?", "answer": "1"}, {"prompt": "1?", "answer": "2"} | change]
    with pytest.raises(InputError, match=message):
        problems_of(rows)
    with pytest.raises(InputError, match=r"row 2: must be a mapping with named columns, got 'text'"):
        problems_of([rows[0], "text"])


def test_a_number_as_id_becomes_text():
    rows = [{"prompt": f"{n}?", "answer": "1", "id": n} for n in range(2)]
    assert [problem.id for problem in problems_of(rows)] == ["0", "1"]
