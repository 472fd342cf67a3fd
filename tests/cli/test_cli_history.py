"""`edit-trl history`: the table, the plot and what it says of bad input."""

import json
from dataclasses import replace

import pytest
from run_folders import finished_run, outcomes, suite_item

from edit_trl.cli.main import main
from edit_trl.evaluation.runs.history import record_run
from edit_trl.evaluation.runs.schema import Run


@pytest.fixture
def file(tmp_path):
    """Four runs of evaluate, a day apart, and one of a suite."""
    runs = [finished_run(tmp_path / f"run{n}", outcomes("+" * n + "-" * (4 - n)), f"edit {n}") for n in range(4)]
    pairs = [suite_item(1, 0.5, 0.25), suite_item(2, -0.5)]
    runs.append(finished_run(tmp_path / "suite", pairs, "[bold]pairs\x1b[31m", "suite", data_hash="d2"))
    file = tmp_path / "history.sqlite"
    for day, run in enumerate(runs, 1):
        record_run(Run(run.path, replace(run.record, finished=f"2026-01-0{day}T10:30:59Z"), run.items), file)
    return file


def lines(capsys, *arguments):
    assert main(["history", *map(str, arguments)]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_the_table(file, capsys, tmp_path):
    header, _, *rows = lines(capsys, "--file", file)
    assert header.split() == ["finished", "name", "items", "seed", "score", "revision", "model", "folder"]
    assert [row.split()[:2] for row in rows] == [[f"2026-01-0{day}", "10:30"] for day in range(1, 6)]
    assert "edit 3" in rows[3]
    assert "accuracy 75.0%" in rows[3]
    assert rows[3].endswith(str(tmp_path / "run3"))
    assert "key_preference 100.0%" in rows[4]
    assert "[bold]pairs\N{SYMBOL FOR ESCAPE}[31m" in rows[4]  # as text, not as a style


def test_filters(file, capsys):
    assert len(lines(capsys, "--file", file, "--kind", "suite")) == 3
    assert len(lines(capsys, "--file", file, "--name", "EDIT")) == 6
    assert len(lines(capsys, "--file", file, "--model", "edit 2")) == 3
    shown = lines(capsys, "--file", file, "--last", 2)
    assert ["edit 3" in shown[2], shown[-1]] == [True, "  3 earlier runs not shown"]
    assert lines(capsys, "--file", file, "--name", "nobody") == [f"{file}: no matching run"]


def test_the_plot(file, capsys):
    header, _, *rows = lines(capsys, "--file", file, "--metric", "accuracy")
    assert header.split() == ["finished", "name", "data", "accuracy", "0.0%", "75.0%"]
    assert [row.split()[-2] for row in rows] == ["0.0%", "25.0%", "50.0%", "75.0%"]
    assert [row.split()[-1].index("●") for row in rows] == [0, 8, 15, 23]
    assert {len(row.split()[-1]) for row in rows} == {24}


def test_the_plot_of_one_run_and_of_margins(file, capsys):
    header, _, row = lines(capsys, "--file", file, "--metric", "key_margin")
    assert header.split()[-1] == "0.250"
    assert row.split()[-2:] == ["0.250", "●" + "·" * 23]


def test_other_data_is_pointed_at(file, capsys, tmp_path):
    record_run(finished_run(tmp_path / "other", outcomes("+-"), "other", data_hash="d3"), file)
    assert "the data differs between some of these runs" in lines(capsys, "--file", file, "--metric", "accuracy")[-1]


def test_json(file, capsys, tmp_path):
    assert main(["history", "--file", str(file), "--last", "2", "--json"]) == 0
    third, suite = json.loads(capsys.readouterr().out)
    assert third["scores"]["accuracy"] == 0.75
    assert (suite["kind"], suite["data_hash"], suite["path"]) == ("suite", "d2", str(tmp_path / "suite"))
    assert suite["scores"]["greedy_accuracy"] is None


def test_the_default_file(file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["history"]) == 2
    assert "no history at outputs/history.sqlite" in capsys.readouterr().err
    (tmp_path / "outputs").mkdir()
    file.rename("outputs/history.sqlite")
    assert len(lines(capsys)) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "acuracy"], "no run has a metric 'acuracy'; did you mean `accuracy`?"),
        (["--metric", "x"], "choose from accuracy, lenient_accuracy"),
        (["--last", "0"], "--last must be 1 or more, got 0"),
        (["--file", "nowhere.sqlite"], "no history at nowhere.sqlite"),
        (["--file", __file__], "file is not a database"),
    ],
)
def test_bad_input(file, capsys, arguments, message):
    assert main(["history", "--file", str(file), *arguments]) == 2
    assert message in capsys.readouterr().err
