"""`edit-trl suite` as it is typed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROWS
from suite_rows import RIGHT, SEVERAL, WRONG, evaluated

from edit_trl.cli.main import main
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.runs.history import read_history


@pytest.fixture
def pairs(tmp_path) -> Path:
    alone = {"prompt": "What is 1 + 2?\n", "chosen": "The answer is 3.", "rejected": [], "id": "alone"}
    file = tmp_path / "pairs.jsonl"
    rows = [{**row, "rejected": [row["rejected"]]} for row in ROWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, SEVERAL, alone]))
    return file


@pytest.fixture
def suite(tmp_path, saved_student, capsys):
    """The command with a tiny student; returns its exit code and what it printed."""

    def run(*options, folder="run", model=saved_student) -> tuple[int, str, str]:
        code = main(
            [
                *("suite", "--model", str(model), "--output_dir", str(tmp_path / folder)),
                *("--history", str(tmp_path / "history.sqlite"), "--max_new_tokens", "3"),
                *map(str, options),
            ]
        )
        return code, *capsys.readouterr()

    return run


def test_a_file_of_pairs_is_measured_kept_and_remembered(suite, pairs, tmp_path, capsys):
    code, out, err = suite("--dataset_name", pairs, "--name", "mine")
    assert code == 0, err
    assert f"{len(ROWS) + 2} pairs of 2 tasks; 1 rows left out" in err
    assert "key_preference" in out
    assert "95% interval" in out
    meaning = "share of pairs whose correct key steps are likelier per token"
    assert out.count(meaning) == 1
    assert out.rstrip().endswith(str(tmp_path / "run"))
    assert main(["suite", "--help"]) == 0
    assert capsys.readouterr().out.count(meaning) == 1
    run = read_run(tmp_path / "run")
    assert len(run.items) == run.record.items == len(ROWS) + 2
    assert run.record.tasks == {"all": "1", "sums": "1"}
    assert run.record.settings["max_new_tokens"] == 3
    [row] = read_history(tmp_path / "history.sqlite")
    assert (row.kind, row.name, row.scores) == ("suite", "mine", run.record.scores)

    before = (tmp_path / "run" / "items.jsonl").read_bytes()
    code, again, err = suite("--dataset_name", pairs, "--name", "mine")
    assert (code, again) == (0, out)
    assert "is finished" in err
    assert (tmp_path / "run" / "items.jsonl").read_bytes() == before


def test_procedural_pairs_and_no_history(suite, tmp_path):
    code, out, err = suite(
        *("--rows", 4, "--families", "navigate", "word_sorting", "--seed", 5, "--conversational", "false"),
        *("--greedy", "false", "--history", "null", "--key_step_method", "spans"),
    )
    assert code == 0, err
    run = read_run(tmp_path / "run")
    assert [item["task"] for item in run.items] == ["navigate", "word_sorting"] * 2
    assert run.record.scores["right_branch"] is None
    assert run.items[0]["source"] == "procedural"
    assert "procedural" in out
    assert not (tmp_path / "history.sqlite").exists()


def test_pairs_of_a_run(suite, tmp_path):
    evaluated(tmp_path / "evaluated", {"a": [RIGHT, WRONG]})
    code, _, err = suite("--from_run", tmp_path / "evaluated")
    assert code == 0, err
    [item] = read_run(tmp_path / "run").items
    assert (item["id"], item["chosen"], item["source"]) == ("sums/a", RIGHT["response"], "sampled")


def test_files_are_looked_for_beside_the_recipe(suite, pairs, tmp_path):
    recipe = tmp_path / "suite.yaml"
    recipe.write_text(f"dataset_name: {pairs.name}\nlimit: 1\n")
    assert suite("--config", recipe)[0] == 0
    assert len(read_run(tmp_path / "run").items) == 1


BAD = {
    "no such file": (["--dataset_name", "nothing.jsonl"], "no such file or folder: 'nothing.jsonl'"),
    "no such run": (["--from_run", "nothing"], "no run of `edit-trl evaluate`"),
    "family": (["--rows", "3", "--families", "navigat"], "did you mean `navigate`"),
    "option": (["--dataset", "x"], "unknown option --dataset"),
    "no model": (["--rows", "3", "--model", "/nowhere"], "no such folder"),
    "device": (["--rows", "3", "--device", "abacus"], "`device: abacus`"),
    "too long": (["--rows", "3", "--conversational", "false", "--max_new_tokens", "900"], "512 positions"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_2_and_leaves_nothing(name, suite, tmp_path):
    options, says = BAD[name]
    code, out, err = suite(*options)
    assert (code, out) == (2, "")
    assert says in err
    assert not (tmp_path / "run").exists()


def test_an_empty_suite_and_a_broken_row_are_named(suite, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "a\n", "chosen": "b", "rejected": []}) + "\n")
    code, _, err = suite("--dataset_name", file)
    assert code == 2
    assert "pairs.jsonl: the suite is empty" in err
    file.write_text(json.dumps({"prompt": "a\n", "chosen": "b", "rejected": 3}) + "\n")
    code, _, err = suite("--dataset_name", file)
    assert code == 2
    assert "pairs.jsonl, row 1, rejected" in err


def test_weights_that_are_no_numbers_are_said(suite, pairs, saved_student, model):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(saved_student)
    code, _, err = suite("--dataset_name", pairs)
    assert code == 2
    assert "the log-probability of token 1 of the correct chain is nan" in err


def test_another_model_in_the_same_folder_is_refused(suite, pairs, saved_student, model):
    assert suite("--dataset_name", pairs)[0] == 0
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    model.save_pretrained(saved_student)
    code, _, err = suite("--dataset_name", pairs)
    assert code == 2
    assert "holds another run (model_hash" in err


def test_help_is_quick_and_lists_the_options(capsys):
    assert main(["suite", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--from_run", "--key_step_method", "--base_urls", "--history"):
        assert option in text
    code = "import sys, edit_trl.cli.suite; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_run_killed_five_times_goes_on_to_the_same_bytes(tmp_path, saved_student):
    """A real process, ended by SIGKILL as soon as it has kept some more items."""

    def start(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "edit_trl.cli.main", "suite", "--model", str(saved_student)]
        command += ["--rows", "24", "--conversational", "false", "--max_new_tokens", "8", "--batch_size", "1"]
        command += ["--output_dir", str(folder), "--name", "killed", "--history", "null"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(process: subprocess.Popen) -> None:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error

    finish(start(tmp_path / "whole"))
    part = tmp_path / "part"
    items, kept = part / "items.jsonl", []
    for _ in range(5):
        before = kept[-1] if kept else 0
        process = start(part)
        while process.poll() is None and (not items.exists() or items.read_bytes().count(b"\n") < before + 2):
            time.sleep(0.002)
        process.kill()
        process.communicate(timeout=120)
        kept.append(items.read_bytes().count(b"\n"))
    assert kept == sorted(kept)
    finish(start(part))
    assert items.read_bytes() == (tmp_path / "whole" / "items.jsonl").read_bytes()
    records = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("part", "whole")]
    for record in records:
        for changing in ("created", "finished", "seconds"):
            record.pop(changing)
    assert records[0] == records[1]
