"""The embedded teacher: its problems, its errors and their spans."""

import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from statistics import mean
from typing import get_args

import pytest

from edit_trl.common.errors import InputError
from edit_trl.data.procedural import ANSWER_TYPES, Family, ProceduralTeacher, generate_dual_cots
from edit_trl.data.procedural import teacher as procedural
from edit_trl.data.procedural.problems import Mistake, Problem, Slip, follow, write_chains
from edit_trl.data.procedural.solvers import SOLVERS
from edit_trl.data.row import GENERATED_COLUMNS, REQUIRED_COLUMNS

FAMILIES = get_args(Family)
CONCLUSION = re.compile(r" Therefore, the answer is (.+)\.$")


def rows_of(family, count=300, seed=0, difficulty=1):
    return list(ProceduralTeacher([family], seed=seed, difficulty=difficulty).rows(count))


def answer_in(chain):
    return CONCLUSION.search(chain).group(1)


def without(text, spans):
    for start, end in reversed(spans):
        text = text[:start] + text[end:]
    return text


# --- Every row -------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [1, 2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_sound(family, difficulty):
    for row in rows_of(family, difficulty=difficulty, seed=difficulty):
        assert answer_in(row["chosen"]) == row["answer"] == SOLVERS[family](row["prompt"])
        assert answer_in(row["rejected"]) != row["answer"]
        assert row["task"] == family
        assert row["source"] == "procedural"
        assert len(row["mistake"]) == 1
        assert row["mistake"][0] in get_args(Mistake)
        for text in (row["prompt"], row["chosen"], row["rejected"]):
            assert text == text.strip()
            assert "  " not in text
            assert "{" not in text


@pytest.mark.parametrize("difficulty", [1, 2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_are_exact_and_tight(family, difficulty):
    for row in rows_of(family, difficulty=difficulty):
        sides = [(row[side], row[f"{side}_key_spans"]) for side in ("chosen", "rejected")]
        for text, spans in sides:
            assert all(0 <= start < end <= len(text) for start, end in spans)
            assert all(a[1] < b[0] for a, b in pairwise(spans))
            for start, end in spans:  # half a number or word is never key alone
                assert not (text[start - 1 : start].isalnum() and text[start].isalnum())
                assert not (text[end - 1].isalnum() and text[end].isalnum())
                assert text[start:end].strip()
        assert without(*sides[0]) == without(*sides[1])
        assert sides[0][1] or sides[1][1]
        marked = [[text[start:end].split() for start, end in spans] for text, spans in sides]
        if len(marked[0]) == len(marked[1]):
            assert all(a[0] != b[0] or a[-1] != b[-1] for a, b in zip(*marked, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_final_answer_is_key(family):
    for row in rows_of(family):
        marked = []
        for side in ("chosen", "rejected"):
            text, spans = row[side], row[f"{side}_key_spans"]
            marked += [end for _, end in spans if end > CONCLUSION.search(text).start(1)]
        assert marked


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_chain_is_not_given_away_by_its_length(family):
    rows = rows_of(family, count=1500)
    right = [len(row["chosen"].split()) for row in rows]
    wrong = [len(row["rejected"].split()) for row in rows]
    assert abs(mean(wrong) / mean(right) - 1) < 0.02
    longer = mean(w > r for w, r in zip(wrong, right, strict=True))
    shorter = mean(w < r for w, r in zip(wrong, right, strict=True))
    assert abs(longer - shorter) < 0.15


@pytest.mark.parametrize("family", ["boolean_expressions", "navigate", "shuffled_objects"])
def test_answers_are_balanced(family):
    counts = Counter(row["answer"] for row in rows_of(family, count=1000))
    assert min(counts.values()) > 0.8 * max(counts.values()) - 100


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_and_wording_vary(family):
    rows = rows_of(family)
    assert len({row["mistake"][0] for row in rows}) >= 3
    # What is left of the wording once names, numbers and the like are taken out.
    starts = {" ".join(re.findall(r"[A-Za-z]+", row["prompt"])[:2]) for row in rows}
    assert len(starts) >= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_difficulty_lengthens_the_chain(family):
    lengths = [
        mean(len(row["chosen"].split()) for row in rows_of(family, 100, difficulty=difficulty))
        for difficulty in (1, 3, 5)
    ]
    assert lengths[0] < lengths[1] < lengths[2]
    assert lengths[0] < 45


# --- The spans of one row, by hand -----------------------------------------------------------


def test_spans_by_hand():
    problem = Problem(
        question="?",
        core="?",
        right=["Take ", "2", "."],
        wrong=["Take ", "12", "."],
        answer=["2"],
        wrong_answer=["12"],
        mistake="context value",
    )
    chains = write_chains(problem)
    assert chains.chosen == "Take 2. Therefore, the answer is 2."
    assert chains.rejected == "Take 12. Therefore, the answer is 12."
    assert chains.chosen_key_spans == [[5, 6], [33, 34]]
    assert chains.rejected_key_spans == [[5, 7], [34, 36]]


def test_left_out_step_has_a_span_on_one_side_only():
    problem = Problem("?", "?", ["A.", " B.", " C."], ["A.", "", " C."], ["1"], ["2"], "order")
    chains = write_chains(problem)
    assert chains.chosen == "A. B. C. Therefore, the answer is 1."
    assert chains.rejected == "A. C. Therefore, the answer is 2."
    assert chains.chosen_key_spans == [[2, 5], [34, 35]]
    assert chains.rejected_key_spans == [[31, 32]]


def test_neighbouring_key_pieces_become_one_span():
    problem = Problem("?", "?", ["a", "b", "c"], ["x", "y", "c"], ["1"], ["2"], "order")
    assert write_chains(problem).chosen_key_spans[0] == [0, 2]


def test_chains_of_unequal_pieces_are_a_bug():
    with pytest.raises(ValueError, match="zip"):
        write_chains(Problem("?", "?", ["a", "b"], ["a"], ["1"], ["2"], "order"))


@pytest.mark.parametrize(
    ("slip", "text", "total"),
    [(None, " +1 +2", 3), (Slip("missing step", 0), " +2", 2), (Slip("repeated step", 1), " +1 +2 +2", 5)],
)
def test_follow_leaves_out_and_repeats(slip, text, total):
    def take(state, number, slip):
        return [" +", str(number)], state + number

    pieces, state = follow(0, [1, 2], take, slip)
    assert "".join(pieces) == text
    assert state == total
    assert len(pieces) == 8


# --- The solvers, on questions typed here ----------------------------------------------------


@pytest.mark.parametrize(
    ("family", "question", "answer"),
    [
        (
            "object_counting",
            "I have two knives, a hammer, an apple, one fork and twelve teaspoons. How many pieces "
            "of cutlery do I have?",
            "15",
        ),
        ("object_counting", "How many birds are there among a swan, three owls and two ants?", "4"),
        ("arithmetic", "What is 2 + 3 * (4 - 9) - 1?", "-14"),
        ("arithmetic", "20 - 5 - 5 = ?", "10"),
        (
            "shuffled_objects",
            "Ann, Bo and Cy each have a hat: Ann has the red hat, Bo has the blue hat and Cy has "
            "the black hat. First, Ann and Cy swap hats. Then Cy and Bo trade hats. At the end, "
            "which hat does Bo have?\nOptions:\n(A) blue\n(B) red\n(C) black",
            "(B)",
        ),
        ("boolean_expressions", "not False and False or not (True and False) is", "True"),
        ("boolean_expressions", "Is this true or false? True or True and False", "True"),
        ("boolean_expressions", "Evaluate: not (True or False) or False", "False"),
        ("word_sorting", "Sort these words: pear, apple, peach, fig", "apple, fig, peach, pear"),
        (
            "navigate",
            "Always face forward. Take 3 steps left. Take 1 step backward. Take 3 steps right. "
            "Take 1 step forward. Are you back?",
            "Yes",
        ),
        (
            "navigate",
            "You start facing north. Take 2 steps. Turn right. Take 2 steps. Turn around. Take 2 "
            "steps. Turn right. Take 2 steps. Are you back?",
            "No",
        ),
        (
            "navigate",
            "You start facing north. Take 2 steps. Turn right. Take 2 steps. Turn around. Take 2 "
            "steps. Turn left. Take 2 steps. Are you back?",
            "Yes",
        ),
        (
            "date_understanding",
            "A club met on February 27, 2000. It met again 3 days later, then one week after that. "
            "When was its last meeting?",
            "03/08/2000",  # 2000 had a February 29
        ),
        (
            "date_understanding",
            "The day after tomorrow is 1 January 2020. What was the date 2 weeks ago?",
            "12/16/2019",
        ),
        ("date_understanding", "Yesterday was 02/28/2021. What is the date 10 days from today?", "03/11/2021"),
    ],
)
def test_solver_by_hand(family, question, answer):
    assert SOLVERS[family](question) == answer


def test_unsound_row_is_an_internal_error(monkeypatch):
    def make(rng, difficulty):
        return Problem("What is 1 + 1?", "1 + 1", ["1 + 1 = 3."], ["1 + 1 = 2."], ["3"], ["2"], "order")

    monkeypatch.setattr(procedural, "MAKERS", {"arithmetic": make})
    with pytest.raises(RuntimeError, match="procedural/arithmetic/d1/s0/0 is not sound"):
        next(ProceduralTeacher(["arithmetic"]).rows(1))


# --- The teacher -----------------------------------------------------------------------------


def test_rows_depend_on_family_seed_difficulty_and_index_only():
    alone = rows_of("navigate", 20, seed=3)
    mixed = list(ProceduralTeacher(["arithmetic", "navigate"], seed=3).rows(40))
    assert [row for row in mixed if row["task"] == "navigate"] == alone
    assert rows_of("navigate", 5, seed=3) == alone[:5]
    assert rows_of("navigate", 20, seed=4) != alone
    assert alone[17]["id"] == "procedural/navigate/d1/s3/17"


def test_rows_do_not_depend_on_the_process():
    script = (
        "from edit_trl.data.procedural import ProceduralTeacher\n"
        "print([row['prompt'] for row in ProceduralTeacher().rows(14)])"
    )
    run = [sys.executable, "-c", script]
    printed = [
        subprocess.run(run, capture_output=True, check=True, env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert printed[0].decode().strip() == str([r["prompt"] for r in ProceduralTeacher().rows(14)])


def test_global_random_state_is_left_alone():
    random.seed(0)
    before = random.getstate()
    rows_of("arithmetic", 5)
    assert random.getstate() == before


def test_families_take_turns_and_prompts_are_unique():
    rows = list(ProceduralTeacher(difficulty=1).rows(3500))
    assert Counter(row["task"] for row in rows) == dict.fromkeys(FAMILIES, 500)
    assert [row["task"] for row in rows[:7]] == list(FAMILIES)
    assert len({row["prompt"] for row in rows}) == 3500
    assert len({row["id"] for row in rows}) == 3500


def test_same_problem_in_other_words_is_not_used_twice():
    expressions = [re.search(r"\d.*\d\)?", row["prompt"]) for row in rows_of("arithmetic", 2000)]
    found = [match.group(0) for match in expressions]
    assert len(set(found)) == 2000


def test_every_family_has_an_answer_type():
    assert dict(ANSWER_TYPES) == {
        "object_counting": "number",
        "arithmetic": "number",
        "shuffled_objects": "choice",
        "boolean_expressions": "boolean",
        "word_sorting": "list",
        "navigate": "yes_no",
        "date_understanding": "text",
    }


def test_answer_check_agrees_on_both_chains():
    answers = pytest.importorskip("edit_trl.data.answers")
    for row in ProceduralTeacher().rows(350):
        kind = ANSWER_TYPES[row["task"]]
        assert answers.check_answer(row["chosen"], row["answer"], kind).verdict == "correct", row
        assert answers.check_answer(row["rejected"], row["answer"], kind).verdict == "wrong", row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"families": ["arithmetik"]}, "did you mean `arithmetic`.*object_counting, arithmetic"),
        ({"families": ["zzz"]}, "unknown family 'zzz'; all families"),
        ({"families": "arithmetic"}, r"must be a list of names.*\['arithmetic'\]"),
        ({"families": []}, "no family named"),
        ({"families": ["navigate", "navigate"]}, "'navigate' is named twice"),
        ({"difficulty": 0}, "difficulty must be an integer from 1 to 5, got 0"),
        ({"difficulty": 6}, "got 6"),
        ({"difficulty": 1.0}, "got 1.0"),
        ({"difficulty": True}, "got True"),
        ({"seed": -1}, "seed must be an integer of 0 or more, got -1"),
        ({"seed": "x"}, "got 'x'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        ProceduralTeacher(**arguments)


def test_all_bad_arguments_are_reported_at_once():
    with pytest.raises(InputError) as error:
        ProceduralTeacher(["a", "b"], seed=-1, difficulty=9)
    assert len(error.value.problems) == 4


@pytest.mark.parametrize("count", [0, -3, 2.0, True, "5"])
def test_bad_row_count(count):
    with pytest.raises(InputError, match="rows must be an integer of 1 or more"):
        list(ProceduralTeacher().rows(count))


def test_more_rows_than_problems(monkeypatch):
    monkeypatch.setattr(procedural, "_MAX_DRAWS", 20)
    with pytest.raises(InputError, match=r"'boolean_expressions' has about .* at difficulty 1"):
        rows_of("boolean_expressions", 20_000)


# --- The dataset -----------------------------------------------------------------------------


def test_dataset_has_every_column():
    dataset = generate_dual_cots(ProceduralTeacher(), 21, conversational=False)
    assert dataset.column_names == [*REQUIRED_COLUMNS, *GENERATED_COLUMNS]
    rows = [row | {"prompt": f"{row['prompt']}\n"} for row in ProceduralTeacher().rows(21)]
    assert list(dataset) == rows


def test_conversational_dataset_holds_the_same_rows():
    chat = generate_dual_cots(ProceduralTeacher(), 7)
    for row, turns in zip(ProceduralTeacher().rows(7), chat, strict=True):
        assert turns["prompt"] == [{"role": "user", "content": row["prompt"]}]
        assert turns["chosen"] == [{"role": "assistant", "content": row["chosen"]}]
        assert turns["rejected"] == [{"role": "assistant", "content": row["rejected"]}]
        assert turns["rejected_key_spans"] == row["rejected_key_spans"]


def test_importing_the_teacher_is_cheap():
    script = "import sys, edit_trl.teachers; print({'torch', 'datasets', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
