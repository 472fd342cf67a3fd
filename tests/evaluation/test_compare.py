"""Two systems on the same items: what is counted, what is refused, and what seeds add."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from run_folders import evaluate_item, finished_run, outcomes, suite_item

from edit_trl import compare_runs
from edit_trl.common.errors import InputError
from edit_trl.evaluation.compare.comparison import Flips
from edit_trl.evaluation.runs.schema import Run
from edit_trl.evaluation.statistics import exact_mcnemar, holm, paired_difference, permutation_p_value


def compare(tmp_path, before, after, *, first=None, second=None, **options):
    """Compare two runs of items."""
    base = finished_run(tmp_path / "base", before, "base", **(first or {}))
    other = finished_run(tmp_path / "edit", after, "edit", **(second or {}))
    return compare_runs(base, other, **options)


def problems(tmp_path, before, after, **options) -> list[str]:
    with pytest.raises(InputError) as error:
        compare(tmp_path, before, after, **options)
    return [problem.replace(str(tmp_path), "") for problem in error.value.problems]


def test_flips_overall_and_by_task(tmp_path):
    before = outcomes("++--?") + outcomes("---", "dates", 10)
    after = outcomes("+-++-") + outcomes("+++", "dates", 10)
    comparison = compare(tmp_path, before, after)
    [edit] = comparison.systems
    assert (comparison.score, comparison.kind, comparison.baseline, edit.name) == (
        "accuracy",
        "evaluate",
        "base",
        "edit",
    )
    assert edit.overall.flips == Flips(fixed=5, broken=1, both_right=1, both_wrong=1)
    assert edit.groups["sums"].flips == Flips(2, 1, 1, 1)
    assert edit.groups["dates"].flips == Flips(3, 0, 0, 0)
    assert (edit.overall.items, edit.overall.baseline, edit.overall.other) == (8, 2 / 8, 6 / 8)
    assert edit.overall.difference.value == edit.overall.gain == 0.5
    assert edit.overall.verdict == "no difference shown"  # 8 items
    assert edit.fixed_items == [("sums", "2"), ("sums", "3"), ("dates", "10"), ("dates", "11"), ("dates", "12")]
    assert edit.broken_items == [("sums", "1")]
    assert (edit.test, edit.seeds, edit.tasks) == ("exact McNemar test", (1, 1), 2)


def test_tests_and_intervals_are_those_of_statistics(tmp_path):
    random = np.random.default_rng(0)
    tasks = ["sums", "dates", "words"]
    before, after = random.random((2, 90)) < [[0.4], [0.7]]
    sides = [
        [evaluate_item(i, "correct" if right else "wrong", tasks[i % 3]) for i, right in enumerate(side)]
        for side in (before, after)
    ]
    [edit] = compare(tmp_path, *sides).systems
    one, two = (side.astype(float)[:, None] for side in (before, after))
    assert edit.overall.p_value == exact_mcnemar(before, after).p_value
    assert edit.overall.difference == paired_difference(one, two)
    assert edit.over_tasks == paired_difference(one, two, [tasks[i % 3] for i in range(90)])
    p_values = {name: exact_mcnemar(before[n::3], after[n::3]).p_value for n, name in enumerate(tasks)}
    assert {name: group.p_value for name, group in edit.groups.items()} == p_values
    assert {name: group.adjusted_p_value for name, group in edit.groups.items()} == holm(p_values)


def test_a_run_against_itself(tmp_path):
    run = finished_run(tmp_path / "run", outcomes("+-+?"))
    [same] = compare_runs(run.path, str(run.path)).systems
    assert same.overall.flips == Flips(0, 0, 2, 2)
    assert (same.overall.p_value, same.overall.difference.value, same.overall.gain) == (1.0, 0.0, 0.0)
    assert same.overall.verdict == "no difference shown"
    assert same.over_tasks is None  # one task
    assert same.name == f"student ({run.path})"


def test_items_are_found_by_id_and_not_by_place(tmp_path):
    before = outcomes("++--")
    after = list(reversed(outcomes("+-+-")))
    [edit] = compare(tmp_path, before, after).systems
    assert edit.fixed_items == [("sums", "2")]
    assert edit.broken_items == [("sums", "1")]
    assert edit.missing == {}


def test_missing_items_are_counted_and_named(tmp_path):
    # The data differ in what else is in them, which is no matter.
    comparison = compare(
        tmp_path, outcomes("+++++"), outcomes("+-", start=3) + outcomes("-", "dates", 9), second={"data_hash": "d2"}
    )
    [edit] = comparison.systems
    assert edit.overall.items == 2
    assert edit.missing == {
        str(tmp_path / "base"): [("dates", "9")],
        str(tmp_path / "edit"): [("sums", "0"), ("sums", "1"), ("sums", "2")],
    }


def test_several_systems_have_items_of_their_own(tmp_path):
    base = finished_run(tmp_path / "base", outcomes("----"), "base")
    half = finished_run(tmp_path / "half", outcomes("++"), "half")
    whole = finished_run(tmp_path / "whole", outcomes("++++"), "whole")
    comparison = compare_runs(base, half, whole)
    assert [(one.name, one.overall.items, one.overall.difference.value) for one in comparison.systems] == [
        ("half", 2, 1.0),
        ("whole", 4, 1.0),
    ]


def test_lower_is_better(tmp_path):
    [edit] = compare(tmp_path, outcomes("??+-"), outcomes("-?++"), score="unparsed").systems
    assert (edit.overall.difference.value, edit.overall.gain) == (-0.25, 0.25)
    assert edit.overall.flips == Flips(fixed=1, broken=0, both_right=2, both_wrong=1)


@pytest.mark.parametrize(
    ("before", "after", "score", "verdict"),
    [
        ("-" * 20, "+" * 20, "accuracy", "better"),
        ("+" * 20, "-" * 20, "accuracy", "worse"),
        ("?" * 20, "+" * 20, "unparsed", "better"),
        ("+" * 20, "?" * 20, "unparsed", "worse"),
        # 2 of 20 fixed: p = 0.5, and the interval is 0.1 +- 2.093 * sqrt(0.09 / 19), which includes 0.
        ("-" * 20, "++" + "-" * 18, "accuracy", "no difference shown"),
        ("?" * 20, "--" + "?" * 18, "unparsed", "no difference shown"),
        ("+" * 20, "+" * 20, "accuracy", "no difference shown"),
        ("-", "+", "accuracy", "no difference shown"),  # one item
    ],
)
def test_the_verdict_is_that_of_the_interval(tmp_path, before, after, score, verdict):
    [edit] = compare(tmp_path, outcomes(before), outcomes(after), score=score).systems
    assert edit.overall.verdict == verdict
    assert [group.verdict for group in edit.groups.values()] == [verdict]


def test_groups_by_mistake_and_source(tmp_path):
    kinds = [["arithmetic"], ["arithmetic", "logic"], None, ["logic"]]
    before = [evaluate_item(i, "wrong", mistake=kind, source="gsm8k") for i, kind in enumerate(kinds)]
    after = [evaluate_item(i, "correct", mistake=kind, source="gsm8k") for i, kind in enumerate(kinds)]
    [edit] = compare(tmp_path, before, after, by="mistake").systems
    assert {name: group.items for name, group in edit.groups.items()} == {"arithmetic": 2, "logic": 2}
    [edit] = compare_runs(tmp_path / "base", tmp_path / "edit", by="source").systems
    assert list(edit.groups) == ["gsm8k"]


def test_margins_of_a_suite(tmp_path):
    before = [suite_item(i, margin) for i, margin in enumerate((0.1, -0.2, 0.3, 0.0, 0.2))]
    after = [suite_item(i, margin) for i, margin in enumerate((0.6, 0.1, 0.2, 0.4, 0.9))]
    [edit] = compare(tmp_path, before, after, first={"kind": "suite"}, second={"kind": "suite"}, score="margin").systems
    changes = [0.5, 0.3, -0.1, 0.4, 0.7]
    assert edit.overall.difference.value == pytest.approx(np.mean(changes))
    assert edit.overall.p_value == pytest.approx(permutation_p_value(changes))
    assert edit.test == "sign-flip permutation test"
    assert edit.overall.flips is None
    assert edit.fixed_items is None


def test_items_without_the_score_are_left_out_and_named(tmp_path):
    before = [suite_item(0, 0.1, 0.2), suite_item(1, 0.1, None), suite_item(2, 0.1, -0.2)]
    after = [suite_item(0, 0.1, -0.2), suite_item(1, 0.1, 0.5), suite_item(2, 0.1, -0.3)]
    suite = {"kind": "suite"}
    comparison = compare(tmp_path, before, after, first=suite, second=suite)
    [edit] = comparison.systems
    assert comparison.score == "key_preference"
    assert edit.unscored == [("sums", "1")]
    assert edit.overall.flips == Flips(0, 1, 0, 1)
    with pytest.raises(InputError, match="none of the 3 items in common has the score `greedy_accuracy`"):
        compare_runs(tmp_path / "base", tmp_path / "edit", score="greedy_accuracy")


def test_seeds_are_averaged_item_by_item(tmp_path):
    sides = {"base": ("++--", "+---"), "edit": ("++++", "+++-", "+-++")}
    runs = {
        name: [
            finished_run(tmp_path / f"{name}{seed}", outcomes(text), name, seed=seed) for seed, text in enumerate(texts)
        ]
        for name, texts in sides.items()
    }
    [edit] = compare_runs(runs["base"], runs["edit"]).systems
    before = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=float)
    after = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 1]], dtype=float)
    assert edit.overall.difference == paired_difference(before, after)
    assert edit.overall.difference.value == pytest.approx(10 / 12 - 3 / 8)
    # Over the six pairings of seeds: item 1 is right in 1 of 2 and 2 of 3, and so on.
    expected = Flips(1 / 3 + 1 + 2 / 3, 1 / 6, 1 + 1 / 3, 1 / 6 + 1 / 3)
    assert vars(edit.overall.flips) == pytest.approx(vars(expected), abs=1e-6)
    assert (edit.test, edit.seeds, edit.fixed_items) == ("t test over items and seeds", (2, 3), None)
    # A difference that two items of four bear is no finding.
    assert edit.overall.p_value > 0.1


def test_seeds_that_disagree_widen_the_interval(tmp_path):
    base = finished_run(tmp_path / "base", outcomes("+-" * 100), "base")
    texts = {"alike": ["++-+" * 50] * 3, "apart": ["+-" * 100, "++-+" * 50, "++" * 100]}
    found = {}
    for name, seeds in texts.items():
        runs = [finished_run(tmp_path / f"{name}{n}", outcomes(text), name) for n, text in enumerate(seeds)]
        [system] = compare_runs(base, runs).systems
        found[name] = system.overall
    assert found["alike"].difference.value == found["apart"].difference.value == pytest.approx(0.25)
    assert found["apart"].difference.error > 2 * found["alike"].difference.error
    assert found["apart"].minimum_detectable_effect > found["alike"].minimum_detectable_effect
    assert found["alike"].p_value < 0.001 < 0.05 < found["apart"].p_value


def test_an_item_that_a_seed_lacks_is_left_out(tmp_path):
    base = finished_run(tmp_path / "base", outcomes("+-+"), "base")
    seeds = [finished_run(tmp_path / f"edit{n}", outcomes("+++"[n:], start=n), "edit") for n in range(2)]
    [edit] = compare_runs(base, seeds).systems
    assert edit.overall.items == 2
    assert edit.missing == {str(tmp_path / "edit1"): [("sums", "0")]}


def test_to_dict_is_json(tmp_path):
    comparison = compare(
        tmp_path,
        [suite_item(0, 0.1)],
        [suite_item(0, 0.2)],
        score="margin",
        first={"kind": "suite"},
        second={"kind": "suite"},
    )
    assert comparison.systems[0].overall.difference.low == -math.inf  # one item
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    overall = values["systems"][0]["overall"]
    assert (overall["difference"]["low"], overall["minimum_detectable_effect"]) == (None, None)
    assert overall["difference"]["value"] == pytest.approx(0.1)


# What is refused


def test_nothing_to_compare_with(tmp_path):
    run = finished_run(tmp_path / "run", outcomes("+-"))
    with pytest.raises(InputError, match="nothing to compare with"):
        compare_runs(run)
    with pytest.raises(InputError, match="a system without runs"):
        compare_runs(run, [])


def test_no_item_in_common(tmp_path):
    [problem] = problems(tmp_path, outcomes("++"), outcomes("++", start=5))
    assert problem == (
        "the runs have no item in common: /base has sums/0, sums/1; /edit has sums/5, sums/6. Items are "
        "identified by task and id"
    )


def test_all_that_is_not_comparable_is_named_at_once(tmp_path):
    before = outcomes("++++++++") + outcomes("+", "dates", 20)
    after = outcomes("++++++++", prompt="other?") + outcomes("+", "dates", 20)
    after[0] |= {"prompt": "0?", "answer": "2"}
    second = {"tasks": {"dates": "2"}, "verifier": "0", "settings": {"decoding": {"max_new_tokens": 512}}}
    found = problems(tmp_path, before, after, second=second)
    assert found == [
        "/edit was checked by version '0' of the answer check, /base by '2'; measure both with one version of edit_trl",
        "task 'dates' has version '2' in /edit, '1' in /base",
        "/edit has another decoding (decoding.max_new_tokens: 512 there, 64 in /base; decoding.samples: "
        "'not set' there, 1 in /base; decoding.temperature: 'not set' there, 0.0 in /base; decoding.top_p: "
        "'not set' there, 1.0 in /base); --any-decoding compares them anyway",
        "7 items have another `prompt` in /edit than in /base (sums/1, sums/2, sums/3, sums/4, sums/5 and 2 more)",
        "1 item has another `answer` in /edit than in /base (sums/0)",
    ]


def test_decoding_may_differ_where_that_is_the_question(tmp_path):
    greedy = {"settings": {"temperature": 0.0, "dtype": "float32"}}
    sampled = {"settings": {"temperature": 0.7, "dtype": "bfloat16"}}
    assert len(problems(tmp_path, outcomes("+-"), outcomes("++"), first=greedy, second=sampled)) == 1
    comparison = compare_runs(tmp_path / "base", tmp_path / "edit", any_decoding=True)
    assert comparison.settings == ["dtype: 'float32' and 'bfloat16'", "temperature: 0.0 and 0.7"]


def test_another_version_of_a_task_that_is_not_shared(tmp_path):
    comparison = compare(tmp_path, outcomes("+-"), outcomes("++"), first={"tasks": {"gone": "1"}})
    assert comparison.systems[0].overall.items == 2


def test_runs_of_two_kinds(tmp_path):
    [problem] = problems(tmp_path, outcomes("+-"), [suite_item(0, 1.0)], second={"kind": "suite"})
    assert problem == "/edit is a run of `suite`, /base of `evaluate`; compare runs of one kind"


def test_other_key_steps_matter_to_key_scores_alone(tmp_path):
    before = [suite_item(0, 1.0, 0.5)]
    after = [suite_item(0, 1.0, 0.5, chosen_key_spans=[[4, 9]])]
    suite = {"first": {"kind": "suite"}, "second": {"kind": "suite"}}
    [problem] = problems(tmp_path, before, after, **suite)
    assert problem == "1 item has another `chosen_key_spans` in /edit than in /base (sums/0)"
    assert compare_runs(tmp_path / "base", tmp_path / "edit", score="preference").systems[0].overall.items == 1
    [problem] = problems(tmp_path / "b", before, [suite_item(0, 1.0, 0.5, rejected="1 + 1 = 4")], **suite)
    assert problem == "1 item has another `rejected` in /edit than in /base (sums/0)"


def test_the_seeds_of_a_system_must_agree_as_well(tmp_path):
    base = finished_run(tmp_path / "base", outcomes("+-"), "base")
    good = finished_run(tmp_path / "good", outcomes("++"), "edit")
    bad = finished_run(tmp_path / "bad", outcomes("++"), "edit", tasks={"sums": "2"})
    with pytest.raises(InputError, match=r"task 'sums' has version '2' in .*bad, '1' in .*base"):
        compare_runs(base, [good, bad])


def test_one_folder_is_no_two_seeds(tmp_path):
    base = finished_run(tmp_path / "base", outcomes("+-"), "base")
    with pytest.raises(InputError, match="base is given 2 times as seeds of one system"):
        compare_runs(base, [tmp_path / "base", str(tmp_path / "." / "base")])


def test_an_item_twice_in_a_run(tmp_path):
    run = finished_run(tmp_path / "run", outcomes("+-"))
    twice = Run(run.path, replace(run.record, items=3), [*run.items, run.items[0]])
    with pytest.raises(InputError, match="items that occur more than once: sums/0"):
        compare_runs(run, twice)


def test_files_of_another_version_and_runs_that_are_not_there(tmp_path):
    run = finished_run(tmp_path / "run", outcomes("+-"))
    other = finished_run(tmp_path / "other", outcomes("++"))
    record = json.loads((other.path / "evaluation.json").read_text()) | {"format": 99, "edit_trl": "9.0"}
    (other.path / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as error:
        compare_runs(run, other.path, tmp_path / "nowhere")
    newer, nowhere = error.value.problems
    assert "has format 99 (int); edit_trl" in newer
    assert "use the version that wrote it ('9.0')" in newer
    assert "no run of `edit-trl evaluate` or `suite` at" in nowhere


def test_an_unknown_score(tmp_path):
    assert problems(tmp_path, outcomes("+"), outcomes("-"), score="acuracy") == [
        "`evaluate` has no score 'acuracy'; did you mean `accuracy`?"
    ]
    with pytest.raises(InputError, match=r"choose from accuracy, majority_accuracy, .*, cut_off"):
        compare_runs(tmp_path / "base", tmp_path / "edit", score="key_margin")
