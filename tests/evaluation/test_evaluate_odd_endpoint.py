"""An evaluation at an endpoint with every habit at once."""

import json
from pathlib import Path

from chat_server import MODEL, running
from odd_endpoint import FOR_GOOD, WITHOUT_ANSWER, OddEndpoint, kind_of, number_in

from edit_trl.cli.main import main
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.models.chat.journal import Journal

COUNT = 300


def run(folder: Path, url: str, *options: str) -> int:
    command = ["evaluate", "--model", MODEL, "--base_urls", url, "--tasks", str(folder / "sums.yaml")]
    return main([*command, "--output_dir", str(folder / "out"), "--history", "null", "--max_attempts", "2", *options])


def test_every_habit_at_once(tmp_path, capsys):
    rows = [{"id": str(n), "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(COUNT)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text("dataset_name: q.jsonl\nanswer_type: number\n")
    server = OddEndpoint(lambda body: f"One more. The answer is {number_in(body) + 1}.")
    reasons = list(FOR_GOOD.values())
    unanswered = {
        f"sums/{n}": reasons[place % len(reasons)]
        for n, (kind, place) in enumerate(map(kind_of, range(COUNT)))
        if kind == "never"
    }
    with running(server) as url:
        assert run(tmp_path, url) == 2
        shown, seen = capsys.readouterr().err, server.seen
        assert "30 requests got no answer. The others are kept: run the same command again to ask these" in shown
        assert "  - sums/3: longer than the model's context (status 400: 'max_tokens' or" in shown
        assert "... and 20 more, in" in shown
        lines = (tmp_path / "out" / "unanswered.jsonl").read_text().splitlines()
        assert {line["item"]: line["reason"] for line in map(json.loads, lines)} == unanswered
        with Journal(tmp_path / "out") as journal:
            assert len(journal) == server.answered.total() == COUNT - len(unanswered)
        assert set(server.answered.values()) == {1}

        assert run(tmp_path, url, "--allow_unanswered", "true") == 0
        twice = sum("2 attempts" in reason for reason in unanswered.values())
        assert server.seen - seen == len(unanswered) + twice
        assert "some questions got no answer and count as unparsed" in capsys.readouterr().err
    items = {int(item["id"]): item for item in read_run(tmp_path / "out").items}
    outcomes = [outcome for outcome, bodies in WITHOUT_ANSWER.items() for _ in bodies]
    for number, item in items.items():
        kind, place = kind_of(number)
        is_whole = kind == "whole"
        assert item["verdict"] == item["lenient_verdict"] == ("correct" if is_whole else "unparsed"), number
        assert item["cut_off"] == (kind == "none" and outcomes[place % len(outcomes)] == "cut off")
