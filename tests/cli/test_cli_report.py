import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROWS
from report_data import evaluate_items, read_page, suite_items, write_run, write_training

from edit_trl.cli.main import main

TASKS = [{**row, "task": "all"} for row in ROWS]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Runs of every kind, and training, side by side."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "base", "evaluate", "base", evaluate_items(TASKS, 0.5))
    write_run(tmp_path / "runs" / "tuned", "evaluate", "tuned", evaluate_items(TASKS, 1.0))
    write_run(tmp_path / "suite", "suite", "tuned", suite_items(TASKS, 1.0))
    write_training(tmp_path / "train")
    return tmp_path


def test_runs_of_every_kind(folder, capfd):
    arguments = ["runs/base", "runs/tuned", "suite", "train", "--output", "out/page.html"]
    assert main(["report", *arguments]) == 0
    output = capfd.readouterr().out
    assert output == f"{folder / 'out' / 'page.html'}: 3 runs with 12 items and 1 training run, 0.1 MB\n"
    data, items = read_page(folder / "out" / "page.html")
    assert [(run["kind"], run["name"]) for run in data["runs"]] == [
        ("evaluate", "base"),
        ("evaluate", "tuned"),
        ("suite", "tuned"),
    ]
    assert data["title"] == "base, tuned"
    assert [stage["name"] for stage in data["training"][0]["stages"]] == ["warm_up", "key_steps"]
    assert len(items) == 4
    assert main(["report", "suite", "--output", "out/page.html", "--title", "Mine"]) == 0
    assert read_page(folder / "out" / "page.html")[0]["title"] == "Mine"


def test_a_folder_of_runs_a_file_of_a_run_and_a_stage(folder, capfd):
    assert main(["report", "runs", "suite/items.jsonl", "train/warm_up"]) == 0
    assert "3 runs with 12 items and 1 training run" in capfd.readouterr().out
    data, _ = read_page(folder / "report.html")
    assert [training["name"] for training in data["training"]] == ["warm_up"]
    assert [stage["name"] for stage in data["training"][0]["stages"]] == [""]


def test_a_training_run_that_holds_its_measurements(folder, capfd):
    (folder / "runs" / "base").rename(folder / "train" / "measured")
    assert main(["report", "train"]) == 0
    assert "1 run with 4 items and 1 training run" in capfd.readouterr().out


def test_bad_folders_are_named_all_at_once(folder, capfd):
    (folder / "empty").mkdir()
    record = folder / "runs" / "base" / "evaluation.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"format": 99}))
    assert main(["report", "nowhere", "empty", "runs/base", "suite", "suite/", "--output", "new.html"]) == 2
    error = capfd.readouterr().err
    assert "no such folder: nowhere" in error
    assert "empty holds no run of `edit-trl evaluate`, `suite` or `train`" in error
    assert "format 99" in error
    assert f"{folder / 'suite'} is given twice" in error
    assert not Path("new.html").exists()


def test_an_unfinished_run(folder, capfd):
    record = folder / "suite" / "evaluation.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": None}))
    assert main(["report", "suite"]) == 2
    assert "not finished" in capfd.readouterr().err


def test_what_is_no_report_is_not_replaced(folder, capfd):
    Path("notes.html").write_text("mine")
    assert main(["report", "suite", "--output", "notes.html"]) == 2
    assert "exists and is not a report of edit-trl" in capfd.readouterr().err
    assert Path("notes.html").read_text() == "mine"


@pytest.mark.parametrize("found", [True, False])
def test_it_is_opened(folder, found):
    browser = folder / "browser"
    if found:
        browser.write_text(f'#!{sys.executable}\nimport sys\nopen("opened", "w").write(sys.argv[1])\n')
        browser.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "edit_trl.cli.main", "report", "suite", "--open"],
        env={**os.environ, "BROWSER": f"{browser} %s", "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    if found:
        assert (folder / "opened").read_text() == (folder / "report.html").as_uri()
    assert ("no browser was found" in done.stderr) == (not found)


def test_the_help_and_a_missing_argument(capfd):
    with pytest.raises(SystemExit) as left:
        main(["report", "--help"])
    assert left.value.code == 0
    assert "--output FILE" in capfd.readouterr().out
    assert main(["report"]) == 2


def test_a_page_goes_to_a_pipe_or_standard_output_as_it_is(folder):
    command = [sys.executable, "-m", "edit_trl.cli.main", "report", "suite", "--output"]
    for output in ("/dev/stdout", "pipe"):
        if output == "pipe":
            os.mkfifo("pipe")
            reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
        with open("page.html", "wb") as page:
            done = subprocess.run([*command, output], stdout=page, stderr=subprocess.PIPE, text=True, check=True)
        if output == "pipe":
            Path("page.html").write_bytes(reader.communicate()[0])
            assert Path("pipe").is_fifo()
        assert f"{output}: 1 run with" in done.stderr
        page = Path("page.html").read_text()
        assert page.startswith("<!DOCTYPE html>")
        assert page.rstrip().endswith("</html>")
