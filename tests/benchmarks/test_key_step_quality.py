"""The benchmark of key-step locators: a model behind HTTP that names the steps is scored beside the others."""

import json

import key_step_quality
import pytest
from chat_server import MODEL, ChatServer, running

from edit_trl.common.errors import InputError

ROWS = [
    {
        "question": f"Ann has {n} apples, eats 5 and buys 2. How many?",
        "original_question": f"Ann {n}",
        "correct_steps": [f"She has {n}.", f"{n} - 5 = {n - 5}.", f"{n - 5} + 2 = {n - 3}."],
        "wrong_steps": [f"She has {n}.", f"{n} - 5 = {n - 4}.", f"{n - 4} + 2 = {n - 2}."],
        "error_steps": [2],
        "mistake": "calculation",
    }
    for n in range(10, 22)
]


def test_a_model_that_names_the_right_step_is_better_than_the_alignment(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")

    def answer(body: dict) -> str:
        """Right, but for the pair of 10 apples, about which it says nothing that can be used."""
        return "I think so." if "has 10 apples" in body["messages"][-1]["content"] else "Steps: 2"

    server = ChatServer(answer)
    with running(server) as url:
        words = ["--data", data, "--procedural_pairs", 10, "--base_url", url, "--model", MODEL]
        words += ["--journal", tmp_path / "journal"]
        for _ in range(2):
            key_step_quality.main(list(map(str, words)))
            printed = capsys.readouterr().out
    results = json.loads(printed.splitlines()[-1])
    assert results["outcomes"] == {"labelled": 11, "unparsed": 1}
    # `words` marks the error and what follows from it: half of its marks are in the error step.
    assert results["asked"]["asked"]["all"]["precision"] == 1.0
    assert results["asked"]["asked"]["all"]["recall"] == 1.0
    assert results["asked"]["words"]["all"]["precision"] < 0.5
    assert sum(server.paid.values()) == 12  # the second time, none is asked


def test_an_endpoint_needs_a_model_and_a_place_for_its_answers(tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="--base_url needs --model and --journal"):
        key_step_quality.main(["--data", str(data), "--base_url", "http://127.0.0.1:9/v1"])
