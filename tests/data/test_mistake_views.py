"""Views with a wrong chain in the prompt, by hand."""

import pytest
from conftest import ROWS, conversational
from datasets import Dataset

from edit_trl import ProceduralTeacher
from edit_trl.common.errors import InputError
from edit_trl.data.mistake_views import critique_of
from edit_trl.data.row import chain_text
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.data.views import apply_view, select_rows

APPLES = {
    "prompt": "Ann has 12 apples and eats 5. How many are left?\n",
    "chosen": "She starts with 12. Then 12 - 5 = 7. Therefore, the answer is 7.",
    "rejected": "She starts with 12. Then 12 - 5 = 8. Therefore, the answer is 8.",
    "mistake": ["calculation"],
    "id": "apples",
}
CRITIQUE = 'The step "Then 12 - 5 = 8." is wrong (calculation). It should be: Then 12 - 5 = 7.'


@pytest.mark.parametrize("make", [dict, conversational], ids=["plain", "conversational"])
def test_a_critique_and_then_the_correct_chain(make):
    [row] = apply_view([make(APPLES)], "critique")
    assert chain_text(row["chosen"]) == f"{CRITIQUE}\n\n{APPLES['chosen']}"
    assert (row["rejected"], row["id"]) == ([], "apples/critique 1")
    prompt = row["prompt"] if make is dict else row["prompt"][-1]["content"]
    assert prompt == (
        "Ann has 12 apples and eats 5. How many are left?\n\nAttempted solution:\n"
        f"{APPLES['rejected']}\n\nSay what is wrong with this attempt, then solve the problem."
        + ("\n" if make is dict else "")
    )
    validate_dual_cots(Dataset.from_list([row]))


def test_what_a_teacher_wrote_comes_first():
    assert critique_of(APPLES | {"critique": " Five from twelve is seven. "}) == "Five from twelve is seven."


@pytest.mark.parametrize(
    ("chains", "critique"),
    [
        ({"rejected": "She starts with 12. Therefore, the answer is 12."}, 'The step "Therefore, the answer is 12."'),
        (
            {"chosen": "It is 7.", "rejected": "It is 7. Then 8."},
            'The step "Then 8." is wrong. It does not belong here.',
        ),
        ({"chosen": "First 1. Then 2.", "rejected": "First 1."}, "A step is missing: Then 2."),
    ],
)
def test_steps_that_one_chain_has_alone(chains, critique):
    assert critique_of({**APPLES, "mistake": None} | chains).startswith(critique)


def test_the_generator_knows_the_step():
    for row in ProceduralTeacher(families=["arithmetic"]).rows(20):
        said = critique_of(row)
        start = row["rejected_key_spans"][0][0] if row["rejected_key_spans"] else 0
        if said.startswith("The step"):
            wrong = said.split('"')[1]
            place = row["rejected"].index(wrong)
            assert place <= start < place + len(wrong) + 1
        assert row["mistake"][0] in said


def test_lema_has_the_chains_beside_the_critiques():
    rows = apply_view([APPLES], "lema")
    assert [row["id"] for row in rows] == ["apples", "apples/critique 1"]
    assert rows[0]["chosen"] == APPLES["chosen"]


def test_half_of_all_checks_are_yes():
    several = APPLES | {"rejected": [APPLES["rejected"], "It is 9."], "mistake": None}
    rows = apply_view([several, {**APPLES, "id": "alone", "rejected": []}], "check")
    assert [row["chosen"] for row in rows] == ["Yes", "No", "Yes", "No"]
    assert all(row["prompt"].endswith("Is this solution right? Answer Yes or No.\n") for row in rows)
    assert [APPLES["chosen"] in row["prompt"] for row in rows] == [True, False, True, False]
    assert len({row["id"] for row in rows}) == 4
    validate_dual_cots(Dataset.from_list(rows))


@pytest.mark.parametrize("view", ["critique", "check"])
def test_without_a_wrong_chain_there_is_nothing_to_say(view):
    alone = Dataset.from_list([{**row, "rejected": []} for row in ROWS])
    with pytest.raises(InputError, match=f"the view '{view}' leaves none of 4 rows \\(it takes pairs"):
        select_rows(alone, view)
