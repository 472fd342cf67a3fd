import json

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from test_invariants import config

from edit_trl import DualCoTTrainer, evaluate_accuracy
from edit_trl.errors import InputError
from edit_trl.evaluation import format_table

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


def test_verdicts_by_item_task_and_overall(student):
    result = evaluate(student)
    assert [item.verdict for item in result.items[:3]] == ["correct"] * 3
    assert result.items[3].verdict != "correct"
    first = result.items[0]
    assert (first.id, first.task, first.answer, first.value) == ("robe", "sums", "3", "3")
    assert first.response == ROWS[0]["chosen"]  # cut at the end of the turn
    assert first.response[slice(*first.span)] == "3"
    assert first.prompt.endswith("<|im_start|>assistant\n")
    assert (result.overall.items, result.overall.correct, result.overall.accuracy) == (4, 3, 0.75)
    assert list(result.tasks) == ["sums", "logic"]
    assert result.tasks["sums"].accuracy == 1.0
    assert result.tasks["logic"].accuracy == 0.5


def test_batches_do_not_change_responses(student):
    alone = evaluate(student, batch_size=1)
    for size in (2, 4):
        together = evaluate(student, batch_size=size)
        assert [item.response for item in together.items] == [item.response for item in alone.items]
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
    assert [i.response for i in first.items] == [
        i.response for i in evaluate(student, max_new_tokens=3).items
    ]
    model.generation_config.do_sample = False


def test_plain_prompts_and_given_types(student):
    rows = [{"prompt": row["prompt"], "answer": row["answer"], "answer_type": "text"} for row in ROWS]
    result = evaluate(student, rows, max_new_tokens=2)
    assert [item.id for item in result.items] == ["1", "2", "3", "4"]
    assert list(result.tasks) == ["all"]
    assert result.items[0].prompt == ROWS[0]["prompt"]


def test_json_and_table(student):
    result = evaluate(student)
    assert json.loads(json.dumps(result.to_dict()))["overall"]["accuracy"] == 0.75
    lines = format_table({"before": result, "after": result}).splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[2].split() == ["sums", "100.0%", "100.0%"]
    assert lines[5].split() == ["all", "75.0%", "75.0%"]
    assert lines[6].split()[0] == "unparsed"
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


def test_no_rows(student):
    with pytest.raises(InputError, match="no rows"):
        evaluate(student, [])


def test_no_chat_template(student):
    model, tokenizer = student
    template, tokenizer.chat_template = tokenizer.chat_template, None
    with pytest.raises(InputError, match="no chat template"):
        evaluate((model, tokenizer))
    tokenizer.chat_template = template
