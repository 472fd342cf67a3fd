"""`edit-trl compare`: forms of output, exit codes and what it says of bad input."""

import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from run_folders import finished_run, outcomes, suite_item

from edit_trl.cli.main import main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """base, better (3 fixed, 1 broken), two seeds of edit, and a suite, in the working directory."""
    monkeypatch.chdir(tmp_path)
    texts = {"base": "++------", "better": "+-+++---", "edit_seed0": "++++----", "edit_seed1": "+++++---"}
    for name, text in texts.items():
        finished_run(name, outcomes(text), name.split("_")[0])
    finished_run("suite", [suite_item(0, 0.1)], "suite", "suite")
    return tmp_path


def run(*arguments) -> int:
    return main(["compare", *map(str, arguments)])


def test_a_table(runs, capsys):
    assert run("base", "better") == 0
    output, errors = capsys.readouterr()
    assert output.startswith("accuracy: better against base\n")
    assert "3 fixed, 1 broken, 1 right in both, 3 wrong in both" in output
    assert errors == ""


@pytest.mark.parametrize("seeds", ["edit_seed0,edit_seed1", "edit_seed*", "edit_seed0,edit_seed[1-9]"])
def test_seeds_by_commas_and_by_a_pattern(runs, capsys, seeds):
    assert run("base", seeds, "--json", "-") == 0
    [edit] = json.loads(capsys.readouterr().out)["systems"]
    assert (edit["name"], edit["seeds"]) == ("edit", [1, 2])
    assert edit["overall"]["difference"]["value"] == pytest.approx(2.5 / 8)


def test_a_folder_with_a_comma_in_its_name(runs, capsys):
    finished_run("a,b", outcomes("++++++++"), "comma")
    assert run("base", "a,b") == 0
    assert "comma against base" in capsys.readouterr().out


def test_json_alone_is_on_stdout(runs, capsys):
    assert run("base", "better", "edit_seed0", "--json", "-", "--max-broken", "0") == 1
    output, errors = capsys.readouterr()
    values = json.loads(output)
    assert [system["name"] for system in values["systems"]] == ["better", "edit"]
    assert values["systems"][0]["fixed_items"] == [["sums", "2"], ["sums", "3"], ["sums", "4"]]
    assert [(gate["system"], gate["passed"]) for gate in values["gates"]] == [("better", False), ("edit", True)]
    assert errors == "failed: max-broken: better: right before and wrong now: 1, at most 0 may be\n"


def test_markdown_to_stdout_and_to_a_file(runs, capsys):
    assert run("base", "better", "--markdown", "-") == 0
    page = capsys.readouterr().out
    assert page.startswith("### accuracy: better against base\n")
    assert run("base", "better", "--markdown", "deep/page.md") == 0
    assert (runs / "deep" / "page.md").read_text() == page
    assert capsys.readouterr().out.startswith("accuracy: ")


def test_gates_exit_codes_and_junit(runs, capsys):
    assert run("base", "better", "--max-drop", "1%", "--min-score", "0.5", "--junit", "gates.xml") == 0
    [suite] = ElementTree.parse("gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "0")
    assert run("better", "base", "--max-drop", "1%", "--min-score", "0.25", "--junit", "gates.xml") == 1
    [suite] = ElementTree.parse("gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    output = capsys.readouterr().out
    assert "pass  min-score: base: accuracy is 25.0%" in output
    assert "FAIL  max-drop: base: accuracy changed by -25.0 points" in output
    assert run("better", "base", "--no-significant-regression") == 0


def test_what_could_not_run_is_an_error_in_junit(runs, capsys):
    assert run("base", "suite", "--max-drop", "0", "--junit", "gates.xml") == 2
    assert "suite is a run of `suite`, base of `evaluate`" in capsys.readouterr().err
    [suite] = ElementTree.parse("gates.xml").getroot()
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert "suite is a run of `suite`" in suite.findtext("testcase/error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base"], "only one system (base)"),
        (["base", "nowhere"], "no run of `edit-trl evaluate` or `suite` at nowhere"),
        (["base", "edit_seed9*"], "no folder matches 'edit_seed9*'"),
        (["base", "base,base"], "is given 2 times as seeds of one system"),
        (["base", "suite"], "suite is a run of `suite`, base of `evaluate`"),
        (["base", "better", "--score", "acc"], "`evaluate` has no score 'acc'"),
        (["base", "better", "--min-score", "54"], "write 0.5, or 50%"),
        (["base", "better", "--junit", "x.xml"], "there is no gate; add one"),
        (["base", "better", "--json", "-", "--markdown", "-"], "cannot both go to stdout"),
        (["base", "better", "--json", "base/items.jsonl/x"], "cannot write base/items.jsonl/x"),
    ],
)
def test_bad_input(runs, capsys, arguments, message):
    assert run(*arguments) == 2
    output, errors = capsys.readouterr()
    assert message in errors
    assert output == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--max-drop", "much"], "argument --max-drop: a number, or one with %, is expected, got 'much'"),
        (["--by", "model"], "argument --by: invalid choice: 'model'"),
        (["--max-brokn", "1"], "unknown option --max-brokn; did you mean `--max-broken`?"),
        (["--last", "9" * 5000], "unknown option --last"),
    ],
)
def test_bad_options(runs, capsys, option, message):
    assert run("base", "better", *option) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors) < 500


def test_a_process_of_its_own_loads_no_torch(runs):
    code = (
        "import sys; from edit_trl.cli.main import main; code = main(sys.argv[1:]); "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "compare", "better", "base", "--max-drop", "0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "set()\n")
    assert "FAIL  max-drop" in result.stdout


@pytest.mark.parametrize("option", ["--json", "--markdown", "--junit"])
def test_outputs_are_whole_or_as_before(runs, option, capfd):
    limits = ("--max-drop", "0.9")
    (runs / "out").write_text("before")
    before = os.listdir()
    with open("/dev/full", "wb") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.write(full.fileno(), b"x"))  # the disk is full at the last moment
        assert run("base", "better", option, "out", *limits) == 2
    assert "cannot write out: No space left on device" in capfd.readouterr().err
    assert (runs / "out").read_text() == "before"
    assert os.listdir() == before
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    assert run("base", "better", option, "pipe", *limits) == 0
    through_pipe = reader.communicate()[0]
    assert (runs / "pipe").is_fifo()
    assert run("base", "better", option, "out", *limits) == 0
    assert (runs / "out").read_text() == through_pipe
    assert "better" in through_pipe
