"""A generation at an endpoint with every habit at once: what can be answered is, and the rest is listed."""

import json
from collections import Counter

from chat_server import running
from generate_runs import recipe, solve
from odd_endpoint import FOR_GOOD, WITHOUT_ANSWER, OddEndpoint, kind_of

from edit_trl.cli.main import main
from edit_trl.models.chat.journal import Journal

COUNT = 300


def expected() -> tuple[list[dict], Counter]:
    """The failures, and how often each outcome of the first stage comes."""
    reasons = list(FOR_GOOD.values())
    outcomes = [outcome for outcome, bodies in WITHOUT_ANSWER.items() for _ in bodies]
    failures, counts = [], Counter()
    for number in range(COUNT):
        kind, place = kind_of(number)
        if kind == "never":
            question = {"question": f"row {number + 1}", "stage": "annotate", "reason": reasons[place % len(reasons)]}
            failures.append(question)
            counts["failed"] += 1
        elif kind == "none":
            counts[outcomes[place % len(outcomes)]] += 1
        else:
            counts["wrong" if number % 2 else "correct"] += 1
    return sorted(failures, key=lambda failure: failure["question"]), counts


def test_every_habit_at_once(tmp_path, capsys):
    server = OddEndpoint(solve)
    failures, counts = expected()
    with running(server) as url:
        path = recipe(tmp_path, url, questions=COUNT, max_attempts=2)
        assert main(["generate", "--config", str(path)]) == 0
        first, seen = capsys.readouterr(), server.seen
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["counts"]["annotate"] == counts
        assert report["failures"] == failures
        assert set(server.answered.values()) == {1}
        with Journal(tmp_path / "out") as journal:
            assert len(journal) == server.answered.total()
        assert f"without an answer: {len(failures)}, the first in annotate of {failures[0]['question']}" in first.out
        assert "from the journal" not in first.err

        files = {name: (tmp_path / "out" / name).read_bytes() for name in ("dual.parquet", "report.json")}
        assert main(["generate", "--config", str(path)]) == 0
        # One kind of failure is tried twice.
        twice = sum("2 attempts" in failure["reason"] for failure in failures)
        assert server.seen - seen == len(failures) + twice
        assert set(server.answered.values()) == {1}
        assert files == {name: (tmp_path / "out" / name).read_bytes() for name in files}
    card = (tmp_path / "out" / "README.md").read_text()
    assert not {"\x1b", "\ud800"} & set(card + first.out + first.err)
    assert "{{x}}" in card  # a reported name: shown, and not filled in
