"""Bad inputs of every kind: how they are judged, some of them, and (slow) all of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from robustness_cases.all_cases import all_cases
from robustness_cases.case import CONTROL, Case, Outcome, judge

from edit_trl.cli.main import COMMANDS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "robustness.py"
REFUSED = "error: x.yaml: `seed` is given twice\n"
SOME = (
    "good input: train: as it is",
    "YAML: train: UTF-16 without its mark",
    "YAML: judge: a list",
    "unknown option: chat: --systm x",
    "option: generate: --top_p 1.5",
    "option: suite: --dataset_name null --rows 0",
    "training choice: validate: preference_loss: 'Hinge'",
    "rows: inspect: cut JSON",
    "runs: compare: a cut record",
    "history: history: a file that is no database",
    "journals: judge: a cut journal",
    "Hub ids: push: three parts",
    "foreign text: inspect: a column",
)


def case(said="seed", **more):
    return Case("YAML", "a key given twice", ("train", "--config", "x.yaml"), said, **more)


def outcome(code=2, err=REFUSED, **more):
    return Outcome(code, "", err, more.pop("changed", []), **more)


@pytest.mark.parametrize(
    ("bad_input", "came", "verdict", "wrong"),
    [
        (case(), outcome(), "clean", ""),
        (case(), outcome(err=f"Loading: 3/3\r\n{REFUSED}"), "clean", ""),
        (case(("x.yaml", "TWICE")), outcome(), "clean", ""),
        (case(("x.yaml", "line 2")), outcome(), "unclear", "does not say 'line 2'"),
        (case(), outcome(err="seed is bad\n"), "unclear", "no line that begins"),
        (case(), outcome(err=f"Loading: 0/3{REFUSED}"), "unclear", "no line that begins"),
        (case(), outcome(changed=["out/.draft"]), "unclear", "left behind or changed: out/.draft"),
        (case(), outcome(changed=["out/.edit_trl.lock"]), "clean", ""),
        (case(leaves="out/.*"), outcome(changed=["out/journal"]), "clean", ""),
        (case(), outcome(paid=1), "unclear", "1 requests were paid"),
        (case(pays=1), outcome(paid=1), "clean", ""),
        (case(), outcome(loaded=True), "unclear", "a model was loaded"),
        (case(loads=True), outcome(loaded=True), "clean", ""),
        (case(), outcome(err="error: seed \x1b[31m\n"), "unclear", "control characters"),
        (case(), outcome(0, "done\n"), "silent", "exit code 0: done"),
        (case(), outcome(1, "seed\n"), "traceback", "exit code 1"),
        (case(), outcome(-9, "seed\n"), "traceback", "exit code -9"),
        (case(), outcome(None), "traceback", "not done after 60 s"),
        (case(), outcome(1, "Traceback (most recent call last):\nKeyError: 'seed'\n"), "traceback", "KeyError"),
        (case(None, check=lambda *_: None), outcome(0, ""), "clean", ""),
        (case(None, check=lambda *_: "the rate is 0"), outcome(0, ""), "silent", "the rate is 0"),
        (case(None, check=lambda *_: None), outcome(), "unclear", "refused"),
        (case(check=lambda *_: None), outcome(), "clean", ""),
        (case(None, check=lambda folder, _: (folder / "gone").read_text()), outcome(0, ""), "silent", "no result"),
    ],
)
def test_verdicts(tmp_path, bad_input, came, verdict, wrong):
    found = judge(bad_input, came, tmp_path)
    assert found[0] == verdict
    assert wrong in found[1]
    assert bool(wrong) == bool(found[1])


def test_every_command_has_many():
    cases = [one for one in all_cases().values() if one.kind != CONTROL]
    assert len(cases) >= 300
    for command in COMMANDS:
        assert sum(one.command == command for one in cases) >= 10, command
    assert set(SOME) <= all_cases().keys()


def run(tmp_path, *words, seconds) -> tuple[int, dict, dict]:
    """The exit code, the verdicts by title, and the figures of the last line."""
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "all.json"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.stdout, done.stderr[-3000:]
    reports = json.loads((tmp_path / "all.json").read_text())
    listed = {title: f"{report['verdict']}: {report['wrong']}" for title, report in reports.items()}
    return done.returncode, listed, json.loads(done.stdout.splitlines()[-1])


def test_some_bad_inputs(tmp_path):
    only = "|".join(f"^{re.escape(title)}$" for title in SOME)
    code, reports, figures = run(tmp_path, "--jobs", "1", "--only", only, seconds=300)
    assert reports == dict.fromkeys(SOME, "clean: ")
    assert code == 0
    assert figures["tried"] == figures["clean"] == len(SOME) - 1


@pytest.mark.slow
def test_all_bad_inputs(tmp_path):
    code, reports, figures = run(tmp_path, "--jobs", "2", seconds=3600)
    failed = {title: report for title, report in reports.items() if report.startswith(("traceback", "silent"))}
    assert failed == {}
    assert code == 0
    assert figures["tried"] >= 300
