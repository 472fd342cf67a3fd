"""The quickstart, on the real student and on a tiny one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from edit_trl.cli import quickstart
from edit_trl.cli.main import main

COMMAND = [sys.executable, "-m", "edit_trl.cli.main", "quickstart"]


def scores(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    return {name: result["scores"] for name, result in results["models"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_the_student_learns(tmp_path, full):
    command = [*COMMAND, "--output_dir", str(tmp_path), *(["--full"] if full else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    learned = scores(tmp_path)
    assert learned["key_steps"]["accuracy"] > learned["base"]["accuracy"] + 0.2
    assert learned["key_steps"]["accuracy"] >= learned["warm_up"]["accuracy"]
    assert learned["key_steps"]["unparsed"] <= learned["base"]["unparsed"]
    assert learned["key_steps"]["key_preference"] > 0.5


def test_every_step_on_a_tiny_student(tmp_path, saved_student):
    command = [*COMMAND, "--output_dir", "out", "--student", str(saved_student)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    lines = done.stdout.splitlines()
    # The end: a table of the three students, the report, and what to do next.
    table = [line.split()[0] for line in lines[-12:] if line.startswith(("base", "warm_up", "key_steps"))]
    assert table == ["base", "warm_up", "key_steps"]
    assert f"  {out / 'report.html'}" in lines
    assert "<html" in (out / "report.html").read_text()
    assert [line.split()[:2] for line in lines[-3:]] == [["edit-trl", word] for word in ("chat", "inspect", "recipes")]
    assert set(scores(out)) == {"base", "warm_up", "key_steps"}
    for name in ("adapter_model.safetensors", "README.md", "tokenizer_config.json"):
        assert (out / "key_steps" / name).is_file()
    # The first comparison is printed before the second stage trains.
    commands = [line for line in lines if line.startswith("$ edit-trl")]
    words = [line.split()[2] for line in commands]
    assert words[:5] == ["train", "evaluate", "evaluate", "compare", "train"]
    sizes = {name: len(split) for name, split in load_from_disk(str(out / "data")).items()}
    assert sizes == {"warm_up": 144, "test": 60, "key_steps": 160}

    again = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("nothing to do") == 2
    other = subprocess.run([*command, "--full"], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert other.returncode == 2
    assert "out has a quickstart with the options {'full': False, 'seed': 0" in other.stderr


def test_no_problem_is_in_two_splits(tmp_path):
    quickstart.make_data(tmp_path / "data", quickstart.Sizes(warm_up=6, key_steps=9, test=3), seed=1)
    splits = load_from_disk(str(tmp_path / "data"))
    assert {name: len(split) for name, split in splits.items()} == {"warm_up": 6, "test": 3, "key_steps": 9}
    prompts = [row["prompt"][-1]["content"] for split in splits.values() for row in split]
    assert len(set(prompts)) == 18


def test_a_student_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["quickstart", "--student", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: no student '{tmp_path / 'none'}'" in error
    assert error.rstrip().endswith("give --student a path or a Hub id of a model")


def test_a_folder_that_cannot_be_is_told_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["quickstart", "--output_dir", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert "file/quickstart.json: Not a directory" in captured.err
    assert captured.out == ""


def test_a_bad_seed_is_told_before_the_student_is_fetched(tmp_path, capsys):
    assert main(["quickstart", "--seed", "-1", "--output_dir", str(tmp_path / "out")]) == 2
    assert "seed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_loads_no_library():
    program = """
import sys
from edit_trl.cli.main import main
try:
    main(["quickstart", "--help"])
finally:
    print(sorted({"torch", "transformers", "datasets"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "5 to 7 minutes on 2 CPU cores" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "[]"
