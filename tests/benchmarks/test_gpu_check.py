"""The check of a GPU: what it does without one, rows of what cannot be measured, and a rehearsal of all of it."""

import json
import subprocess
import sys

import gpu_check
import pytest
import torch

FLEX_NEEDS_A_GPU = "FlexAttention does not support backward on CPU"


def test_without_a_gpu_it_says_so_in_one_line(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_check.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: there is no GPU here; `--rehearse` runs all parts with tiny shapes on the CPU\n"


def test_a_check_that_fails_is_a_row_that_says_why():
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert gpu_check.measured("8b", "padded", too_large).problem == "out of memory on this GPU"
    row = gpu_check.measured("8b", "padded", lambda: torch.ones(2) @ torch.ones(3))
    assert row.problem.startswith("RuntimeError: ")
    assert row.name == "padded"


def test_rows_that_a_dead_process_has_left_out_say_why(tmp_path):
    """Here the process cannot read its model; a GPU's error that ends the process reads the same."""
    words = ["--rehearse", "--model", str(tmp_path / "none"), "--folder", str(tmp_path)]
    rows = gpu_check.run_in_a_process("student", [*words, "--no_such_option"], ["QLoRA of none"], 60)
    assert [row.name for row in rows] == ["QLoRA of none"]
    assert rows[0].problem.startswith("its process ended with code 2: gpu_check.py: error: unrecognized arguments")
    rows = gpu_check.run_in_a_process("student", words, ["QLoRA of none"], 0.1)
    assert rows[0].problem == "not reached within 0 s"


def test_a_rehearsal_has_a_row_for_every_check(tmp_path):
    output = tmp_path / "record.json"
    command = [sys.executable, gpu_check.__file__, "--rehearse", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record == json.loads(output.read_text())
    scale = gpu_check.rehearsal()
    for part, kind in gpu_check.PARTS.items():
        rows = [row for row in record["rows"] if row["part"] == part]
        assert [row["name"] for row in rows] == list(kind.checks(scale, "student", tmp_path))
        for row in rows:
            if row["name"].endswith("vllm"):
                continue
            if "FlexAttention" in row["name"] and part != "agreement" and not torch.cuda.is_available():
                assert FLEX_NEEDS_A_GPU in row["problem"]
            else:
                assert row["problem"] is None
                assert row["value"]
    assert "a rehearsal, whose figures mean nothing" in done.stdout
