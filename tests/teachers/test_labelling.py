"""Critiques of wrong chains, and the steps that carry a mistake: what is read, refused, counted and saved."""

import json
from pathlib import Path

import pytest
from chat_server import MODEL, ChatServer, running
from datasets import load_dataset
from scripted_teacher import Scripted, generate

from edit_trl.cli.main import main
from edit_trl.common.steps import step_spans
from edit_trl.data.questions import Question
from edit_trl.key_steps import Chain, mark
from edit_trl.models.chat.dispatch import Interrupted
from edit_trl.teachers.card import Provenance
from edit_trl.teachers.export import save_generation
from edit_trl.teachers.labelling import counterparts
from edit_trl.teachers.procedural_chat import ProceduralChat
from edit_trl.teachers.prompts import read_critique, read_steps

RECIPES = Path(__file__).parents[2] / "recipes" / "generate"
QUESTION = Question("q0", "Ann has 12 apples and eats 5, then buys 2. How many?", "9", "number")
RIGHT = "She starts with 12. Then 12 - 5 = 7. Then 7 + 2 = 9. The answer is 9."
WRONG = "She starts with 12. Then 12 - 5 = 8. Then 8 + 2 = 10. The answer is 10."


def teacher(**answers: str | tuple[str, str]) -> Scripted:
    """Right at first, wrong when it corrupts; `answers` are those of the other stages."""

    def say(request) -> str | tuple[str, str]:
        return {"annotate": RIGHT, "corrupt": WRONG, **answers}[request.stage]

    return Scripted(say)


@pytest.mark.parametrize(
    ("text", "critique"),
    [
        ("12 - 5 is 7, not 8.\nVerdict: wrong", ("12 - 5 is 7, not 8.", True)),
        ("**Step 2** is off.\nIt says 8.\n\n**Verdict: Wrong.**", ("**Step 2** is off.\nIt says 8.", True)),
        ("<think>hm</think>Off by one.\nVerdict: wrong", ("Off by one.", True)),
        ("All is well.\nVerdict: right", ("All is well.", False)),
        ("Off by one.\n`Verdict: wrong!`", ("Off by one.", True)),
        ("Verdict: wrong", None),  # nothing is said
        ("12 - 5 is 7.", None),
        ("It is off.\nVerdict: unsure", None),
        ("Verdict: wrong\nSince 12 - 5 is 7.", None),  # the last line is no verdict
        ("<think>Verdict: wrong", None),
        ("", None),
    ],
)
def test_a_critique_needs_a_verdict_on_its_last_line(text, critique):
    assert read_critique(text) == critique


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Steps: 2", [2]),
        ("The error is here.\n**Steps:** 3, 2, 3", [2, 3]),
        ("Step: 4.", [4]),
        ("Steps: 0", None),
        ("Steps: 5", None),  # of four
        ("Steps: none", None),
        ("Steps: 2 and 3", None),
        ("Steps: -1", None),
        ("Steps: ²", None),
        ("Steps:", None),
        ("The second step.", None),
    ],
)
def test_steps_are_read_strictly(text, steps):
    assert read_steps(text, 4) == steps


def test_steps_of_a_text():
    text = " One 1.  Two\n\n3. Then 4!\n"
    assert [text[start:end] for start, end in step_spans(text)] == ["One 1.", "Two", "3. Then 4!"]
    assert step_spans(" \n") == []


def test_critiques_become_a_column_and_contradictions_are_counted(tmp_path):
    made, _ = generate(tmp_path, teacher(critique="12 - 5 is 7.\nVerdict: wrong"), [QUESTION], critique=True)
    assert [pair.critique for pair in made.pairs] == ["12 - 5 is 7."]
    save_generation(made, tmp_path / "out", Provenance("m", {}, {}, {}))
    (row,) = load_dataset("parquet", data_files=str(tmp_path / "out" / "dual.parquet"), split="train")
    assert row["critique"] == "12 - 5 is 7."
    for answer, outcome in (
        ("All is well.\nVerdict: right", "contradicts the label"),
        ("Hm.", "unparsed"),
        (("12 - 5 is 7.\nVerdict: wrong", "length"), "cut off"),
        (("12 - 5 is 7.\nVerdict: wrong", "refused"), "refused"),
    ):
        made, _ = generate(tmp_path / outcome, teacher(critique=answer), [QUESTION], critique=True)
        assert made.counts["critique"] == {outcome: 1}
        assert [pair.critique for pair in made.pairs] == [None]  # the pair stays
    save_generation(made, tmp_path / "without", Provenance("m", {}, {}, {}))
    (row,) = load_dataset("parquet", data_files=str(tmp_path / "without" / "dual.parquet"), split="train")
    assert "critique" not in row


def test_the_critic_is_not_told_that_the_chain_is_wrong(tmp_path):
    asked = teacher(critique="Hm.\nVerdict: right")
    generate(tmp_path, asked, [QUESTION], critique=True)
    (prompt,) = [request.messages[-1][1] for request in asked.asked if request.stage == "critique"]
    assert WRONG in prompt
    assert RIGHT not in prompt
    assert "if there is one" in prompt


def test_named_steps_are_the_key_steps(tmp_path):
    asked = teacher(label="Steps: 2")
    made, _ = generate(tmp_path, asked, [QUESTION], label="steps")
    (pair,) = made.pairs
    assert [WRONG[slice(*span)] for span in pair.rejected_key_spans] == ["Then 12 - 5 = 8."]
    assert [RIGHT[slice(*span)] for span in pair.chosen_key_spans] == ["Then 12 - 5 = 7."]
    (prompt,) = [request.messages[-1][1] for request in asked.asked if request.stage == "label"]
    assert "2. Then 12 - 5 = 8.\n3. Then 8 + 2 = 10." in prompt
    chains = (
        Chain(text, list(range(len(text))), [(n, n + 1) for n in range(len(text))], spans)
        for text, spans in ((RIGHT, pair.chosen_key_spans), (WRONG, pair.rejected_key_spans))
    )
    assert sum(mark(*chains, "spans").rejected) == len("Then 12 - 5 = 8.")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Steps: 1", "a named step does not differ"),
        ("Steps: 1, 2", "a named step does not differ"),
        ("Steps: 9", "unparsed"),
        ("The second.", "unparsed"),
        (("Steps: 2", "length"), "cut off"),  # of "Steps: 2, 3" or "Steps: 21"
    ],
)
def test_pairs_whose_steps_are_not_usable_are_dropped_and_counted(tmp_path, answer, reason):
    made, _ = generate(tmp_path, teacher(label=answer), [QUESTION], label="steps")
    assert made.pairs == []
    assert made.counts["label_steps"] == {reason: 1}
    assert made.dropped == {f"steps of the mistake: {reason}": ["q0/corrupted/0"]}


@pytest.mark.parametrize(
    ("right", "wrong", "steps", "expected"),
    [
        ("A 1. B 2. C 3.", "A 1. B 9. C 8.", [1], ["B 2."]),
        ("A 1. B 2. C 3.", "A 1. B 9. C 8.", [1, 2], ["B 2.", "C 3."]),
        # The wrong chain has a step more: there is no counterpart.
        ("A 1. C 3.", "A 1. Also B 9. C 3.", [1], []),
        # The wrong chain leaves a step out, and goes wrong in the next.
        ("A 1. B 2. C 3.", "A 1. C 4.", [1], ["B 2.", "C 3."]),
    ],
)
def test_the_counterparts_of_steps(right, wrong, steps, expected):
    spans = [step_spans(wrong)[number] for number in steps]
    assert [right[slice(*span)] for span in counterparts(right, wrong, spans)] == expected


def test_the_embedded_teacher_knows_its_mistakes(tmp_path):
    teacher = ProceduralChat(["arithmetic"], rows=20)
    made, _ = generate(tmp_path, teacher, teacher.questions(), label="steps", critique=True)
    rows = {row["id"]: row for row in teacher._rows}
    assert made.counts["label_steps"] == {"labelled": 20}
    assert made.counts["critique"] == {"critique": 20}
    for pair in made.pairs:
        first = rows[pair.question.id]["rejected_key_spans"][0][0]
        ((start, end),) = pair.rejected_key_spans
        assert start <= first < end
        assert pair.critique.startswith('The step "')


def test_an_interrupted_stage_pays_nothing_twice(tmp_path):
    questions = [Question(f"q{n}", f"{QUESTION.question} ({n})", "9", "number") for n in range(6)]
    first = teacher(critique="12 - 5 is 7.\nVerdict: wrong")
    say, count = first.say, 0

    def stops(request) -> str:
        nonlocal count
        count += request.stage == "critique"
        if count > 3:
            raise Interrupted("stopped")
        return say(request)

    first.say = stops
    with pytest.raises(Exception, match="stopped"):
        generate(tmp_path, first, questions, critique=True)
    second = teacher(critique="12 - 5 is 7.\nVerdict: wrong")
    made, _ = generate(tmp_path, second, questions, critique=True)
    assert all(pair.critique for pair in made.pairs)
    stages = [request.stage for request in second.asked]
    assert "annotate" not in stages
    assert len(stages) <= 3 + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "step"], "did you mean"),
        (["--critique", "true"], "there is no teacher"),
    ],
)
def test_bad_options_are_refused(words, message, capsys):
    recipe = "pivots" if "--critique" in words else "procedural"
    assert main(["generate", "--config", f"{RECIPES / recipe}.yaml", *words]) != 0
    assert message in capsys.readouterr().err


def test_the_command_tells_how_many_critiques_there_are(tmp_path, capsys):
    words = ["--teacher", "procedural", "--families", "arithmetic", "--rows", "6", "--critique", "true"]
    words += ["--label", "steps", "--output_dir", str(tmp_path / "out"), "--max_key_fraction", "1.0"]
    assert main(["generate", "--config", f"{RECIPES / 'procedural'}.yaml", *words]) == 0
    assert "  critiques: 6\n" in capsys.readouterr().out
    (row, *_) = load_dataset("parquet", data_files=str(tmp_path / "out" / "dual.parquet"), split="train")
    assert row["critique"].startswith('The step "')
    assert row["rejected_key_spans"]
    assert "critique" in (tmp_path / "out" / "README.md").read_text()


def test_both_stages_at_an_endpoint_and_again(tmp_path):
    """The second run reads the journal; a file of other questions pays for these alone."""

    def answer(body: dict) -> str:
        prompt = body["messages"][-1]["content"]
        if "somebody's attempt" in prompt:
            return "12 - 5 is 7.\nVerdict: wrong"
        if 'Write one line: "Steps: "' in prompt:
            return "Steps: 2"
        return WRONG if "Right reasoning" in prompt else RIGHT

    server, questions = ChatServer(answer), tmp_path / "questions.jsonl"

    def ask(count: int, url: str) -> None:
        rows = [{"question": f"{QUESTION.question} ({n})", "answer": "9"} for n in range(count)]
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--teacher", "openai_compatible", "--model", MODEL, "--base_urls", url, "--dataset_name", questions]
        words += ["--label", "steps", "--critique", "true", "--rectify", "none", "--output_dir", tmp_path / "out"]
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("corrupt: true\n")
        assert main(["generate", "--config", str(recipe), *map(str, words)]) == 0

    with running(server) as url:
        ask(3, url)
        # A chain, a corruption, the steps and a critique of each question.
        assert sum(server.paid.values()) == 3 * 4
        ask(3, url)
        assert sum(server.paid.values()) == 3 * 4
        ask(4, url)
    paid = sum(server.paid.values())
    assert paid <= 4 * 4 + 3  # the new pair is also an example for the corruptions of the others
    rows = load_dataset("parquet", data_files=str(tmp_path / "out" / "dual.parquet"), split="train")
    assert [row["critique"] for row in rows] == ["12 - 5 is 7."] * 4
    assert {WRONG[slice(*span)] for row in rows for span in row["rejected_key_spans"]} == {"Then 12 - 5 = 8."}
