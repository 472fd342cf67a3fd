"""A student's own pivots: a scripted student, one behind HTTP, and a real one that is trained here."""

import asyncio
import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from chat_server import MODEL, ChatServer, running
from scripted_teacher import Scripted
from toy_students import make_toy_student, toy_question_file, toy_tokenizer

from edit_trl import load_dual_cots
from edit_trl.cli.generate import main as generate
from edit_trl.common.errors import InputError
from edit_trl.data.answers import check_answer
from edit_trl.data.questions import Question
from edit_trl.data.row import chain_text
from edit_trl.data.tokenization import tokenize_dual_cot
from edit_trl.models.chat.dispatch import Dispatcher, Limits
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.journal import Journal
from edit_trl.teachers.export import dual_rows
from edit_trl.teachers.filters import Bounds
from edit_trl.teachers.generation import Generation, PipelineOptions, PivotOptions
from edit_trl.teachers.pivots import make_pivots, step_ends
from edit_trl.teachers.rollouts import Tally, _parts

COMMAND = [sys.executable, "-m", "edit_trl.cli.main"]
STEPS = 7
QUESTIONS = [Question(f"q{n}", f"What is {n} + 7?", str(n + 7), "number") for n in range(5)]


def find(folder: Path, student, questions=QUESTIONS, *, options=None, **pivots):
    async def main() -> tuple[Generation, Dispatcher]:
        with Journal(folder) as journal:
            dispatcher = Dispatcher(student, journal, Limits(max_concurrency=16))
            settings = PipelineOptions(**{"samples": 2, "bounds": Bounds(max_key_fraction=1.0)} | (options or {}))
            try:
                made = await make_pivots(
                    questions, dispatcher, options=settings, pivots=PivotOptions(**{"rollouts": 4} | pivots)
                )
            finally:
                await student.close()
            return made, dispatcher

    return asyncio.run(main())


def parts(messages: list[tuple[str, str]]) -> tuple[int, str]:
    """The question's number, and the prefix that is gone on with."""
    number = int(messages[0][1].partition("What is ")[2].partition(" ")[0])
    return number, messages[1][1] if len(messages) > 1 else ""


def go_on(number: int, begun: str, right: bool) -> str:
    """The rest of a chain of seven steps; step `number` decides, and is "Bad" in a wrong one."""
    done = len(step_ends(begun))
    names = [f"{'Bad' if step == number and not right else 'Good'} step {step}." for step in range(done, STEPS)]
    lost = "Bad" in begun or not right
    text = " ".join([*names, f"Therefore, the answer is {number + 7 + lost}."])
    return f" {text}" if begun else text


def student(request) -> str:
    """Wrong at every other sample; never right again after a bad step."""
    number, begun = parts(request.messages)
    return go_on(number, begun, right=request.sample % 2 == 1)


@pytest.mark.parametrize(
    ("chain", "steps"),
    [
        ("One. Two! Three", ["One.", " Two!", " Three"]),
        ("1. Add: 2.5 + 1 = 3.5.\n2. So 3.", ["1. Add: 2.5 + 1 = 3.5.\n", "2. So 3."]),
        ("A line\n\n  another.  \nlast", ["A line\n\n", "  another.  \n", "last"]),
        ("First.\n \nSecond.", ["First.\n \n", "Second."]),
        ("one", ["one"]),
        ("", []),
    ],
)
def test_steps_are_sentences_and_lines(chain, steps):
    assert sentences(chain) == steps


def test_the_deciding_step_is_found_and_paired_with_the_students_own_way(tmp_path):
    made, _ = find(tmp_path, Scripted(student, seed=3))
    assert [pair.id for pair in made.pairs] == [f"q{n}/pivot/0" for n in range(5)]
    for number, (pair, pivot) in enumerate(zip(made.pairs, made.pivots, strict=True)):
        ((start, end),) = pair.rejected_key_spans
        assert pair.rejected[start:end] == f"Bad step {number}."
        ((right_start, right_end),) = pair.chosen_key_spans
        assert pair.chosen[right_start:right_end] == f"Good step {number}."
        assert start == right_start
        assert pair.chosen[:start] == pair.rejected[:start]
        assert check_answer(pair.chosen, pair.question.answer).verdict == "correct"
        assert check_answer(pair.rejected, pair.question.answer).verdict == "wrong"
        assert (pivot.pair, pivot.step, pivot.steps) == (pair.id, number + 1, STEPS + 1)
        # Before the step the second rollout is right, and decides; those that confirm it are drawn in full.
        assert (pivot.right_before, pivot.right_after) == (3, 0)
        assert (pivot.drawn_before, pivot.drawn_after) == (6, 8)
    assert [chain.text for chain in made.correct] == [go_on(n, "", True) for n in range(5)]
    assert [chain.text for chain in made.rectified] == [pair.chosen for pair in made.pairs]
    assert made.counts["samples"] == {"correct": 5, "wrong": 5}
    levels = [name for name in made.counts if name.startswith("rollouts")]
    assert levels == [f"rollouts {level + 1}" for level in range(math.ceil(math.log2(STEPS + 1)))]
    assert sum(made.counts["rollouts 1"].values()) == 4 * 4 + 2  # lost in four chains of five
    assert made.dropped == {}


def test_the_same_answers_make_the_same_pairs_and_are_asked_for_once(tmp_path):
    made, first = find(tmp_path / "a", Scripted(student, seed=1))
    other, _ = find(tmp_path / "b", Scripted(student, seed=2))
    assert other == made
    again, second = find(tmp_path / "a", Scripted(student))
    assert again == made
    assert second.stats.sent == 0
    assert first.stats.completion_tokens == second.stats.completion_tokens
    with Journal(tmp_path / "a") as journal:
        assert len(journal) == first.stats.sent == sum(counts.total() for counts in made.counts.values())


def test_the_closest_right_continuation_is_taken(tmp_path):
    def say(request):
        number, begun = parts(request.messages)
        if request.sample % 2 == 0:
            return go_on(number, begun, right=False)
        extra = " And a digression that nobody has asked for." * ((request.sample // 2 + 1) % 3)
        return go_on(number, begun, right=True).replace(" Therefore", f"{extra} Therefore")

    made, _ = find(tmp_path, Scripted(say), QUESTIONS[2:3], rollouts=6)
    assert "digression" not in made.pairs[0].chosen
    assert sum("digression" in chain.text for chain in made.correct) == 1


def test_a_chain_whose_last_step_decides_needs_no_rollouts_after_it(tmp_path):
    def say(request):
        begun = parts(request.messages)[1]
        rest = f"Therefore, the answer is {7 if request.sample % 2 else 8}."
        return f" {rest}" if begun else f"A step. {rest}"

    made, _ = find(tmp_path, Scripted(say), QUESTIONS[:1])
    (pivot,) = made.pivots
    assert (pivot.step, pivot.steps, pivot.drawn_after) == (2, 2, 0)


def confused(request, right: str) -> str:
    begun = parts(request.messages)[1]
    return go_on(2, begun, right=request.sample in map(int, right.split()))


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (lambda r: go_on(2, parts(r.messages)[1], True), "every sample is right"),
        (lambda r: ("cut", "length"), "no sample ends in a wrong answer"),
        (lambda r: confused(r, ""), "too few rollouts from the start are right"),
        # Right from everywhere but the end of the bad step where it is searched, but not drawn anew.
        (lambda r: confused(r, "1"), "not confirmed: lost before the step as well"),
        (
            lambda r: (
                " It is not so. Therefore, the answer is 9."
                if "Bad" in parts(r.messages)[1] and r.sample >= 4
                else student(r)
            ),
            "not confirmed: not lost after the step",
        ),
        # Right though it goes through the very step that is called lost.
        (
            lambda r: (
                go_on(2, parts(r.messages)[1], False).replace("is 10", "is 9")
                if r.sample % 2 and "Bad" not in parts(r.messages)[1]
                else go_on(2, parts(r.messages)[1], False)
            ),
            "every right continuation repeats the step",
        ),
    ],
)
def test_what_makes_no_pair_is_counted_by_reason(tmp_path, say, reason):
    made, _ = find(tmp_path, Scripted(say), QUESTIONS[2:3])
    assert made.pairs == made.pivots == made.rectified == []
    assert {name: len(ids) for name, ids in made.dropped.items()} == {reason: 1}


def test_what_is_not_confirmed_may_be_kept(tmp_path):
    made, _ = find(tmp_path, Scripted(lambda r: confused(r, "1")), QUESTIONS[2:3], confirm_pivots=False)
    assert len(made.pairs) == 1
    assert not any(name.startswith("confirmation") for name in made.counts)


def test_a_share_may_still_be_right_after_the_step(tmp_path):
    def say(request):
        number, begun = parts(request.messages)
        if "Bad" in begun and request.sample % 4 == 0:
            return f" No, that was wrong. Therefore, the answer is {number + 7}."
        return student(request)

    strict, _ = find(tmp_path / "a", Scripted(say), QUESTIONS[2:3])
    assert [pivot.step for pivot in strict.pivots] == [STEPS + 1]
    made, _ = find(tmp_path / "b", Scripted(say), QUESTIONS[2:3], right_after=0.25)
    assert [(pivot.step, pivot.right_after, pivot.drawn_after) for pivot in made.pivots] == [(3, 2, 8)]


def test_a_prefix_of_several_chains_is_drawn_from_once(tmp_path):
    def say(request):
        begun = parts(request.messages)[1]
        text = student(request)
        return text.replace("Bad", "Very bad") if not begun and request.sample == 2 else text

    options = {"samples": 4, "pairs_per_question": 2}
    made, dispatcher = find(tmp_path, Scripted(say), QUESTIONS[4:], options=options)
    assert [pair.sample for pair in made.pairs] == [0, 2]
    # Both chains part after their fourth step; the second of its rollouts is right.
    assert made.counts["rollouts 1"] == {"wrong": 1, "correct": 1}
    assert dispatcher.stats.sent == dispatcher.stats.asked


def test_a_question_twice_is_told(tmp_path):
    with pytest.raises(InputError, match="question ids must be unique"):
        find(tmp_path, Scripted(student), QUESTIONS[:1] * 2)


def answer(body: dict) -> str:
    """The scripted student behind HTTP: the seed tells samples apart."""
    messages = [(message["role"], message["content"]) for message in body["messages"]]
    number, begun = parts(messages)
    assert (len(messages) > 1) == body.get("continue_final_message", False)
    assert (len(messages) > 1) == (body.get("add_generation_prompt") is False)
    return go_on(number, begun, right=body["seed"] % 2 == 1)


def test_an_endpoint_goes_on_from_prefixes(tmp_path):
    options = {"send_seed": True}
    with running(ChatServer(answer)) as url:
        made, _ = find(tmp_path / "http", OpenAICompatibleTeacher(MODEL, [url]), options=options)
    here, _ = find(tmp_path / "here", Scripted(student), options=options)
    assert made == here


def test_an_endpoint_that_does_not_is_told(tmp_path):
    def fault(_, body):
        return "400" if "continue_final_message" in body else None

    with running(ChatServer(answer, fault)) as url, pytest.raises(InputError) as caught:
        find(tmp_path, OpenAICompatibleTeacher(MODEL, [url]), options={"send_seed": True})
    assert "continued no prefix of an answer" in str(caught.value)
    assert "`continue_final_message`" in str(caught.value)


@pytest.fixture(scope="module")
def toy_student(tmp_path_factory) -> Path:
    return make_toy_student(tmp_path_factory.mktemp("student"))


def toy_questions(folder: Path) -> Path:
    return toy_question_file(folder / "questions.jsonl")


def edit_trl(*words) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=600, check=False)


def options_of(student: Path, questions: Path, output: Path) -> list[str]:
    words = ["--student", student, "--pairs", "pivots", "--dataset_name", questions, "--output_dir", output]
    words += ["--samples", 4, "--rollouts", 6, "--max_tokens", 64, "--student_temperature", 0.6, "--send_seed"]
    return ["generate", *map(str, words)]


def sentences(chain: str) -> list[str]:
    ends = step_ends(chain)
    return [chain[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def files_of(folder: Path) -> dict[str, bytes]:
    names = ("dual.parquet", "warm_up.parquet", "report.json", "README.md")
    return {name: (folder / name).read_bytes() for name in names}


def test_a_trained_student_finds_the_steps_that_decide(toy_student, tmp_path):
    questions, output = toy_questions(tmp_path), tmp_path / "out"
    done = edit_trl(*options_of(toy_student, questions, output))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"30 questions; student '{toy_student}', no teacher" in done.stderr
    rows = load_dual_cots(output / "dual.parquet").to_list()
    assert len(rows) >= 5
    report = json.loads((output / "report.json").read_text())
    assert [pivot["pair"] for pivot in report["pivots"]] == [row["id"] for row in rows]
    hits = 0
    for row, pivot in zip(rows, report["pivots"], strict=True):
        question = row["prompt"][0]["content"]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert row["source"] == "pivot"
        assert check_answer(chosen, row["answer"]).verdict == "correct"
        assert check_answer(rejected, row["answer"]).verdict == "wrong"
        ((start, _),) = row["rejected_key_spans"]
        assert row["chosen_key_spans"][0][0] == start
        assert chosen[:start] == rejected[:start]
        assert pivot["right_before"] >= 1
        assert pivot["right_after"] == 0
        hits += pivot["step"] == 4 - question.count("hold")
    # Until the switch is held, another slip may undo one: the last step before that decides.
    assert hits >= 0.6 * len(rows)
    tokenized = tokenize_dual_cot(rows[0], toy_tokenizer(), key_step_method="spans")
    assert any(tokenized["chosen_key_mask"])
    card = (output / "README.md").read_text()
    assert f"found {len(rows)} pivotal steps" in card
    assert f"by the student itself, `{toy_student}`" in card
    assert "| every sample is right |" in card
    warm_up = load_dual_cots(output / "warm_up.parquet").to_list()
    of_pairs = [row["chosen"] for row in warm_up if row["source"] == "pivot"]
    own = [row["chosen"] for row in warm_up if row["source"] == "student"]
    assert len(own) >= 12
    assert {row["chosen"][0]["content"] for row in rows} <= {c[0]["content"] for c in of_pairs + own}


@pytest.mark.slow
def test_killed_and_taken_up_again_it_ends_in_the_same_bytes(toy_student, tmp_path):
    questions, rng = toy_questions(tmp_path), random.Random(0)
    whole = edit_trl(*options_of(toy_student, questions, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-3000:]
    command = [*COMMAND, *options_of(toy_student, questions, tmp_path / "killed")]
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = tmp_path / "killed" / "journal-0.sqlite"
        while not journal.exists() and child.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.2, 1.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = edit_trl(*command[len(COMMAND) :])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from the journal" in done.stderr
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


TRAINING = """
model_name_or_path: replaced
dataset_name: replaced
output_dir: replaced
key_step_method: spans
max_steps: 4
learning_rate: 1.0e-3
per_device_train_batch_size: 4
gradient_checkpointing: false
use_cpu: true
bf16: false
report_to: none
save_strategy: "no"
"""


@pytest.mark.slow
def test_rounds_find_pivots_and_train_in_turn(toy_student, tmp_path):
    (tmp_path / "train.yaml").write_text(TRAINING)
    recipe = tmp_path / "recipe.yaml"
    values = {"teacher": "none", "pairs": "pivots", "student": str(toy_student), "rounds": 2, "rollouts": 4}
    values |= {"dataset_name": str(toy_questions(tmp_path)), "max_tokens": 64, "samples": 3}
    values |= {"student_temperature": 0.6, "train_recipe": str(tmp_path / "train.yaml")}
    recipe.write_text(yaml.safe_dump(values | {"output_dir": str(tmp_path / "out")}))
    done = edit_trl("generate", "--config", recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = tmp_path / "out" / "round_1" / "student"
    assert f"round 2 of 2: student {trained}" in done.stderr
    for number in (1, 2):
        assert len(load_dual_cots(tmp_path / "out" / f"round_{number}" / "dual.parquet")) >= 1
    assert (tmp_path / "out" / "round_2" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "pivots"], "`student` is missing"),
        (["--student", "m"], "`base_urls` is missing"),
        (["--student", "m", "--pairs", "pivots", "--rollouts", "0"], "`rollouts` must be at least 1, got 0"),
        (["--student", "m", "--pairs", "pivots", "--right_after", "1"], "`right_after` must be at least 0"),
        (["--student", "m", "--pairs", "pivots", "--rectify", "hint"], "there is no teacher (`teacher: none`)"),
        (["--student", "m", "--pairs", "pivots", "--temperature", "1"], "the student's is `student_temperature`"),
        (["--student", "m", "--pairs", "pivots", "--teacher", "procedural"], "`pairs` asks no teacher"),
        (["--student", "m", "--rollouts", "3"], "`rollouts` is for `pairs: pivots`"),
        (["--student", "m", "--teacher", "none"], "`teacher: none` needs `pairs: closest` or `pivots`"),
        (
            ["--student", "m", "--pairs", "pivots", "--dataset_name", "q.jsonl", "--rows", "3"],
            "`rows`: for procedural problems",
        ),
        (["--student", "m", "--pairs", "pivots", "--dataset_name", "none.jsonl"], "no such file or folder"),
        (["--student", "m", "--pairs", "pivots", "--families", "sums"], "unknown family 'sums'"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_anything_is_asked(tmp_path, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        generate(words)
    assert message in str(caught.value)
    assert not (tmp_path / "outputs").exists()


def test_questions_without_answers_are_told(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "What?", "answer": ""}\n')
    done = edit_trl("generate", "--student", "m", "--pairs", "pivots", "--dataset_name", tmp_path / "q.jsonl")
    assert done.returncode == 2
    assert "q.jsonl" in done.stderr
    assert "answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_student_that_is_not_there_is_told(tmp_path):
    student = tmp_path / "nobody"
    words = ["--student", student, "--pairs", "pivots", "--rows", 3, "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match=f"`student: {student}`: no such folder"):
        generate([*map(str, words)])


def test_the_procedural_families_are_questions_too(tmp_path, saved_student, capsys):
    """An untrained student is never right nor wrong: told, with the reason."""
    words = ["--student", saved_student, "--pairs", "pivots", "--families", "arithmetic", "--rows", 3]
    with pytest.raises(InputError) as caught:
        generate([*map(str, words), "--max_tokens", "8", "--output_dir", str(tmp_path / "out")])
    assert "3 questions; student" in capsys.readouterr().err
    assert "no pair is left" in str(caught.value)
    assert "3 no sample ends in a wrong answer" in str(caught.value)


def thinking_student(request) -> str:
    """The same, but with the steps in thoughts; in a field of their own, as an endpoint has them."""
    number, begun = parts(request.messages)
    if "</think>" in begun:
        return f"\nTherefore, the answer is {number + 7 + ('Bad' in begun)}."
    steps, _, conclusion = go_on(number, begun.removeprefix("<think>\n"), request.sample % 2 == 1).rpartition(" Theref")
    return f"<think>\n{steps.lstrip()}\n</think>\n\nTheref{conclusion}"


def test_a_step_is_found_in_thoughts(tmp_path):
    made, _ = find(tmp_path, Scripted(thinking_student))
    assert made.thoughts == "keep"
    assert [pair.id for pair in made.pairs] == [f"q{n}/pivot/0" for n in range(5)]
    for number, pair in enumerate(made.pairs):
        ((start, end),) = pair.rejected_key_spans
        assert pair.rejected[start:end] == f"Bad step {number}."
        for chain in (pair.chosen, pair.rejected):
            assert chain.count("<think>") == chain.count("</think>") == 1
            assert chain.count(" step ") == STEPS
            assert ".Good" not in chain
        row = dual_rows([pair], conversational=True)[0]
        assert chain_text(row["rejected"])[start:end] == f"Bad step {number}."


def test_thoughts_that_never_end_are_no_chain(tmp_path):
    made, _ = find(tmp_path, Scripted(lambda request: "<think>\nThe answer is 7."), QUESTIONS[:1])
    assert made.counts["samples"] == {"unparsed": 2}
    assert made.dropped == {"no sample ends in a wrong answer": ["q0"]}


def test_what_follows_a_chain_with_thoughts_is_cut(tmp_path):
    def say(request):
        return f"{go_on(0, parts(request.messages)[1], request.sample % 2 == 1)}\n\nQuestion: What is 9 + 9?"

    made, _ = find(tmp_path, Scripted(lambda request: f"<think>Hm.</think>{say(request)}"), QUESTIONS[:1], rollouts=1)
    assert [chain.text for chain in made.correct] == [f"<think>Hm.</think>{go_on(0, '', True)}"]


@pytest.mark.parametrize(("right_after", "count"), [(0.0, 8), (0.0, 1), (0.25, 8), (0.5, 5), (0.9, 7)])
def test_rollouts_end_when_the_decision_is_that_of_all_of_them(right_after, count):
    """Over every sequence of outcomes: the early decision is the full one, and comes with the last rollout at most."""
    for outcomes in itertools.product([True, False], repeat=count):
        full = Tally(["right"] * sum(outcomes), count)
        early = Tally()
        for right in outcomes:
            if early.is_decided(right_after, count):
                break
            early.count += 1
            early.right += ["right"] * right
        assert early.is_decided(right_after, count)
        assert early.is_lost(right_after) == full.is_lost(right_after)
    assert sum(_parts(count)) == count
    assert all(part > 0 for part in _parts(count))
