"""A comparison in the terminal and as Markdown: whole at 80 columns, and names are text."""

import io
import re

import pytest
from rich.console import Console
from run_folders import evaluate_item, finished_run, outcomes, suite_item

from edit_trl.evaluation.compare.comparison import compare_runs
from edit_trl.evaluation.compare.gates import GateResult
from edit_trl.evaluation.compare.output import markdown, print_comparison

LONG = ["tracking_shuffled_objects_five_objects", "tracking_shuffled_objects_seven_objects", "snarks"]
NASTY = "[red]a|b`*_<script>alert(1)</script>\x1b[31m\n@everyone"


def shown(comparison, width, gates=(), terminal=False):
    file = io.StringIO()
    print_comparison(comparison, gates, Console(file=file, width=width, force_terminal=terminal, highlight=False))
    return file.getvalue()


@pytest.fixture
def comparison(tmp_path):
    sides = [[evaluate_item(i, one, LONG[i % 3]) for i in range(1200)] for one in ("wrong", "correct")]
    return compare_runs(*(finished_run(tmp_path / str(n), side, f"run {n}") for n, side in enumerate(sides)))


def test_the_summary(comparison):
    lines = shown(comparison, 1000).splitlines()
    assert lines[:7] == [
        "accuracy: run 1 against run 0",
        "  items   1,200 in 3 tasks",
        "  change  +100.0 points, better: 0.0% to 100.0%; p < 0.001 (exact McNemar test)",
        "  95%     +99.8 to +100.0 on these tasks",
        "  95%     +99.6 to +100.0 on other tasks like these",
        "  power   a true change of 0.2 points is seen 4 times in 5",
        "  flips   1,200 fixed, 0 broken, 0 right in both, 0 wrong in both",
    ]
    rows = [line.split() for line in lines if line.split()[:1] == ["snarks"]]
    assert rows == [["snarks", "0.0%", "100.0%", "+100.0", "±", "0.2", "<0.001", "400", "0", "0", "0"]]


def test_nothing_is_cut_off_in_80_columns_but_the_middle_of_names(comparison):
    lines = shown(comparison, 80, terminal=True).splitlines()
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    rows = [line for line in plain if "<0.001" in line]
    assert all(len(line) <= 80 for line in plain if line not in plain[:9])
    names = [line.split()[0] for line in rows]
    assert len(set(names)) == 3
    assert names[2] == "snarks"
    assert all("…" in name and name.endswith("objects") for name in names[:2])
    assert [line.split()[-4:] for line in rows] == [["400", "0", "0", "0"]] * 3
    # Through a pipe, whole names.
    assert all(name in shown(comparison, 1000) for name in LONG)


def test_gates_are_shown(comparison):
    text = shown(comparison, 80, [GateResult("max-drop", "run 1", False, "[b]fell[/b]")])
    assert text.endswith("FAIL  max-drop: run 1: [b]fell[/b]\n")


def test_names_from_files_are_text(tmp_path):
    runs = [
        finished_run(tmp_path / str(n), [evaluate_item(n, "wrong", NASTY), evaluate_item("x", "wrong", NASTY)], name)
        for n, name in enumerate((NASTY, "plain"))
    ]
    comparison = compare_runs(*runs)
    text = shown(comparison, 1000)
    assert "[red]a|b`*_<script>alert(1)</script>\N{SYMBOL FOR ESCAPE}[31m" in text
    assert "\x1b" not in text
    page = markdown(comparison, [GateResult("max-drop", NASTY, False, NASTY)])
    assert "<script>" not in re.sub(r"\\<", "", page)
    assert "@everyone" not in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    # No name opened another cell or line.
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:3]} == {12}
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[3:]} == {5}


def test_markdown(tmp_path):
    before, after = outcomes("++--") + outcomes("-", "dates", 9), outcomes("+-++") + outcomes("+", "dates", 9)
    comparison = compare_runs(finished_run(tmp_path / "a", before, "a"), finished_run(tmp_path / "b", after, "b"))
    lines = markdown(comparison, [GateResult("max-drop", "b", True, "fine")]).splitlines()
    assert lines[0] == "### accuracy: b against a"
    assert "- flips: 3 fixed, 1 broken, 1 right in both, 0 wrong in both" in lines
    table = [line for line in lines if line.startswith("|")]
    assert table == [
        "| task | items | baseline | other | change | 95% interval | p, Holm | fixed | broken | both right "
        "| both wrong |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| sums | 4 | 50.0% | 75.0% | +25.0 | -100.0 to +100.0 | 1.000 | 2 | 1 | 1 | 0 |",
        "| dates | 1 | 0.0% | 100.0% | +100.0 | unknown | 1.000 | 1 | 0 | 0 | 0 |",
        "| gate | system | result | |",
        "|---|---|---|---|",
        "| max-drop | b | pass | fine |",
    ]


def test_margins_seeds_and_what_is_missing(tmp_path):
    base = finished_run(tmp_path / "base", [suite_item(i, 0.1) for i in range(4)], "base", "suite")
    seeds = [
        finished_run(tmp_path / f"edit{n}", [suite_item(i, 0.2 + n / 10 + i / 100) for i in range(3)], "edit", "suite")
        for n in range(2)
    ]
    comparison = compare_runs(base, seeds, score="margin", by="source")
    text = shown(comparison, 1000)
    assert "+0.160 nats, no difference shown: 0.100 to 0.260" in text
    assert "flips" not in text
    assert f"{seeds[0].path} lacks 1 item of the other (sums/3)" in text
    assert "seeds: 1 of the baseline, 2 of edit" in text
    assert "no item has a source" in text
    assert "No item has a source." in markdown(comparison, [])
