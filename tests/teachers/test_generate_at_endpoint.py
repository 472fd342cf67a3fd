"""`edit-trl generate` at an endpoint: what is checked before anything is paid, and what comes of bad answers."""

import json

import pytest
import yaml
from chat_server import ChatServer, running
from generate_runs import recipe, solve

from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.teachers.generate_config import read_generate_config


def generate(path, *options: str) -> int:
    return main(["generate", "--config", str(path), *options])


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("../../x", "push_to_hub '../../x' is no id of the Hub"),
        ("rows", "push_to_hub 'rows' has no namespace"),
        ("me/rows", "push_to_hub 'me/rows': the Hub cannot be reached"),  # the tests are offline
    ],
)
def test_a_push_is_checked_before_anything_is_paid(tmp_path, capsys, repository, message):
    server = ChatServer(solve)
    with running(server) as url:
        assert generate(recipe(tmp_path, url, questions=4, push_to_hub=repository)) == 2
    assert message in capsys.readouterr().err
    assert server.seen == 0


def test_a_push_without_permission_costs_nothing_and_one_with_it_arrives(tmp_path, capsys, serve_hub):
    hub, server = serve_hub(), ChatServer(solve)
    with running(server) as url:
        path = recipe(tmp_path, url, questions=4)
        assert generate(path, "--push_to_hub", "eve/rows") == 2
        assert "Nothing has been asked or paid for yet" in capsys.readouterr().err
        assert server.seen == 0
        assert generate(path, "--push_to_hub", "ada/rows") == 0
    assert {"dual.parquet", "warm_up.parquet", "README.md"} <= hub.repos["dataset", "ada/rows"].files.keys()


@pytest.mark.parametrize("column", ["question", "answer", "id", "task", "context"])
def test_half_of_a_character_is_refused_with_its_row(tmp_path, capsys, column):
    server = ChatServer(solve)
    with running(server) as url:
        path = recipe(tmp_path, url)
        row = {"question": "What is 3 + 1?", "answer": "4", "id": "b", "task": "sums", "context": "c"}
        row[column] += "\ud83d"
        rows = [{"question": "What is 2 + 1?", "answer": "3"}, row]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for command in ("validate", "generate"):
            assert main([command, "--config", str(path)]) == 2
            message = capsys.readouterr().err
            assert f"line 2, '{column}': has '\\ud83d', half of a surrogate pair" in message
    assert server.seen == 0


def test_half_of_a_character_elsewhere_costs_nothing(tmp_path, capsys):
    server = ChatServer(solve)
    with running(server) as url:
        assert generate(recipe(tmp_path, url, system_prompt="half \ud83d")) == 2
        assert "a lone surrogate is no character" in capsys.readouterr().err
        (tmp_path / "e.jsonl").write_text('{"question": "q\\ud83d", "chain": "The answer is 4.", "answer": "4"}\n')
        assert generate(recipe(tmp_path, url, exemplars="e.jsonl")) == 2
        assert "e.jsonl, line 1, 'question': has '\\ud83d', half of a surrogate pair" in capsys.readouterr().err
    assert server.seen == 0


def test_what_is_null_is_sent_in_no_stage(tmp_path):
    server = ChatServer(solve)
    server.keep_bodies = True
    options = {"temperature": None, "top_p": None, "rectify_check": "self_consistency", "label": "paper"}
    with running(server) as url:
        assert generate(recipe(tmp_path, url, questions=4, **options)) == 0
    stages = {body["messages"][-1]["content"][:20] for body in server.bodies}
    assert len(stages) == 4  # the first two begin alike
    assert {frozenset(body) for body in server.bodies} == {frozenset({"model", "messages", "max_tokens"})}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"teacher": "procedural", "temperature": None, "top_p": None}, ["temperature", "top_p"]),
        ({"student": "s", "pairs": "pivots", "student_temperature": None}, ["student_temperature"]),
    ],
)
def test_a_model_that_is_loaded_needs_numbers(tmp_path, values, names):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as caught:
        read_generate_config(path, {})
    assert caught.value.problems == [
        f"`{name}: null` leaves it to an endpoint; a model that is loaded needs a number" for name in names
    ]


def test_failures_are_told_as_such(tmp_path, capsys):
    """Not as answers of the journal; and in the words of the endpoint, also where no pair is left."""
    server = ChatServer(solve, lambda n, body: '422 {"error": {"message": "we are closed"}}')
    with running(server) as url:
        assert generate(recipe(tmp_path, url, questions=3)) == 2
    shown = capsys.readouterr().err
    assert "annotate 3/3" in shown
    assert "3 failed" in shown
    assert "from the journal" not in shown
    assert "3 requests got no answer, the first in annotate of row 1: status 422: we are closed" in shown


def test_a_budget_without_counts_is_kept(tmp_path, capsys):
    def uncounted(body: dict) -> str:
        message = {"role": "assistant", "content": solve(body)}
        return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})

    server = ChatServer(uncounted)
    options = {"completion_price": 1e6, "max_cost": 2500, "max_concurrency": 1}  # an answer has at most 1024 tokens
    with running(server) as url:
        path = recipe(tmp_path, url, questions=20, **options)
        assert generate(path) == 2
        assert "2 answers came without token counts (`usage`)" in capsys.readouterr().err
        assert server.seen == 2
        assert generate(path, "--max_cost", "1e9") == 0
    assert "cost 40960.00 at most (40 answers without `usage`)" in capsys.readouterr().err
