"""Questions to dual CoTs, with the embedded teacher and with one that answers out of order."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from chat_server import MODEL, ChatServer, running
from datasets import load_dataset
from scripted_teacher import Scripted, generate

from edit_trl import load_dual_cots
from edit_trl.common.errors import InputError
from edit_trl.data.answers import check_answer
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher, Interrupted
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.journal import Journal
from edit_trl.teachers.card import Provenance
from edit_trl.teachers.export import push_generation, save_generation
from edit_trl.teachers.filters import Bounds, ChainPair, filter_pairs
from edit_trl.teachers.generation import DUAL, WARM_UP, Generation, PipelineOptions
from edit_trl.teachers.pipeline import make_dual_cots
from edit_trl.teachers.procedural_chat import ProceduralChat
from edit_trl.teachers.prompts import Templates

SHARED = Path(__file__).parents[3] / "shared" / "data"

QUESTIONS = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1), "number", "sums") for n in range(6)]


def chain(n: int) -> str:
    return f"One more than it is {n}. Therefore, the answer is {n}."


def number_of(request) -> int:
    return int(request.row_id.rpartition("q")[2])


def test_the_embedded_teacher_through_every_stage(tmp_path):
    teacher = ProceduralChat(["arithmetic", "navigate"], rows=40)
    questions = teacher.questions()
    made, dispatcher = generate(tmp_path, teacher, questions, label="paper")
    by_id = {question.id: question for question in questions}
    assert {pair.question.id for pair in made.pairs} == set(by_id)
    for pair in made.pairs:
        question = by_id[pair.question.id]
        assert check_answer(pair.chosen, question.answer, question.answer_type).verdict == "correct"
        assert check_answer(pair.rejected, question.answer, question.answer_type).verdict == "wrong"
        assert pair.mistake == ("other",)
    sources = Counter(pair.source for pair in made.pairs)
    counts = made.counts
    assert sources == {"rectified": counts["annotate"]["wrong"], "corrupted": counts["annotate"]["correct"]}
    assert min(sources.values()) > 5
    assert list(counts) == ["annotate", "rectify", "corrupt", "label"]
    assert dispatcher.stats.sent == sum(sum(counted.values()) for counted in counts.values())
    again, second = generate(tmp_path, teacher, questions, label="paper")
    assert again == made
    assert second.stats.sent == 0


def test_only_verified_chains_come_through(tmp_path):
    """Wrong where it matters at every stage: none of it makes a pair."""

    def say(request):
        n = number_of(request)
        if request.stage == "annotate":
            said = [chain(1), chain(99), "I do not know.", (chain(4), "length"), ("no", "refused"), chain(6)]
            return said[n]
        if request.stage == "rectify":
            return chain(50)  # wrong again
        return chain(n + 1)  # corrupt: right still

    made, _ = generate(tmp_path, Scripted(say), QUESTIONS)
    assert made.pairs == []
    assert made.counts["annotate"] == {"correct": 2, "wrong": 1, "unparsed": 1, "cut off": 1, "refused": 1}
    assert made.counts["rectify"] == {"wrong": 1}
    assert made.counts["corrupt"] == {"correct": 2}


def test_failures_are_listed(tmp_path):
    server = ChatServer(lambda body: chain(1), lambda n, body: "400" if "3 + 1" in str(body) else None)
    with running(server) as url:
        made, _ = generate(tmp_path, OpenAICompatibleTeacher(MODEL, [url]), QUESTIONS)
    assert made.failures == [
        ("q3", "annotate", "longer than the model's context (status 400: maximum context length is 10)")
    ]


def test_minimal_rectification_sees_the_wrong_chain_and_the_answer(tmp_path):
    def say(request):
        n = number_of(request)
        return chain(7) if request.stage == "annotate" else chain(n + 1)

    teacher = Scripted(say)
    made, _ = generate(tmp_path, teacher, QUESTIONS[:3], rectify="minimal", corrupt=False)
    prompts = [request.messages[-1][1] for request in teacher.asked if request.stage == "rectify"]
    assert all(chain(7) in prompt for prompt in prompts)
    assert [(pair.id, pair.rejected) for pair in made.pairs] == [
        (f"q{n}/rectified_minimal/0", chain(7)) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("check", "say", "kept"),
    [
        ("judge", "Verdict: sound", True),
        ("judge", "Verdict: flawed", False),
        ("judge", "Perhaps.", False),
        ("self_consistency", chain(1), True),
        ("self_consistency", chain(8), False),
    ],
)
def test_a_second_look_at_rectified_chains(tmp_path, check, say, kept):
    def answer(request):
        if request.stage == "check":
            assert "right answer" not in request.messages[-1][1].lower()
            return say
        return chain(9) if request.stage == "annotate" else chain(1)

    options = {"rectify_check": check, "corrupt": False}
    made, _ = generate(tmp_path, Scripted(answer), QUESTIONS[:1], **options)
    assert len(made.pairs) == kept
    assert made.dropped == ({} if kept else {f"the {check} check disagrees": ["q0/rectified/0"]})


def test_the_majority_decides(tmp_path):
    def answer(request):
        if request.stage == "check":
            return chain(1) if request.sample else chain(8)
        return chain(9) if request.stage == "annotate" else chain(1)

    made, _ = generate(tmp_path, Scripted(answer), QUESTIONS[:1], rectify_check="self_consistency", corrupt=False)
    assert made.counts["check (rectified)"] == {"correct": 2, "wrong": 1}
    assert len(made.pairs) == 1


def test_corruption_is_shown_collected_pairs_and_given_ones_until_there_are_enough(tmp_path):
    """Questions 0 to 2 are answered wrongly and rectified; these pairs are shown for 3 to 5."""

    def say(request):
        n = number_of(request)
        if request.stage == "annotate":
            return chain(90 + n) if n < 3 else chain(n + 1)
        return chain(n + 1) if request.stage == "rectify" else chain(77)

    given = [
        Exemplar("Given?", chain(5), "5", chain(6), "sums"),
        Exemplar("Other?", chain(5), "5", chain(6), "other task"),
        Exemplar("No pair?", chain(5), "5", None, "sums"),
    ]
    teacher = Scripted(say)
    options = {"exemplars": given, "exemplars_per_prompt": 4}
    made, _ = generate(tmp_path, teacher, QUESTIONS, **options)
    prompts = {number_of(r): r.messages[-1][1] for r in teacher.asked if r.stage == "corrupt"}
    assert sorted(prompts) == [3, 4, 5]
    for prompt in prompts.values():
        assert all(f"Wrong reasoning: {chain(90 + n)}" in prompt for n in range(3))
        assert "Given?" in prompt
        assert "Other?" not in prompt
        assert "No pair?" not in prompt
    assert Counter(pair.source for pair in made.pairs) == {"rectified": 3, "corrupted": 3}


def test_the_students_own_mistakes_are_mended_minimally(tmp_path):
    def teacher_says(request):
        return chain(number_of(request) + 1)

    def student_says(request):
        assert request.messages[-1][1] == QUESTIONS[number_of(request)].question
        return chain(40) if number_of(request) % 2 else chain(number_of(request) + 1)

    options = {"student": Scripted(student_says), "corrupt": False, "samples": 2}
    made, _ = generate(tmp_path, Scripted(teacher_says), QUESTIONS, **options)
    assert [pair.id for pair in made.pairs] == [f"q{n}/on_policy/0" for n in (1, 3, 5)]
    assert made.counts["student"] == {"correct": 6, "wrong": 6}


def test_a_question_both_writers_got_wrong_is_saved_by_source(tmp_path):
    """The same sample of one question is rectified by hint and, the student's, minimally."""

    def teacher_says(request):
        n = number_of(request)
        if request.stage == "annotate":
            return chain(9)
        return f"Mended: {chain(n + 1)}" if chain(40) in request.messages[-1][1] else chain(n + 1)

    student = Scripted(lambda request: chain(40))
    made, dispatcher = generate(tmp_path, Scripted(teacher_says), QUESTIONS[:2], student=student)
    save(made, tmp_path / "out", dispatcher)
    warm_up = load_dual_cots(tmp_path / "out" / WARM_UP)
    expected = ["q0/rectified/0", "q1/rectified/0", "q0/on_policy/0", "q1/on_policy/0"]
    assert warm_up["id"][:] == expected
    assert warm_up["source"][:] == ["rectified", "rectified", "on_policy", "on_policy"]
    assert sorted(pair.id for pair in made.pairs) == sorted(expected)


def test_the_students_system_prompt_is_that_of_its_rows(tmp_path):
    """There is none, whatever the teacher is told."""
    teacher = Scripted(lambda request: chain(number_of(request) + 1))
    student = Scripted(lambda request: chain(40))
    generate(tmp_path, teacher, QUESTIONS[:1], student=student, system_prompt="Be brief.")
    assert [request.messages for request in student.asked] == [(("user", QUESTIONS[0].question),)]
    assert all(request.messages[0] == ("system", "Be brief.") for request in teacher.asked)


def test_labels_that_are_not_in_the_form_are_kept_as_text_alone(tmp_path):
    def say(request):
        n = number_of(request)
        if request.stage == "label":
            return "Kinds: calculation, logical" if n else "It is a sum."
        return chain(9) if request.stage == "corrupt" else chain(n + 1)

    made, _ = generate(tmp_path, Scripted(say), QUESTIONS[:2], label="paper")
    assert [pair.mistake for pair in made.pairs] == [None, ("logical", "calculation")]
    assert made.pairs[0].mistake_text == "It is a sum."
    assert made.counts["label"] == {"unparsed": 1, "labelled": 1}


def test_a_question_is_not_shown_as_its_own_exemplar(tmp_path):
    """It would give the answer away."""
    given = [Exemplar(QUESTIONS[0].question, "SECRET", "1", chain(6)), Exemplar("Other?", "SHOWN", "5", chain(6))]
    teacher = Scripted(lambda request: chain(number_of(request) + 1))
    generate(tmp_path, teacher, QUESTIONS[:2], exemplars=given)
    prompts = {(request.stage, number_of(request)): request.messages[-1][1] for request in teacher.asked}
    assert set(prompts) == {(stage, n) for stage in ("annotate", "corrupt") for n in (0, 1)}
    for (_, n), prompt in prompts.items():
        assert "SHOWN" in prompt
        assert ("SECRET" in prompt) == (n == 1)


def test_question_ids_are_unique(tmp_path):
    with pytest.raises(InputError, match="question ids must be unique; these are not: 'q0'"):
        generate(tmp_path, Scripted(chain), [QUESTIONS[0], *QUESTIONS])


def test_another_model_may_label(tmp_path):
    """The labeller is asked for labels and nothing else."""

    async def main():
        teacher = Scripted(lambda r: chain(9) if r.stage == "corrupt" else chain(number_of(r) + 1))
        labeller = Scripted(lambda r: "Kinds: knowledge")
        labeller.model = "labeller"
        with Journal(tmp_path) as journal:
            made = await make_dual_cots(
                QUESTIONS,
                Dispatcher(teacher, journal),
                options=PipelineOptions(label="paper"),
                labeller=Dispatcher(labeller, journal),
            )
        return made, {r.stage for r in teacher.asked}, {r.stage for r in labeller.asked}

    made, asked_teacher, asked_labeller = asyncio.run(main())
    assert {pair.mistake for pair in made.pairs} == {("knowledge",)}
    assert asked_teacher == {"annotate", "corrupt"}
    assert asked_labeller == {"label"}


def test_pairs_per_question_and_equal_chains(tmp_path):
    def say(request):
        n = number_of(request)
        if request.stage == "annotate":
            return chain(60 + min(request.sample, 1))  # the second and third are the same
        return chain(n + 1)

    options = {"samples": 3, "pairs_per_question": 3, "corrupt": False}
    made, _ = generate(tmp_path, Scripted(say), QUESTIONS[:2], **options)
    assert [pair.id for pair in made.pairs] == [f"q{n}/rectified/{s}" for n in (0, 1) for s in (0, 1)]


def test_prompts_carry_system_prompt_seed_and_settings(tmp_path):
    teacher = Scripted(lambda request: chain(number_of(request) + 1))
    options = {"system_prompt": "Be brief.", "send_seed": True, "seed": 5, "samples": 2, "temperature": 0.6}
    generate(tmp_path, teacher, QUESTIONS[:1], corrupt=False, max_tokens=33, **options)
    assert [request.seed for request in teacher.asked] == [5, 6]
    assert all(request.messages[0] == ("system", "Be brief.") for request in teacher.asked)
    assert {(r.sampling.temperature, r.sampling.max_tokens) for r in teacher.asked} == {(0.6, 33)}


def save(made: Generation, folder: Path, dispatcher, conversational: bool = True) -> dict[str, bytes]:
    facts = Provenance(
        "scripted", {"teacher": dispatcher.stats}, {"annotate": Templates.load().version("annotate")}, {}
    )
    save_generation(made, folder, facts, conversational=conversational)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mixed(request):
    """Every fate a chain can have, by question and stage."""
    n = number_of(request)
    rng = random.Random(f"{n}/{request.stage}/{request.sample}")
    if request.stage == "label":
        return "Kinds: calculation"
    right = rng.random() < {"annotate": 0.5, "rectify": 0.8, "corrupt": 0.2}[request.stage]
    return chain(n + 1) if right else chain(rng.randrange(100, 200))


MANY = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1), None, f"task {n % 3}") for n in range(60)]


def test_the_same_answers_make_the_same_bytes_in_whatever_order_they_come(tmp_path):
    files = []
    for seed in range(3):
        teacher = Scripted(mixed, seed)
        made, dispatcher = generate(tmp_path / f"run{seed}", teacher, MANY, samples=2, label="paper")
        files.append(save(made, tmp_path / f"out{seed}", dispatcher))
    assert files[0] == files[1] == files[2]
    assert set(files[0]) == {DUAL, WARM_UP, "README.md", "report.json"}


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    made, dispatcher = generate(tmp_path / "whole", Scripted(mixed), MANY, samples=2)
    expected = save(made, tmp_path / "expected", dispatcher)
    teacher, stops = Scripted(mixed, 7), 0

    class Stopping:
        def __init__(self, dispatcher):
            self.dispatcher, self.left = dispatcher, 25

        def stage(self, name, total):
            pass

        def step(self, outcome, fresh):
            self.left -= fresh
            if self.left <= 0:
                self.dispatcher.stop()

    while True:
        try:
            made, dispatcher = generate(tmp_path / "parts", teacher, MANY, watch=Stopping, samples=2)
            break
        except Interrupted:
            stops += 1
    assert stops > 3
    assert save(made, tmp_path / "parts_out", dispatcher) == expected
    keys = [request.key(teacher) for request in teacher.asked]
    assert len(keys) == len(set(keys))  # nothing was asked twice


@pytest.mark.parametrize("conversational", [True, False])
def test_what_is_saved_can_be_trained_on(tmp_path, conversational):
    made, dispatcher = generate(tmp_path / "run", Scripted(mixed), MANY)
    save(made, tmp_path / "out", dispatcher, conversational)
    dual = load_dual_cots(tmp_path / "out" / DUAL)
    assert dual["id"][:] == [pair.id for pair in made.pairs]
    assert set(dual["source"]) == {"rectified", "corrupted"}
    assert isinstance(dual[0]["prompt"], list) == conversational
    warm_up = load_dual_cots(tmp_path / "out" / WARM_UP)
    assert all(row["id"].split("/")[1] == row["source"] for row in warm_up)
    assert Counter(warm_up["source"]) == {"annotated": len(made.correct), "rectified": len(made.rectified)}
    assert any(row["rejected"] == [] for row in warm_up)
    # The card tells `datasets` of both, as the Hub reads it.
    for name, rows in (("dual", dual), ("warm_up", warm_up)):
        loaded = load_dataset(str(tmp_path / "out"), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["id"][:] == rows["id"][:]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| corrupted | {sum(pair.source == 'corrupted' for pair in made.pairs)} |" in card
    assert "| teacher | " in card
    assert Templates.load().version("annotate") in card


def test_a_card_shows_names_as_text(tmp_path):
    bad = "<script>alert(1)</script> | `x`\n# y"
    questions = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1), None, bad) for n in range(3)]
    made, dispatcher = generate(
        tmp_path / "run", Scripted(lambda r: chain(9) if r.stage == "corrupt" else chain(number_of(r) + 1)), questions
    )
    save(made, tmp_path / "out", dispatcher)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card
    assert "\n# y" not in card


def test_a_push_that_cannot_be_is_said(tmp_path):
    """The tests are offline: the Hub cannot be reached."""
    with pytest.raises(InputError, match=r"could not push to me/data: .*The files are in"):
        push_generation(tmp_path, "me/data")
    with pytest.raises(InputError, match="could not push to not/a/name"):
        push_generation(tmp_path, "not/a/name")


def test_no_pair_is_an_error_that_says_why(tmp_path):
    made, dispatcher = generate(tmp_path / "run", Scripted(lambda request: "Hm."), QUESTIONS)
    with pytest.raises(InputError, match="no pair is left of 0 correct and 0 rectified chains; annotate: 6 unparsed"):
        save(made, tmp_path / "out", dispatcher)


def pair(chosen: str, rejected: str, sample: int = 0) -> ChainPair:
    return ChainPair(QUESTIONS[0], chosen, rejected, "corrupted", sample)


LONG = "Two and two are counted on fingers, one after another, and the last of them is said aloud. "


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (chain(1), chain(2), None),
        (chain(1), chain(1), "chosen equals rejected"),
        ("It is one. " + chain(1), chain(1), "same answer on both sides"),
        (chain(1), LONG * 5 + chain(2), "lengths too different"),
        (
            chain(1),
            "Nothing like this at all. Hence we conclude something else: the answer is 2",
            "key fraction too large",
        ),
        (LONG * 9 + chain(1), LONG * 9 + chain(2), "key fraction too small"),
    ],
)
def test_filters(chosen, rejected, reason):
    bounds = Bounds(min_key_fraction=0.02, max_key_fraction=0.7, max_length_ratio=3)
    kept, dropped = filter_pairs([pair(chosen, rejected)], bounds)
    assert dropped == ({} if reason is None else {reason: ["q0/corrupted/0"]})
    assert len(kept) == (reason is None)


def test_duplicates_are_dropped():
    kept, dropped = filter_pairs([pair(chain(1), chain(2)), pair(chain(1), chain(2), 1)], Bounds())
    assert [one.sample for one in kept] == [0]
    assert dropped == {"duplicate": ["q0/corrupted/1"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples` must be at least 1, got 0"),
        ({"top_p": 0}, "`top_p` must be above 0"),
        ({"temperature": -1}, "`temperature` must be at least 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError) as caught:
        PipelineOptions(**options)
    assert message in str(caught.value)
    with pytest.raises(InputError, match="`max_length_ratio` must be at least 1"):
        Bounds(max_length_ratio=0.5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data is not beside the repository")
def test_a_recorded_teacher_is_verified_as_it_was(tmp_path):
    """Replayed over HTTP: the verdicts of a real teacher's chains against its exact-match labels."""
    rows = [json.loads(line) for line in (SHARED / "bbh" / "train.jsonl").open(encoding="utf-8")][::12]
    recorded = {row["question"]: row["teacher_response"] for row in rows}

    def replay(body):
        prompt = body["messages"][-1]["content"]
        return recorded[prompt.rpartition("\nQuestion: ")[2].removesuffix("\nAnswer: Let's think step by step.")]

    questions = [
        Question(f"{n}", row["question"], row["answer"], "list" if row["task"] == "word_sorting" else None, row["task"])
        for n, row in enumerate(rows)
    ]
    with running(ChatServer(replay)) as url:
        teacher = OpenAICompatibleTeacher(MODEL, [url])
        made, _ = generate(tmp_path, teacher, questions, rectify="none", corrupt=False)
    correct = {chain.question.id for chain in made.correct}
    assert correct == {str(n) for n, row in enumerate(rows) if row["teacher_correct"]}


def test_the_embedded_teacher_errs_by_difficulty(tmp_path):
    """Its problems take turns; the shares are drawn per problem, so 300 of each difficulty come close to them."""
    shares = {1: 0.0, 2: 0.3, 4: 1.0}
    teacher = ProceduralChat(["arithmetic"], rows=900, difficulty=[1, 2, 4], wrong_share=shares)
    questions = teacher.questions()
    assert [question.id.split("/")[2] for question in questions[:4]] == ["d1", "d2", "d4", "d1"]
    made, _ = generate(tmp_path, teacher, questions, rectify="hint", corrupt=False)
    wrong = Counter(pair.question.id.split("/")[2] for pair in made.pairs if pair.source == "rectified")
    assert wrong["d1"] == 0
    assert 60 <= wrong["d2"] <= 120  # 90 expected, a standard deviation of 8
    assert wrong["d4"] == 300
    # Which problems it gets wrong does not depend on the others.
    few = ProceduralChat(["arithmetic"], rows=300, difficulty=[1, 2, 4], wrong_share=shares)
    again, _ = generate(tmp_path / "few", few, few.questions(), rectify="hint", corrupt=False)
    ids = {pair.id for pair in made.pairs}
    assert {pair.id for pair in again.pairs} <= ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": [1, 2], "wrong_share": {1: 0.1}}, "has the difficulties [1], and the problems have [1, 2]"),
        ({"difficulty": [], "wrong_share": 0.1}, "or a list of different ones"),
        ({"difficulty": [2, 2]}, "or a list of different ones"),
        ({"difficulty": [6]}, "`difficulty` must be from 1 to 5, got 6"),
        ({"wrong_share": {1: 1.5}}, "must be from 0 to 1, got 1.5 for difficulty 1"),
    ],
)
def test_difficulties_and_shares_belong_together(options, message):
    with pytest.raises(InputError) as caught:
        ProceduralChat(["arithmetic"], rows=4, **options)
    assert message in str(caught.value)
