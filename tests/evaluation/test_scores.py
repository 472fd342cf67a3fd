"""Scores of items, worked out by hand, and how they are shown."""

import pytest
from test_runs import item, record

from edit_trl.evaluation.runs.schema import Run
from edit_trl.evaluation.runs.scores import SCORES, grouped_scores, mean_scores, run_scores
from edit_trl.evaluation.runs.tables import run_table, score_meanings


def answered(number, verdict, lenient, cut_off=0, **more):
    return item(number) | {"verdict": verdict, "lenient_verdict": lenient, "cut_off": cut_off} | more


ITEMS = [
    answered(0, "correct", "correct", mistake=["order", "counting"], source="a"),
    answered(1, "wrong", "wrong", mistake=["order"], source="a"),
    answered(2, "unparsed", "correct", cut_off=1, task="other"),
    answered(3, "unparsed", "unparsed", task="other", mistake=[]),
]


def test_means():
    assert mean_scores(ITEMS, "evaluate") == {
        "accuracy": 0.25,  # an answer that is missing is not right
        "lenient_accuracy": 0.5,
        "unparsed": 0.5,
        "cut_off": 0.25,
    }


def test_an_item_counts_for_each_of_its_mistakes():
    groups = grouped_scores(ITEMS, "evaluate")
    assert {name: scores["items"] for name, scores in groups["mistake"].items()} == {"order": 2, "counting": 1}
    assert groups["mistake"]["order"]["accuracy"] == 0.5
    assert groups["task"]["other"] | {} == {
        "items": 2,
        "accuracy": 0.0,
        "lenient_accuracy": 0.5,
        "unparsed": 1.0,
        "cut_off": 0.5,
    }
    assert list(groups["source"]) == ["a"]


def suite_item(**changes):
    greedy = {"response": "", "branch": "right", "verdict": "correct", "value": "4", "cut_off": False}
    values = {"preferred": True, "margin": 0.5, "key_preferred": None, "key_margin": None}
    values |= {"first_wrong": None, "greedy": greedy, "answer": "4", "task": "t", "mistake": None, "source": None}
    return values | changes


def test_a_score_is_over_the_items_that_have_it():
    other = {"response": "", "branch": "wrong", "verdict": "wrong", "value": "5", "cut_off": False}
    items = [
        suite_item(),
        suite_item(preferred=False, margin=-1.0, key_preferred=True, key_margin=2.0, greedy=other),
        suite_item(answer=None, first_wrong={"start": 0}),
        suite_item(greedy=None),
    ]
    assert mean_scores(items, "suite") == {
        "preference": 0.75,
        "margin": 0.125,
        "key_preference": 1.0,
        "key_margin": 2.0,
        "no_wrong_turn": 0.75,
        "right_branch": pytest.approx(2 / 3),
        "wrong_branch": pytest.approx(1 / 3),
        "greedy_accuracy": 0.5,
        "cut_off": 0.0,
    }
    scores, intervals, _ = run_scores([suite_item(greedy=None)], "suite")
    assert scores["right_branch"] is None
    assert "right_branch" not in intervals
    assert intervals["margin"] == [0.5, 0.5]


@pytest.mark.parametrize("kind", ["evaluate", "suite"])
def test_every_score_is_explained(kind):
    lines = score_meanings(SCORES[kind]).splitlines()
    assert [line.split()[0] for line in lines] == list(SCORES[kind])
    assert all(len(line.split()) > 2 for line in lines)


def test_a_table(tmp_path):
    scores, intervals, groups = run_scores(ITEMS, "evaluate")
    of_run = record(items=4, scores=scores, intervals=intervals, groups=groups)
    lines = run_table(Run(tmp_path, of_run, ITEMS)).splitlines()
    assert lines[0] == "student: 4 questions"
    assert lines[2].split() == ["score", "95%", "interval"]
    assert lines[4].split()[:2] == ["accuracy", "25.0%"]
    assert "to" in lines[4].split()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["task"] == ["questions", "accuracy", "lenient_accuracy", "unparsed", "cut_off"]
    assert rows["other"] == ["2", "0.0%", "50.0%", "100.0%", "50.0%"]
    assert {"sums", "order", "counting"} <= rows.keys()
    assert rows["a"][0] == "2"
    alone = [one | {"source": "a", "task": "sums"} for one in ITEMS]
    scores, intervals, groups = run_scores(alone, "evaluate")
    of_run = record(items=4, scores=scores, intervals=intervals, groups=groups)
    assert "source" not in run_table(Run(tmp_path, of_run, alone))  # a single source is all of them
