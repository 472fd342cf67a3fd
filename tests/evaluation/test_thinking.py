"""Models that think, measured: their answers alone are graded, and their chat template is given its variables."""

import json
from pathlib import Path

import pytest
import torch
import trl
from chat_server import MODEL, ChatServer, running
from conftest import conversational
from datasets import Dataset
from thinking_models import taught, thinking_tokenizer

from edit_trl import evaluate_accuracy, evaluate_suite
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.evaluation.accuracy.answering import checked_item
from edit_trl.evaluation.accuracy.problems import encode, problems_of, values_to_send
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.suite.cases import cases_of
from edit_trl.models.chat_templates import render
from edit_trl.models.decoding import Generated
from edit_trl.models.responses import response_text

# As that of Qwen3: thoughts that are switched off are empty.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SUM = {"prompt": [{"role": "user", "content": "What is 2 + 2?"}], "answer": "4", "id": "sum"}
OFF = {"enable_thinking": False}
DRAFT = "<think>\nThe answer is 4.\n</think>\n\nThe answer is 5."
OPEN = "<think>\nThe answer is 4. Or"


def prompt(tokenizer, **options):
    return render(tokenizer, SUM["prompt"], add_generation_prompt=True, **options)


@pytest.fixture(scope="module")
def student():
    """A model that thinks 4 and says 5; where thinking is switched off, it says 4."""
    tokenizer = thinking_tokenizer("think")
    tokenizer.chat_template = TEMPLATE
    answers = {prompt(tokenizer): DRAFT, prompt(tokenizer, chat_template_kwargs=OFF): "The answer is 4."}
    return taught(tokenizer, answers, steps=100), tokenizer


def sample(result):
    (item,) = result.items
    return item["samples"][0]


def test_only_what_follows_the_thoughts_is_graded(student):
    result = evaluate_accuracy(*student, [SUM], max_new_tokens=60, progress=False)
    said = sample(result)
    assert (said["response"], said["verdict"], said["value"], said["lenient_value"]) == (DRAFT, "wrong", "5", "5")
    assert said["response"][slice(*said["span"])] == "5"


def test_a_text_that_ends_a_response_may_stand_in_its_thoughts():
    (problem,) = problems_of([SUM])
    said = "<think>\n2 + 2\n\nis 4.\n</think>\n\nThe answer is 4."
    for text, response in ((f"{said}\n\nWhat is 1 + 1? It is 2.", said), (OPEN, OPEN)):
        item = checked_item(problem, [Generated(text, 20, cut_off=False)], ["\n\n"])
        assert item["samples"][0]["response"] == response
        assert item["verdict"] == ("correct" if response == said else "unparsed")


def test_values_of_the_template_are_an_option_and_a_column_which_wins(student):
    on = SUM | {"chat_template_kwargs": {"enable_thinking": True, "other": None}}

    def verdict(row, **options):
        return sample(evaluate_accuracy(*student, [row], max_new_tokens=60, progress=False, **options))["verdict"]

    assert verdict(SUM, chat_template_kwargs=OFF) == "correct"
    assert verdict(SUM | {"chat_template_kwargs": OFF}) == "correct"
    assert verdict(on, chat_template_kwargs=OFF) == "wrong"


def test_thoughts_that_are_too_long_are_cut_off(student):
    result = evaluate_accuracy(*student, [SUM], max_new_tokens=60, max_thinking_tokens=6, progress=False)
    assert (result.overall.cut_off, result.overall.unparsed, sample(result)["tokens"]) == (1, 1, 6)


def test_what_a_template_does_not_know_is_refused(student):
    problems, tokenizer = problems_of([SUM]), student[1]
    options = {"max_new_tokens": 8, "positions": None}
    with pytest.raises(InputError, match="no variable 'enable_thinkin'; did you mean"):
        encode(problems, tokenizer, **options, chat_template_kwargs={"enable_thinkin": True})
    odd = problems_of([SUM, SUM | {"id": "b", "chat_template_kwargs": {"thinking": True}}])
    with pytest.raises(InputError, match=r"row 2 \(all b\): `chat_template_kwargs`: .* has no variable 'thinking'"):
        encode(odd, tokenizer, **options)
    plain = problems_of([SUM | {"prompt": "What is 2 + 2?\n"}])
    with pytest.raises(InputError, match="are for a chat template, and the prompts are plain text"):
        encode(plain, tokenizer, **options, chat_template_kwargs=OFF)
    with pytest.raises(InputError, match="row 1: `chat_template_kwargs` must be a mapping"):
        problems_of([SUM | {"chat_template_kwargs": "off"}])


def test_an_endpoint_is_sent_the_same_values_with_every_question():
    rows = [SUM | {"chat_template_kwargs": OFF}, SUM | {"id": "b"}]
    assert values_to_send(problems_of(rows), OFF) == OFF
    with pytest.raises(InputError, match=r"row 2 \(all b\): `chat_template_kwargs` None differ from .* two runs"):
        values_to_send(problems_of(rows), None)
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    with pytest.raises(InputError, match=r"row 1 \(all sum\): tools and their calls are not sent to an endpoint"):
        values_to_send(problems_of([SUM | {"tools": [tool]}]), None)


def test_a_run_records_what_it_gave_the_template(student, tmp_path, capsys):
    for part in student:
        part.save_pretrained(tmp_path / "student")
    (tmp_path / "task.yaml").write_text("dataset_name: rows.jsonl\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "What is 2 + 2?", "answer": "4"}) + "\n")
    words = ["--model", tmp_path / "student", "--tasks", tmp_path / "task.yaml", "--device", "cpu", "--history", "null"]
    words = [str(word) for word in (*words, "--max_new_tokens", "60", "--output_dir", tmp_path / "run")]
    assert main(["evaluate", *words, "--chat_template_kwargs", '{"enable_thinking": false}']) == 0
    run = read_run(tmp_path / "run")
    assert run.record.settings["chat_template_kwargs"] == OFF
    assert "max_thinking_tokens" not in run.record.settings
    assert run.record.scores["accuracy"] == 1.0
    assert main(["evaluate", *words]) != 0
    assert "chat_template_kwargs: {'enable_thinking': False} there, 'not set' now" in capsys.readouterr().err
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "other")
    assert main(["evaluate", *words, "--chat_template_kwargs", '{"thinking": false}']) != 0
    assert "no variable 'thinking'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


CHANNELS = (
    "<|channel|>analysis<|message|>2 + 2 = 4.<|end|><|start|>assistant<|channel|>final<|message|>The answer is 4."
)


@pytest.mark.parametrize(
    ("name", "markers", "values", "prompt_has", "said"),
    [
        ("qwen3", "think", {}, "assistant\n", "<think>\n2 + 2 = 4.\n</think>\n\nThe answer is 4."),
        ("qwen3", "think", OFF, "<think>\n\n</think>\n\n", "The answer is 4."),
        ("deepseek_r1_distill", "think", {}, "<think>\n", "2 + 2 = 4.\n</think>\n\nThe answer is 4."),
        ("gptoss", "gpt_oss", {"reasoning_effort": "low"}, "<|start|>assistant", CHANNELS),
        ("gptoss", "gpt_oss", {"reasoning_effort": "low"}, "Reasoning: low", CHANNELS),
    ],
)
def test_real_templates(name, markers, values, prompt_has, said):
    """With TRL's copies of the templates, and tokens that mark thoughts as in the real tokenizers."""
    tokenizer = thinking_tokenizer(markers)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    problems = problems_of([SUM])
    (ids,) = encode(problems, tokenizer, max_new_tokens=60, positions=None, chat_template_kwargs=values)
    text = tokenizer.decode(ids)
    assert prompt_has in text if prompt_has == "Reasoning: low" else text.endswith(prompt_has)
    response = response_text(tokenizer, ids, tokenizer(said)["input_ids"])
    thoughts = "" if values == OFF else "<think>\n2 + 2 = 4.\n</think>\n\n"
    assert response == f"{thoughts}The answer is 4."
    item = checked_item(problems[0], [Generated(response, 20, cut_off=False)])
    assert (item["verdict"], item["value"]) == ("correct", "4")


# Suites

PAIR = {
    "prompt": SUM["prompt"],
    "chosen": [{"role": "assistant", "reasoning_content": "2 + 2 = 4.", "content": "The answer is 4."}],
    "rejected": [{"role": "assistant", "reasoning_content": "2 + 2 = 5.", "content": "The answer is 5."}],
    "answer": "4",
    "id": "sum",
}


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("2 + 2 = 6.\n</think>\n\nThe answer is 4.", "correct"),
        ("2 + 2 = 6. The answer is 4.", "unparsed"),
        ("2 + 2 = 6. The answer is 4.\n</think>\n\nThe answer is 5.", "wrong"),
    ],
)
def test_a_continuation_that_begins_in_thoughts_is_graded_on_its_answer(said, verdict):
    tokenizer = thinking_tokenizer("think")
    tokenizer.chat_template = TEMPLATE
    model = taught(tokenizer, {prompt(tokenizer): f"<think>\n{said}"}, steps=100)
    (item,) = evaluate_suite(model, tokenizer, [PAIR], max_new_tokens=60, progress=False).items
    assert item["chosen"] == "<think>\n2 + 2 = 4.\n</think>\n\nThe answer is 4."
    greedy = item["greedy"]
    assert (greedy["verdict"], greedy["branch"]) == (verdict, "neither")
    assert not greedy["response"].startswith("<think>")


def test_rows_of_a_suite_may_have_what_a_template_takes(student):
    model, tokenizer = student
    tokens = {}
    for values in (None, OFF):
        ((case,), _) = cases_of([PAIR], tokenizer, chat_template_kwargs=values)
        tokens[str(values)] = tokenizer.decode(case.tokens["prompt_ids"])
    assert tokens["None"] == prompt(tokenizer)
    whole = {"chosen": [*SUM["prompt"], *PAIR["chosen"]], "rejected": [*SUM["prompt"], *PAIR["rejected"]]}
    ((implicit,), _) = cases_of([whole], tokenizer)
    ((explicit,), _) = cases_of([PAIR], tokenizer)
    assert implicit.tokens == explicit.tokens
    turns = [{"role": "assistant", "content": "2 + 2 ="}, {"role": "user", "content": "Go on."}]
    several = PAIR | {side: [*turns, *PAIR[side]] for side in ("chosen", "rejected")}
    prefixed = conversational(
        {"prompt": "Sum?", "chosen": " 4. The answer is 4.", "rejected": " 5. The answer is 5.", "answer": "4"}
    ) | {"prefix": "2 + 2 =", "id": "prefix"}
    result = evaluate_suite(model, tokenizer, [several, prefixed], max_new_tokens=4, progress=False)
    assert [item["id"] for item in result.items] == ["sum", "prefix"]
    assert all(torch.isfinite(torch.tensor(item["margin"])) for item in result.items)
    with pytest.raises(InputError, match="`chat_template_kwargs` is for a chat template, and the prompts are plain"):
        cases_of(
            Dataset.from_list([{"prompt": "Sum?\n", "chosen": "4", "rejected": "5"}]),
            tokenizer,
            chat_template_kwargs=OFF,
        )
    with pytest.raises(InputError, match="no variable 'thinking'"):
        cases_of([PAIR], tokenizer, chat_template_kwargs={"thinking": True})


# At an endpoint


def reply(content, finish="stop", thinking=None, **message) -> str:
    usage = {"prompt_tokens": 10, "completion_tokens": 50}
    if thinking is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": thinking}
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})


REPLIES = {
    "tags": reply("<think>\nThe answer is 5.\n</think>\n\nThe answer is 4."),
    "field": reply("The answer is 4.", reasoning_content="The answer is 5."),
    "other": reply("The answer is 4.", reasoning="The answer is 5."),
    "opened": reply("The answer is 5.\n</think>\n\nThe answer is 4."),
    "alone": reply(None, reasoning_content="The answer is 4."),
    "unclosed": reply("<think>\nThe answer is 4."),
    "cut": reply("<think>\nThe answer is 4. But", finish="length"),
}


@pytest.fixture
def ask(tmp_path, capsys):
    """Let an endpoint answer the questions of a task; returns the exit code, the run or the message, and its bodies."""

    def evaluate(replies, *options, folder="run", values=None):
        values = values or {}
        rows = [
            {"id": name, "question": f"{name} : 2 + 2?", "answer": "4", "chat_template_kwargs": values.get(name)}
            for name in replies
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "task.yaml").write_text("dataset_name: rows.jsonl\n")
        server = ChatServer(lambda body: replies[body["messages"][-1]["content"].split()[0]])
        server.keep_bodies = True
        with running(server) as url:
            words = ["--model", MODEL, "--base_urls", url, "--tasks", tmp_path / "task.yaml", "--history", "null"]
            code = main(["evaluate", *map(str, words), "--output_dir", str(tmp_path / folder), *options])
        message = capsys.readouterr().err
        return code, read_run(tmp_path / folder) if code == 0 else message, server.bodies

    return evaluate


def test_an_endpoint_may_give_thoughts_in_a_field_or_by_tags(ask):
    code, run, _ = ask(REPLIES)
    assert code == 0
    items = {item["id"]: item for item in run.items}
    whole = "<think>\nThe answer is 5.\n</think>\n\nThe answer is 4."
    for name in ("tags", "field", "other", "opened"):
        assert (items[name]["verdict"], items[name]["samples"][0]["response"]) == ("correct", whole), name
    for name in ("alone", "unclosed", "cut"):
        assert items[name]["verdict"] == items[name]["lenient_verdict"] == "unparsed", name
    assert [name for name, item in items.items() if item["cut_off"]] == ["cut"]


def test_an_endpoint_is_held_to_a_limit_of_thoughts(ask):
    replies = {
        "short": reply("The answer is 4.", thinking=20, reasoning_content="Hm."),
        "long": reply("The answer is 4.", thinking=40, reasoning_content="Hm, hm."),
    }
    code, run, bodies = ask(replies, "--max_thinking_tokens", "30")
    assert code == 0
    outcomes = {item["id"]: (item["verdict"], item["cut_off"]) for item in run.items}
    assert outcomes == {"short": ("correct", 0), "long": ("unparsed", 1)}
    assert run.record.settings["max_thinking_tokens"] == 30
    assert all("thinking" not in key for body in bodies for key in body)
    code, message, _ = ask({"field": REPLIES["field"]}, "--max_thinking_tokens", "30", folder="unreported")
    assert code != 0
    assert "`max_thinking_tokens: 30` cannot be kept" in message


def test_an_endpoint_is_sent_the_values_of_its_template(ask):
    code, run, bodies = ask({"tags": REPLIES["tags"]}, "--chat_template_kwargs", '{"enable_thinking": false}')
    assert code == 0
    assert [body["chat_template_kwargs"] for body in bodies] == [OFF]
    assert run.record.settings["chat_template_kwargs"] == OFF
    two = {name: REPLIES[name] for name in ("tags", "field")}
    code, _, bodies = ask(two, folder="rows", values={"tags": OFF, "field": OFF})
    assert code == 0
    assert [body["chat_template_kwargs"] for body in bodies] == [OFF, OFF]
    code, message, bodies = ask(two, folder="differ", values={"tags": OFF})
    assert (code != 0, bodies) == (True, [])
    assert "row 2 (task field): `chat_template_kwargs` None differ" in message
