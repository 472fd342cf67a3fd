"""The main job, on the real student."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "recipes" / "quickstart" / "quickstart.py"


@pytest.mark.slow
def test_quickstart(tmp_path):
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    scores = {name: result["scores"] for name, result in results["models"].items()}
    assert scores["key_steps"]["accuracy"] > scores["base"]["accuracy"] + 0.2
    assert scores["key_steps"]["accuracy"] >= scores["warm_up"]["accuracy"]
    assert scores["key_steps"]["unparsed"] <= scores["base"]["unparsed"]
    assert scores["key_steps"]["key_preference"] > 0.5
    assert done.stdout.splitlines()[-1] == str(tmp_path / "report.html")
    assert "<html" in (tmp_path / "report.html").read_text()
    for name in ("adapter_model.safetensors", "README.md", "tokenizer_config.json"):
        assert (tmp_path / "key_steps" / name).is_file()
    assert "key_steps" in done.stdout
    # A second call has nothing to train.
    again = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("nothing to do") == 2
