"""What is asked and how answers are read."""

from typing import get_args

import pytest

from edit_trl.common.errors import InputError
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.teachers.prompts import (
    KINDS,
    PLACEHOLDERS,
    TemplateName,
    Templates,
    read_chain,
    read_kinds,
    read_verdict,
    without_conclusion,
)

QUESTION = Question("1", "What is {x} + 2?", "4", "number", "sums", "Do {sums}.")
EXEMPLAR = Exemplar("Q?", "So 3. Therefore, the answer is 3.", "3", "So 4. Therefore, the answer is 4.")


def test_every_template_is_there_and_has_its_placeholders():
    templates = Templates.load()
    assert set(templates.texts) == set(get_args(TemplateName)) == set(PLACEHOLDERS)
    for name, text in templates.texts.items():
        assert all(f"{{{field}}}" in text for field in PLACEHOLDERS[name]), name


def test_annotate():
    prompt = Templates.load().fill("annotate", QUESTION, [EXEMPLAR])
    assert prompt.startswith("Do {sums}.\n")
    assert prompt.endswith(
        "Question: Q?\nAnswer: Let's think step by step. So 3. Therefore, the answer is 3.\n\n"
        "Question: What is {x} + 2?\nAnswer: Let's think step by step."
    )


def test_rectify_hints_at_every_answer():
    prompt = Templates.load().fill("rectify", QUESTION, [EXEMPLAR])
    assert "Hint: the right answer is 3.\nAnswer: Let's think step by step. So 3." in prompt
    assert prompt.endswith("Hint: the right answer is 4.\nAnswer: Let's think step by step.")
    minimal = Templates.load().fill("rectify_minimal", QUESTION, chain="Wrong {chain}.")
    assert "Right answer: 4\nWrong reasoning: Wrong {chain}.\nMended reasoning:" in minimal


def test_corrupt_shows_pairs():
    prompt = Templates.load().fill("corrupt", QUESTION, [EXEMPLAR], chain="Right.")
    assert f"Right reasoning: {EXEMPLAR.chain}\nWrong reasoning: {EXEMPLAR.wrong_chain}\n\n" in prompt
    assert prompt.endswith("Right reasoning: Right.\nWrong reasoning:")


@pytest.mark.parametrize("name", ["conclude", "judge", "student"])
def test_a_second_look_is_not_told_the_answer(name):
    assert "4" not in Templates.load().fill(name, QUESTION, chain="Chain")


def test_versions_follow_the_text(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("My {question}\n")
    own, mine = Templates.load(), Templates.load({"annotate": file})
    assert mine.fill("annotate", QUESTION, [EXEMPLAR]) == "My What is {x} + 2?"
    assert mine.version("annotate") != own.version("annotate")
    assert mine.version("corrupt") == own.version("corrupt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("annotate", "No question.", "placeholder {question} is missing"),
        (
            "annotate",
            "{question} {anser}",
            "unknown placeholder {anser}; choose from exemplars, question, task_description",
        ),
        ("rectify", "{question} {anser}", "did you mean `answer`?"),
        ("judge", "{question} {chain", "not a template"),
        ("student", "{question:{width}}", "placeholder {question} takes no format"),
        ("student", "{question!r}", "placeholder {question} takes no format"),
        ("anotate", "{question}", "`templates`: unknown template 'anotate'; did you mean `annotate`?"),
    ],
)
def test_bad_templates_are_named(tmp_path, name, text, message):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        Templates.load({name: file})
    assert message in str(caught.value)


def test_a_template_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot read the template"):
        Templates.load({"annotate": tmp_path / "none.txt"})


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        (" 2 + 2 = 4. \n", "2 + 2 = 4."),
        ("Answer: Let's think step by step. First 2.", "First 2."),
        ("Mended reasoning: So 4.", "So 4."),
        ("<think>\nHm, the answer is 9.\n</think>\n\nSo 4.", "So 4."),
        ("So 4. Therefore, the answer is 4.\n\nQuestion: And 5?\nAnswer: 6", "So 4. Therefore, the answer is 4."),
        ("The Question: of one line.", "The Question: of one line."),
    ],
)
def test_chains(text, chain):
    assert read_chain(text) == chain


@pytest.mark.parametrize(
    ("chain", "kind", "beginning"),
    [
        ("First 1. Then 2. Therefore, the answer is 3.", "number", "First 1. Then 2."),
        ("First 1.\nThe answer is 3", "number", "First 1."),
        ("Therefore, the answer is 3.", "number", ""),
        ("No answer here.", "number", "No answer here."),
        ("1 + 2 = 3. The answer is 3. Therefore, the answer is 3.0.", "number", "1 + 2 = 3."),
        ("The right answer is 3. That is 1 + 2. Therefore, the answer is 3.", "number", ""),
        ("The first answer is 2. Add 1. Therefore, the answer is 3.", "number", "The first answer is 2. Add 1."),
        ("a is first. Therefore, the answer is a b.", "list", "a is first."),
    ],
)
def test_a_chain_without_its_conclusion(chain, kind, beginning):
    assert without_conclusion(chain, kind) == beginning


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: sound", True),
        ("It adds up.\n**Verdict:** Flawed.", False),
        ("verdict: perhaps", None),
        ("It is sound.", None),
        ("", None),
    ],
)
def test_verdicts(text, verdict):
    assert read_verdict(text) is verdict


@pytest.mark.parametrize(
    ("text", "kinds", "named"),
    [
        ("Kinds: calculation", "paper", ["calculation"]),
        ("The sum is off.\nKinds: Other, logical.", "paper", ["logical", "other"]),
        ("**Kinds:** `counting`, previous-step value", "fine", ["counting", "previous-step value"]),
        ("Kinds: calculation, arithmetic", "paper", None),  # one that is not of the set
        ("Kinds: counting", "paper", None),
        ("calculation", "paper", None),
        ("Kinds:", "paper", None),
    ],
)
def test_kinds_are_read_strictly(text, kinds, named):
    assert read_kinds(text, kinds) == named


def test_the_sets_of_kinds():
    assert list(KINDS["paper"]) == ["logical", "knowledge", "calculation", "other"]
    assert len(KINDS["fine"]) == 13
