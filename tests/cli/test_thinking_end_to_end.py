"""A thinking teacher's chains, from its endpoint to a trained student that is measured: one command each."""

import json
from pathlib import Path

import pytest
import trl
import yaml
from chat_server import MODEL, ChatServer, completion, running
from conftest import tiny_llama
from thinking_models import thinking_tokenizer

from edit_trl import load_dual_cots
from edit_trl.cli.main import main
from edit_trl.data.row import chain_text
from edit_trl.evaluation.runs.folder import read_run

QWEN3 = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
DUAL, WARM_UP = "dual.parquet", "warm_up.parquet"


def think(body: dict) -> tuple[str, str]:
    """Thoughts and answer; wrong where the teacher is asked to corrupt a chain."""
    prompt = body["messages"][-1]["content"]
    number = int(prompt.rpartition("What is ")[2].partition(" ")[0])
    result = number + (5 if "Wrong reasoning:" in prompt else 1)
    return f"Take {number} and one more: {result}.", f"Therefore, the answer is {result}."


def in_field(body: dict) -> str:
    thoughts, said = think(body)
    whole = json.loads(completion(said))
    whole["choices"][0]["message"]["reasoning_content"] = thoughts
    return json.dumps(whole)


def in_tags(body: dict) -> str:
    thoughts, said = think(body)
    return f"<think>\n{thoughts}\n</think>\n\n{said}"


@pytest.mark.parametrize("answer", [in_field, in_tags], ids=["field", "tags"])
def test_generate_train_evaluate(tmp_path, capsys, answer):
    questions = [{"question": f"What is {n} and 1?", "answer": str(n + 1), "id": str(n)} for n in range(2, 8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    generated, trained = tmp_path / "generated", tmp_path / "trained"
    tokenizer = thinking_tokenizer("think", special=False)
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(tmp_path / "student")
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "student")
    recipe = {
        "model": MODEL,
        "dataset_name": "questions.jsonl",
        "thoughts": "keep",
        "rectify": "none",
        "api_key_env": "",
        "output_dir": str(generated),
    }
    (tmp_path / "generate.yaml").write_text(yaml.safe_dump(recipe))
    task = {"dataset_name": "questions.jsonl", "answer_type": "number"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))

    with running(ChatServer(answer)) as url:
        words = ["generate", "--config", str(tmp_path / "generate.yaml"), "--base_urls", url]
        assert main(words) == 0, capsys.readouterr().err
        asked = ["evaluate", "--model", MODEL, "--base_urls", url, "--api_key_env", ""]
        asked += ["--tasks", str(tmp_path / "task.yaml"), "--output_dir", str(tmp_path / "at_endpoint")]
        assert main(asked) == 0, capsys.readouterr().err
    rows = load_dual_cots(generated / DUAL)
    assert len(rows) == len(questions)
    assert all(chain_text(row["chosen"]).startswith("<think>\nTake ") for row in rows)
    (run,) = (tmp_path / "at_endpoint").rglob("evaluation.json")
    items = read_run(run.parent).items
    assert {item["verdict"] for item in items} == {"correct"}
    assert all("Take " in item["samples"][0]["response"] for item in items)

    words = ["train", "--model_name_or_path", str(tmp_path / "student"), "--dataset", str(generated / DUAL)]
    words += ["--output_dir", str(trained), "--use_cpu", "true", "--max_steps", "2", "--save_strategy", "no"]
    words += ["--chat_template_kwargs", '{"enable_thinking": true}', "--report_to", "none"]
    assert main(words) == 0, capsys.readouterr().err
    assert json.loads((trained / "card.json").read_text())

    words = ["evaluate", "--model", str(trained), "--tasks", str(tmp_path / "task.yaml"), "--max_new_tokens", "12"]
    words += ["--max_thinking_tokens", "6", "--chat_template_kwargs", '{"enable_thinking": true}']
    assert main([*words, "--output_dir", str(tmp_path / "of_student")]) == 0, capsys.readouterr().err
