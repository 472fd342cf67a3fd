"""Teachers that think: what becomes of their thoughts, from the answer of a server to the key tokens of a student."""

import json
import sqlite3
from pathlib import Path

import pytest
from chat_server import ChatServer, completion, running
from conftest import CHAT_TEMPLATE
from generate_runs import recipe
from scripted_teacher import Scripted, generate

from edit_trl import load_dual_cots
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.questions import Question
from edit_trl.data.row import chain_text as text_of
from edit_trl.data.tokenization import tokenize_dual_cot
from edit_trl.models.chat.protocol import ChatResponse
from edit_trl.teachers.chain_text import chain_text
from edit_trl.teachers.filters import Bounds, ChainPair, filter_pairs
from edit_trl.teachers.generate_config import read_generate_config
from edit_trl.teachers.generation import DUAL, WARM_UP
from edit_trl.teachers.prompts import WITH_THOUGHTS, read_chain, read_kinds, read_verdict, without_conclusion
from edit_trl.teachers.requests import answer_outcome
from edit_trl.teachers.student_template import check_thoughts_form

QUESTION = Question("q1", "What is 1 + 1?", "2", "number")
FOUR = Question("a", "What is 2 + 2?", "4", "number")

# Qwen3's and R1's ways with thoughts, in short.
READS_FIELD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}"
    "\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if quiet is defined %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
DROPS_TEXT = READS_FIELD.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
DROPS_ALL = DROPS_TEXT.replace("m.reasoning_content", "m.nothing")
OPENS = DROPS_ALL.replace("assistant\n{% if quiet", "assistant\n<think>\n{% if quiet")


def thought(thoughts: str, answer: str) -> str:
    return f"<think>\n{thoughts}\n</think>\n\n{answer}"


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("<think>a</think>So 4.", "So 4."),
        ("a</think>So 4.", "So 4."),
        ("<think>a", ""),
        ("<think>a</think>", ""),
        ("Sure.\n<think>a</think>So 4.", "So 4."),
        ("<think>a<think>b</think>c</think>So 4.", "So 4."),
        ("<think>a</think>b<think>c</think>So 4.", "So 4."),
        ("<THINK>a</Think>So 4.", "So 4."),
        ("[THINK]a[/THINK]So 4.", "So 4."),
        ("<reasoning>a</reasoning>Answer: So 4.", "So 4."),
        ("<thinking>a</thinking>\n\nSo 4.\n\nQuestion: And 5?", "So 4."),
        ("◁think▷a◁/think▷So 4.", "So 4."),
        ('<think type="x">a</think>So 4.', "So 4."),
        ("<thought_process>a</thought_process>So 4.", "So 4."),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>So 4.<|END_RESPONSE|>", "So 4."),
        ("<|channel>thought\na<channel|>So 4.", "So 4."),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>So 4.<|return|>", "So 4."),
        ("<|channel|>analysis<|message|>a<|end|>", ""),
        ("analysisWe add.assistantfinalSo 4.", "So 4."),
        ("Tags such as `<think>` are no thoughts. So 4.", "Tags such as `<think>` are no thoughts. So 4."),
        ('It says "</think>". So 4.', 'It says "</think>". So 4.'),
        ("<think>Is `x` it? `x`</think>`x` is 4.", "`x` is 4."),
    ],
)
def test_a_chain_is_what_follows_the_thoughts(text, chain):
    assert read_chain(text) == chain


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>b<think>c</think>So 4.",
        "<think>\na\nb<think>c</think></think>\n\nSo 4.",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|><|start|>assistant"
        "<|channel|>analysis<|message|>c<|end|><|start|>assistant<|channel|>final<|message|>So 4.<|return|>",
    ],
)
def test_several_thoughts_are_one_text_without_markers(text):
    assert split_thoughts(text) == ("a\nb\nc", "So 4.")


def test_only_the_answer_is_graded():
    for text, outcome in [
        ("<think>The answer is 9.</think>The answer is 4.", "correct"),
        ("<think>The answer is 4.</think>I cannot tell.", "unparsed"),
        ("<think>The answer is 4.</think>The answer is 9.", "wrong"),
        ("<think>The answer is 4.", "unparsed"),
        ("The answer is 4.\n<think>But wait", "unparsed"),
    ]:
        assert answer_outcome((FOUR, 0), ChatResponse(text, "stop", "m")) == outcome


def test_verdicts_and_kinds_are_read_after_the_thoughts():
    assert read_verdict("<think>Verdict: flawed</think>Verdict: sound") is True
    assert read_verdict("<think>Verdict: sound") is None
    assert read_kinds("<think>Kinds: logical</think>Kinds: other", "paper") == ["other"]
    assert read_kinds("<think>Kinds: logical", "paper") is None


def test_a_conclusion_is_not_told_by_the_thoughts_before_it():
    chain = thought("Two and two. So the answer is 4.", "We add. The answer is 4.")
    assert without_conclusion(chain, "number") == "Two and two."


@pytest.mark.parametrize(
    ("thoughts", "response", "like", "expected"),
    [
        ("drop", thought("a", "The answer is 4."), None, ("The answer is 4.", False)),
        ("keep", "<reasoning>a</reasoning>Answer: So 4.\n\nQuestion: b", None, (thought("a", "So 4."), True)),
        ("keep", "<think>a</think>b<think>c</think>So 4.", None, (thought("a\nb\nc", "So 4."), True)),
        ("keep", "The answer is 4.", None, ("The answer is 4.", False)),
        ("keep", "<think>The answer is 4.", None, ("", False)),
        ("only", thought("a", "First 2. Then 2. The answer is 4."), None, ("a\n\nThe answer is 4.", True)),
        ("only", thought("a", "The answer is 4. It is even."), None, ("a\n\nThe answer is 4. It is even.", True)),
        ("only", "The answer is 4.", None, ("The answer is 4.", False)),
        # In an answer to a prompt about a chain, thoughts that are written for it win over the model's own.
        ("keep", thought("Let me see.", thought("b", "So 5.")), thought("a", "So 4."), (thought("b", "So 5."), True)),
        ("keep", thought("b", "So 5."), thought("a", "So 4."), (thought("b", "So 5."), True)),
        ("keep", thought("The user wants a mistake.", "So 5."), thought("a", "So 4."), ("So 5.", False)),
        ("keep", thought("The hint says 4.", "So 4."), thought("a", "So 5."), ("So 4.", False)),
        (
            "only",
            thought("Hm, 5.", "The answer is 5."),
            "Hm, 4.\n\nThe answer is 4.",
            ("Hm, 5.\n\nThe answer is 5.", True),
        ),
        ("only", thought("Which step?", "Hm, 5.\n\nThe answer is 5."), "Hm, 4.\n\nThe answer is 4.", None),
    ],
)
def test_what_a_chain_is(thoughts, response, like, expected):
    assert chain_text(response, thoughts, "number", like) == (expected or ("Hm, 5.\n\nThe answer is 5.", False))


def test_a_chain_like_one_without_thoughts_has_none():
    assert chain_text(thought("b", "So 5."), "keep", "number", "So 4.", has_thoughts=False) == ("So 5.", False)


def test_pairs_have_thoughts_on_both_sides_or_none():
    right, wrong = thought("1 + 1", "The answer is 2."), thought("1 + 2", "The answer is 3.")
    pairs = [
        ChainPair(QUESTION, *chains, "corrupted", number)
        for number, chains in enumerate([(right, wrong), (right, "The answer is 3."), ("The answer is 2.", wrong)])
    ]
    kept, dropped = filter_pairs(pairs, Bounds())
    assert kept == pairs[:1]
    assert dropped == {"thoughts in one of the chains only": [pair.id for pair in pairs[1:]]}


# A teacher that thinks about the prompt, and writes the thoughts of the chain where it is asked to.
def say(request):
    prompt, n = request.messages[-1][1], int(request.row_id.rpartition("q")[2])
    wrong = request.stage == "corrupt" or (request.stage == "annotate" and n % 2)
    result = n + (7 if wrong else 1)
    chain = thought(f"{n} and one more are {result}.", f"We add. Therefore, the answer is {result}.")
    if prompt.startswith(WITH_THOUGHTS):
        return thought("The user wants me to rewrite this.", chain)
    return chain


QUESTIONS = [Question(f"q{n}", f"What is {n} + 1?", str(n + 1), "number", "sums") for n in range(4)]


@pytest.mark.parametrize("rectify", ["hint", "minimal"])
def test_thoughts_are_kept_on_both_sides(tmp_path, rectify):
    teacher = Scripted(say)
    made, _ = generate(tmp_path, teacher, QUESTIONS, thoughts="keep", rectify=rectify)
    assert made.dropped == {}
    assert len(made.pairs) == 4
    for pair in made.pairs:
        n = int(pair.question.id[1:])
        for chain, result in ((pair.chosen, n + 1), (pair.rejected, n + 7)):
            assert chain == thought(f"{n} and one more are {result}.", f"We add. Therefore, the answer is {result}.")
    shown = [r.messages[-1][1] for r in teacher.asked if r.stage in ("corrupt", "rectify")]
    assert all(prompt.startswith(WITH_THOUGHTS) for prompt in shown)
    assert sum("reasoning: <think>\n" in prompt for prompt in shown) == (2 if rectify == "hint" else 4)
    assert (made.thoughts, made.with_thoughts) == ("keep", 8)


def test_thoughts_are_dropped_by_default_and_the_prompts_are_as_ever(tmp_path):
    thinking, plain = Scripted(say), Scripted(lambda request: split_thoughts(say(request)).answer)
    made, _ = generate(tmp_path / "thinking", thinking, QUESTIONS)
    other, _ = generate(tmp_path / "plain", plain, QUESTIONS)
    assert made.pairs == other.pairs
    assert [r.key(thinking) for r in thinking.asked] == [r.key(plain) for r in plain.asked]
    assert (made.with_thoughts, other.with_thoughts) == (8, 0)


def test_thoughts_alone_are_chains_that_end_in_their_answer(tmp_path):
    made, _ = generate(tmp_path, Scripted(say), QUESTIONS, thoughts="only")
    for pair in made.pairs:
        n = int(pair.question.id[1:])
        for chain, result in ((pair.chosen, n + 1), (pair.rejected, n + 7)):
            assert chain == f"{n} and one more are {result}.\n\nTherefore, the answer is {result}."


def test_thoughts_about_a_prompt_are_in_no_chain(tmp_path):
    """A teacher that does not write the chain's thoughts: there is a pair without them, or none."""

    def stubborn(request):
        chain = say(request)
        if request.stage == "annotate":
            return chain
        answer = split_thoughts(chain).answer
        return thought("The hint gives the right reasoning away.", answer)

    made, _ = generate(tmp_path / "keep", Scripted(stubborn), QUESTIONS, thoughts="keep")
    assert made.pairs == []
    assert {reason: len(ids) for reason, ids in made.dropped.items()} == {"thoughts in one of the chains only": 4}
    made, _ = generate(tmp_path / "only", Scripted(stubborn), QUESTIONS, thoughts="only")
    assert len(made.pairs) == 4
    assert not any("hint" in chain for pair in made.pairs for chain in (pair.chosen, pair.rejected))


def test_a_check_does_not_see_the_answer_in_the_thoughts(tmp_path):
    teacher = Scripted(say)
    generate(tmp_path, teacher, QUESTIONS, thoughts="keep", rectify_check="self_consistency", corrupt=False)
    shown = [request.messages[-1][1] for request in teacher.asked if request.stage == "check"]
    assert len(shown) == 6
    assert {prompt.partition("so far: ")[2] for prompt in shown} == {
        f"{n} and one more are {n + 1}.\n\nWe add.\nConclusion:" for n in (1, 3)
    }


def test_labels_have_no_thoughts(tmp_path):
    def labels(request):
        return thought("Kinds: logical", "Kinds: calculation") if request.stage == "label" else say(request)

    made, _ = generate(tmp_path, Scripted(labels), QUESTIONS, thoughts="keep", label="paper")
    assert {(pair.mistake, pair.mistake_text) for pair in made.pairs} == {(("calculation",), "Kinds: calculation")}


# Servers.


def think(body: dict) -> tuple[str, str]:
    """Thoughts and answer: wrong for odd numbers when asked plainly, and when asked to corrupt."""
    prompt = body["messages"][-1]["content"]
    n = int(prompt.rpartition("What is ")[2].partition(" ")[0])
    wrong = "Wrong reasoning:" in prompt and "Mended" not in prompt
    wrong = wrong or ("Hint:" not in prompt and "Mended" not in prompt and n % 2)
    result = n + (5 if wrong else 1)
    return f"Take {n} and one more: {result}.", f"Therefore, the answer is {result}."


def in_field(name: str, **usage):
    def answer(body: dict) -> str:
        thoughts, said = think(body)
        whole = json.loads(completion(said))
        whole["choices"][0]["message"][name] = thoughts
        whole["usage"] |= usage
        return json.dumps(whole)

    return answer


def in_tags(body: dict) -> str:
    thoughts, said = think(body)
    return f"<think>{thoughts}</think>{said}"


SERVERS = {"field": in_field("reasoning_content"), "other field": in_field("reasoning"), "tags": in_tags}


def run(path: Path, *options: str) -> int:
    return main(["generate", "--config", str(path), *options])


def bodies(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "out" / "journal-0.sqlite") as journal:
        return [body for (body,) in journal.execute("SELECT body FROM responses ORDER BY id")]


def key_text(row: dict, tokenizer, side: str) -> list[str]:
    """The text under each run of key tokens."""
    output, runs = tokenize_dual_cot(row, tokenizer), [[]]
    for token, is_key in zip(output[f"{side}_ids"], output[f"{side}_key_mask"], strict=True):
        if is_key:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run).strip() for run in runs if run]


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("thoughts_as", ["text", "reasoning_content", "plain"])
def test_kept_thoughts_come_from_a_server_into_key_tokens(tmp_path, tokenizer, kind, thoughts_as):
    options = {"conversational": False} if thoughts_as == "plain" else {"thoughts_as": thoughts_as}
    with running(ChatServer(SERVERS[kind])) as url:
        assert run(recipe(tmp_path, url, questions=4, thoughts="keep", rectify="minimal", **options)) == 0
    tokenizer.chat_template = READS_FIELD
    rows = load_dual_cots(tmp_path / "out" / DUAL)
    assert len(rows) == 4
    for row in rows:
        n = int(row["answer"]) - 1
        expected = thought(f"Take {n} and one more: {n + 1}.", f"Therefore, the answer is {n + 1}.")
        assert text_of(row["chosen"]) == expected
        if thoughts_as == "reasoning_content":
            assert row["chosen"] == [
                {
                    "role": "assistant",
                    "content": f"Therefore, the answer is {n + 1}.",
                    "reasoning_content": f"Take {n} and one more: {n + 1}.",
                }
            ]
        # Once in the thoughts and once in the answer.
        assert key_text(row, tokenizer, "chosen") == [str(n + 1)] * 2
        assert key_text(row, tokenizer, "rejected") == [str(n + 5)] * 2
    assert len(load_dual_cots(tmp_path / "out" / WARM_UP)) == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "The model thought before 8 of its 8 answers. Chains have the thoughts before their answer: 4 of the 4" in card
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["thoughts"] == {"option": "keep", "answers_with_thoughts": 8}


@pytest.mark.parametrize("kind", SERVERS)
def test_what_was_dropped_is_told_and_can_be_had_from_the_journal(tmp_path, capsys, kind):
    server = ChatServer(SERVERS[kind])
    with running(server) as url:
        path = recipe(tmp_path, url, questions=4, rectify="minimal", rectify_check="none")
        assert run(path) == 0
        assert "thoughts left out: of 8 answers (`thoughts: keep` keeps them)" in capsys.readouterr().out
        rows = load_dual_cots(tmp_path / "out" / DUAL)
        assert {text_of(row["chosen"]).startswith("Therefore, the answer is") for row in rows} == {True}
        card = (tmp_path / "out" / "README.md").read_text()
        assert "thought before 8 of its 8 answers. The thoughts were left out of the chains. What was verified" in card
        # The first stage is read from the journal, thoughts included: only prompts about chains are new ones.
        assert server.seen == 8
        assert run(path, "--thoughts", "keep") == 0
        assert server.seen == 12
    assert len(bodies(tmp_path)) == 12


def test_thoughts_alone_come_from_a_server(tmp_path):
    with running(ChatServer(SERVERS["field"])) as url:
        assert run(recipe(tmp_path, url, questions=4, thoughts="only", rectify="minimal")) == 0
    for row in load_dual_cots(tmp_path / "out" / DUAL):
        n = int(row["answer"]) - 1
        texts = [text_of(row[side]) for side in ("chosen", "rejected")]
        assert texts == [f"Take {n} and one more: {m}.\n\nTherefore, the answer is {m}." for m in (n + 1, n + 5)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Chains are the thoughts, and end with the sentences of the answer that state the result: 4 of the 4" in card


def test_a_teacher_without_thoughts_has_no_word_of_them(tmp_path, capsys):
    with running(ChatServer(lambda body: think(body)[1])) as url:
        assert run(recipe(tmp_path, url, questions=4)) == 0
    assert "left out" not in capsys.readouterr().out
    assert "thought" not in (tmp_path / "out" / "report.json").read_text()
    assert "The model thought" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("limit", "outcome"), [(20, "correct"), (19, "cut off")])
def test_thoughts_over_their_limit_are_cut_off(tmp_path, limit, outcome):
    server = ChatServer(in_field("reasoning", completion_tokens_details={"reasoning_tokens": 20}))
    with running(server) as url:
        path = recipe(tmp_path, url, questions=3, max_thinking_tokens=limit, rectify="none")
        assert run(path) == (0 if outcome == "correct" else 2)
        seen = server.seen
        assert run(path, "--max_thinking_tokens", "21") == 0
        assert server.seen == (seen if outcome == "correct" else seen + 2)  # annotated once
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["counts"]["annotate"] == {"correct": 2, "wrong": 1}


def test_a_limit_that_the_endpoint_does_not_let_be_kept_stops_the_run(tmp_path, capsys):
    server = ChatServer(in_field("reasoning", completion_tokens=900))
    with running(server) as url:
        assert run(recipe(tmp_path, url, max_thinking_tokens=500, max_concurrency=1)) == 2
    assert (
        "`max_thinking_tokens: 500` cannot be kept, since how long the model thinks is not" in capsys.readouterr().err
    )
    assert server.seen == 1


# Options.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thoughts": "none"}, "`thoughts: 'none'`: expected one of keep, drop, only"),
        ({"thoughts": "keep", "thoughts_as": "tags"}, "expected one of text, reasoning_content, thinking"),
        ({"thoughts_as": "thinking"}, "`thoughts_as` is for `thoughts: keep`"),
        ({"thoughts": "only", "thoughts_as": "text"}, "`thoughts_as` is for `thoughts: keep`"),
        (
            {"thoughts": "keep", "thoughts_as": "thinking", "conversational": False},
            "`thoughts_as: thinking` is a field of messages; it needs `conversational: true`",
        ),
        ({"max_thinking_tokens": 0}, "`max_thinking_tokens` must be positive, got 0"),
        ({"max_thinking_tokens": 1024}, "`max_thinking_tokens: 1024` has no effect with `max_tokens: 1024`"),
        ({"student_chat_template_kwargs": {"a": 1}}, "`student_chat_template_kwargs` needs `student`"),
        ({"chat_template_kwargs": "yes"}, "`chat_template_kwargs"),
        *(
            (
                {"teacher": "procedural", "model": ..., "base_urls": ..., "dataset_name": ..., name: value},
                f"`{name}`: for",
            )
            for name, value in (("thoughts", "keep"), ("max_thinking_tokens", 9), ("chat_template_kwargs", {"a": 1}))
        ),
        *(
            ({"pairs": "pivots", "student": "s", "model": ..., "base_urls": ..., name: value}, f"`{name}`")
            for name, value in (("thoughts", "drop"), ("chat_template_kwargs", {"a": 1}))
        ),
    ],
)
def test_options_without_an_effect_are_refused(tmp_path, values, message):
    base = {"model": "m", "base_urls": ["http://127.0.0.1:1/v1"], "dataset_name": "q.jsonl"} | values
    with pytest.raises(InputError) as caught:
        read_generate_config(None, {}, {name: value for name, value in base.items() if value is not ...})
    assert message in str(caught.value)


def test_values_of_the_chat_template_are_sent_and_are_another_teacher(tmp_path):
    server = ChatServer(SERVERS["tags"])
    server.keep_bodies = True
    with running(server) as url:
        path = recipe(tmp_path, url, questions=2)
        for values in ('{"enable_thinking": false}', '{"enable_thinking": false}', '{"enable_thinking": true}'):
            assert run(path, "--chat_template_kwargs", values) == 0
        sent = [body["chat_template_kwargs"] for body in server.bodies]
        assert sent == [{"enable_thinking": False}] * 4 + [{"enable_thinking": True}] * 4
        assert run(path, "--chat_template_kwargs", "{a: 1}", "--extra_body", '{"chat_template_kwargs": {"a": 1}}') == 2
        assert server.seen == 8


def test_the_students_values_are_its_own(tmp_path):
    config = read_generate_config(
        None,
        {},
        {
            "model": "m",
            "base_urls": ["http://127.0.0.1:1/v1"],
            "api_key_env": None,
            "dataset_name": "q.jsonl",
            "student": "s",
            "student_base_urls": ["http://127.0.0.1:2/v1"],
            "chat_template_kwargs": {"a": 1},
            "student_chat_template_kwargs": {"b": 2},
            "labeller": "l",
            "label": "paper",
        },
    )
    models = config.make_teacher(), config.make_student(), config.make_labeller()
    assert ['"a": 1' in model.address for model in models] == [True, False, True]
    assert ['"b": 2' in model.address for model in models] == [False, True, False]


@pytest.mark.parametrize(
    ("template", "form", "refused"),
    [
        (CHAT_TEMPLATE, "text", None),
        (CHAT_TEMPLATE, "reasoning_content", "write `thoughts_as: text`"),
        (READS_FIELD, "text", None),
        (READS_FIELD, "reasoning_content", None),
        (READS_FIELD, "thinking", None),  # transformers gives one field's thoughts to a template under all names
        (DROPS_TEXT, "text", "leaves thoughts in this form out; write `thoughts_as: reasoning_content`"),
        (DROPS_TEXT, "reasoning_content", None),
        (DROPS_ALL, "text", "`thoughts: keep`: the chat template of .* leaves thoughts out in every form"),
        (OPENS, "text", None),  # where the prompt opens the thoughts, a chain goes on from there
        (None, "text", None),
    ],
)
def test_a_student_whose_template_loses_thoughts_is_named(tokenizer, template, form, refused):
    tokenizer.chat_template = template
    if refused is None:
        check_thoughts_form(tokenizer, form)
        return
    with pytest.raises(InputError, match=refused):
        check_thoughts_form(tokenizer, form)


@pytest.mark.parametrize("command", ["validate", "generate"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`thoughts_as: text`: the chat template of"),
        ({"thoughts_as": "reasoning_content", "student_chat_template_kwargs": {"quite": 1}}, "did you mean `quiet`"),
    ],
)
def test_a_student_is_looked_at_before_anything_is_paid(
    tmp_path, saved_student, tokenizer, capsys, command, options, message
):
    tokenizer.chat_template = DROPS_TEXT
    tokenizer.save_pretrained(saved_student)
    server = ChatServer(in_tags)
    with running(server) as url:
        path = recipe(tmp_path, url, thoughts="keep", student=str(saved_student), **options)
        assert main([command, "--config", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert server.seen == 0
