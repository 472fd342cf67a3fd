"""What is wrong with the input of a benchmark is one sentence, as on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, "rows.jsonl: No such file or directory"),
        ('{"chosen": 3', "rows.jsonl, line 1: not JSON"),
        (json.dumps({"chosen": 3, "rejected": "b"}), "rows.jsonl, row 1, chosen: 3 (int) is no text"),
    ],
)
def test_rows_of_a_benchmark(tmp_path, rows, expected):
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text(rows)
    command = [sys.executable, BENCHMARKS / "key_step_speed.py", "--data", "rows.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert "Traceback" not in done.stderr
