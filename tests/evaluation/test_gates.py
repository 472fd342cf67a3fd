"""What a comparison must meet, and the JUnit XML of it."""

from xml.etree import ElementTree

import pytest
from run_folders import finished_run, outcomes, suite_item

from edit_trl.common.errors import InputError
from edit_trl.evaluation.compare.comparison import compare_runs
from edit_trl.evaluation.compare.gates import GateResult, Gates, check_gates, junit_error_xml, junit_xml


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """60% against 50%: 3 of 30 broken in one task, 12 of 70 in another, none fixed there; 5 fixed."""
    folder = tmp_path_factory.mktemp("runs")
    before = outcomes("+" * 20 + "-" * 10) + outcomes("+" * 40 + "-" * 30, "dates", 30)
    after = outcomes("-" * 3 + "+" * 17 + "+" * 5 + "-" * 5) + outcomes("-" * 12 + "+" * 28 + "-" * 30, "dates", 30)
    return compare_runs(finished_run(folder / "a", before, "base"), finished_run(folder / "b", after, "edit"))


@pytest.mark.parametrize(
    ("gates", "passed"),
    [
        (Gates(min_score=0.5), True),
        (Gates(min_score=0.501), False),
        (Gates(max_drop=0.1), True),  # 0.6 - 0.5 in floats is a little less or more
        (Gates(max_drop=0.099), False),
        (Gates(max_broken=15), True),
        (Gates(max_broken=14), False),
        (Gates(no_significant_regression=True), False),
    ],
)
def test_a_gate_at_its_edge(worse, gates, passed):
    [result] = check_gates(worse, gates)
    assert (result.system, result.passed) == ("edit", passed)


def test_messages_say_what_was_seen(worse):
    results = check_gates(worse, Gates(0.55, 0.02, True, 3))
    assert [(result.gate, result.message) for result in results] == [
        ("min-score", "accuracy is 50.0%, at least 55.0% is required"),
        ("max-drop", "accuracy changed by -10.0 points, from 60.0% to 50.0%; it may get worse by 2.0 points"),
        (
            "no-significant-regression",
            "significantly worse (5%): all by 10.0 points (p = 0.041), dates by 17.1 points (p = 0.00098)",
        ),
        ("max-broken", "right before and wrong now: 15, at most 3 may be"),
    ]


def test_no_regression_where_nothing_is_sure(tmp_path):
    runs = (finished_run(tmp_path / "a", outcomes("+++-")), finished_run(tmp_path / "b", outcomes("++--"), "edit"))
    [result] = check_gates(compare_runs(*runs), Gates(no_significant_regression=True))
    assert result == GateResult("no-significant-regression", "edit", True, "significantly worse (5%): nothing")


def test_an_improvement_is_no_regression(tmp_path):
    runs = finished_run(tmp_path / "a", outcomes("-" * 20)), finished_run(tmp_path / "b", outcomes("+" * 20))
    results = check_gates(compare_runs(*runs), Gates(max_drop=0, no_significant_regression=True, max_broken=0))
    assert [result.passed for result in results] == [True] * 3


def test_where_lower_is_better_more_is_a_drop(tmp_path):
    runs = finished_run(tmp_path / "a", outcomes("----")), finished_run(tmp_path / "b", outcomes("?---"))
    comparison = compare_runs(*runs, score="unparsed")
    assert [result.passed for result in check_gates(comparison, Gates(max_drop=0.2, max_broken=1))] == [False, True]
    with pytest.raises(InputError, match="the lower `unparsed` the better; use --max-drop"):
        check_gates(comparison, Gates(min_score=0.1))


def test_gates_on_margins_are_in_nats(tmp_path):
    runs = [
        finished_run(tmp_path / n, [suite_item(0, m), suite_item(1, m)], n, "suite")
        for n, m in (("a", 3.0), ("b", 1.5))
    ]
    comparison = compare_runs(*runs, score="margin")
    results = check_gates(comparison, Gates(min_score=1.5, max_drop=1.25))
    assert [result.passed for result in results] == [True, False]
    assert results[1].message == "margin changed by -1.500 nats, from 3.000 to 1.500; it may get worse by 1.250 nats"
    with pytest.raises(InputError, match="nothing is right or wrong by `margin`"):
        check_gates(comparison, Gates(max_broken=1))


def test_gates_that_make_no_sense_are_all_named(worse):
    with pytest.raises(InputError) as error:
        check_gates(worse, Gates(min_score=54, max_drop=-0.1, max_broken=float("nan")))
    assert error.value.problems == [
        "--max-broken must be a finite number",
        "--max-drop cannot be negative, got -0.1",
        "--min-score 54: `accuracy` is a share between 0 and 1; write 0.5, or 50%",
    ]
    assert not Gates()
    assert Gates(max_broken=0)
    assert check_gates(worse, Gates()) == []


def test_junit():
    nasty = 'a]]> & <b> "\x00\x1b\ud800'
    results = [GateResult("max-drop", nasty, False, nasty), GateResult("max-broken", "edit", True, "0 items")]
    root = ElementTree.fromstring(junit_xml(results))
    [suite] = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    failed, passed = suite.findall("testcase")
    shown = 'a]]> & <b> "\N{SYMBOL FOR NULL}\N{SYMBOL FOR ESCAPE}\N{REPLACEMENT CHARACTER}'
    assert failed.get("name") == f"max-drop: {shown}"
    assert failed.find("failure").get("message") == failed.find("failure").text == shown
    assert passed.find("failure") is None
    assert passed.findtext("system-out") == "0 items"


def test_junit_of_an_error():
    [suite] = ElementTree.fromstring(junit_error_xml("these runs:\n  - one\n  - <two>"))
    error = suite.find("testcase/error")
    assert suite.get("errors") == "1"
    assert (error.get("message"), error.text) == ("these runs:", "these runs:\n  - one\n  - <two>")
