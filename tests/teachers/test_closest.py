"""Pairs of a student's own wrong chains and its closest right ones."""

import asyncio
import json

import pytest
from datasets import load_dataset
from scripted_teacher import Scripted

from edit_trl.cli.main import main
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher, Limits
from edit_trl.models.chat.journal import Journal
from edit_trl.teachers.closest import closest_pairs, make_closest
from edit_trl.teachers.filters import Bounds
from edit_trl.teachers.generation import Chain, PipelineOptions

QUESTIONS = [Question(f"q{n}", f"What is {n} + 7?", str(n + 7), "number") for n in range(4)]
# The samples of each question, in turn.
SAMPLES = {
    0: ["I add. 0 + 7 = 8. The answer is 8.", "0 + 7 is 7. The answer is 7.", "I add. 0 + 7 = 7. The answer is 7."],
    1: ["The answer is 8.", "So the answer is 8.", "The answer is 8."],
    2: ["The answer is 8.", "The answer is 10.", "Hm."],
    3: ["Hm.", "Well.", "Hm."],
}


def chain(text: str, sample: int, question: Question = QUESTIONS[0]) -> Chain:
    return Chain(question, text, "correct", "student", sample)


def make(folder, **options):
    student = Scripted(lambda r: SAMPLES[int(r.messages[0][1].partition("What is ")[2].partition(" ")[0])][r.sample])

    async def run():
        with Journal(folder) as journal:
            dispatcher = Dispatcher(student, journal, Limits(max_concurrency=16))
            settings = PipelineOptions(**{"samples": 3, "bounds": Bounds(max_key_fraction=1.0), **options})
            try:
                return await make_closest(QUESTIONS, dispatcher, options=settings)
            finally:
                await student.close()

    return asyncio.run(run())


def test_each_wrong_chain_gets_the_right_one_with_the_fewest_other_words():
    # Of 3 words 1 differs; of 6 words 3 differ, after three words more.
    right = [chain("a b c x y z", 0), chain("a b d", 1)]
    (pair,) = closest_pairs(right, [chain("a b c", 2)], 1)
    assert (pair.chosen, pair.rejected, pair.source, pair.id) == ("a b d", "a b c", "own", "q0/own/2")
    # Both differ in 1 of 3 words: the first sample.
    (pair,) = closest_pairs([chain("a b d", 4), chain("a e c", 5)], [chain("a b c", 2)], 1)
    assert pair.chosen == "a b d"
    # 2 of 8 words are fewer than 1 of 3, though more words differ.
    (pair,) = closest_pairs([chain("a b", 0), chain("a b c d e f x y", 1)], [chain("a b c d e f g h", 2)], 1)
    assert pair.chosen == "a b c d e f x y"


def test_the_first_different_wrong_chains_make_pairs():
    right, wrong = [chain("a b", 0)], [chain(text, n) for n, text in enumerate(["a c", "a c", "a d", "a e"], 1)]
    assert [pair.id for pair in closest_pairs(right, wrong, 2)] == ["q0/own/1", "q0/own/3"]
    assert closest_pairs([], wrong, 2) == []
    assert closest_pairs([chain("a b", 0, QUESTIONS[1])], wrong, 2) == []


def test_a_students_samples_make_pairs_and_its_right_ones_stay(tmp_path):
    made = make(tmp_path)
    (pair,) = made.pairs
    assert (pair.rejected, pair.chosen) == (SAMPLES[0][0], SAMPLES[0][2])
    # Every different right chain once, for the control: rejection sampling fine-tuning.
    assert [(c.question.id, c.text) for c in made.correct] == [
        ("q0", SAMPLES[0][1]),
        ("q0", SAMPLES[0][2]),
        ("q1", "The answer is 8."),
        ("q1", "So the answer is 8."),
    ]
    assert made.dropped == {
        "every sample is right": ["q1"],
        "no sample is right": ["q2"],
        "no sample ends in an answer": ["q3"],
    }
    assert make(tmp_path).pairs == made.pairs  # from the journal


def test_the_command_samples_a_student_on_this_machine(tmp_path, saved_student, capsys):
    """A student of random weights is never right: that is said, with the counts."""
    words = ["generate", "--student", str(saved_student), "--pairs", "closest", "--families", "arithmetic"]
    words += ["--rows", "3", "--samples", "2", "--max_tokens", "4", "--output_dir", str(tmp_path / "own")]
    assert main(words) == 2
    assert "no pair is left of 0 correct" in capsys.readouterr().err


def test_the_files_have_the_pairs_and_all_right_chains(tmp_path):
    from edit_trl.teachers.card import Provenance
    from edit_trl.teachers.export import save_generation

    made = make(tmp_path / "journal")
    rows = save_generation(made, tmp_path / "own", Provenance("m", {}, {}, {}))
    assert rows == {"dual.parquet": 1, "warm_up.parquet": 4}
    (row,) = load_dataset("parquet", data_files=str(tmp_path / "own" / "dual.parquet"), split="train")
    assert row["source"] == "own"
    assert "by the student itself, `m`" in (tmp_path / "own" / "README.md").read_text()
    assert json.loads((tmp_path / "own" / "report.json").read_text())["dropped"]["no sample is right"] == ["q2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "closest"], "`student` is missing"),
        (["--student", "m", "--pairs", "closest", "--rollouts", "3"], "`rollouts` is for `pairs: pivots`"),
        (["--student", "m", "--pairs", "closet"], "did you mean"),
        (["--student", "m", "--pairs", "closest", "--rectify", "hint"], "there is no teacher (`teacher: none`)"),
    ],
)
def test_what_has_no_effect_is_refused(words, message, capsys):
    assert main(["generate", *words]) != 0
    assert message in capsys.readouterr().err
