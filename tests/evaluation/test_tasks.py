"""Task files: what they ask, how it is worded, and what is refused."""

import json

import pytest
import yaml
from test_accuracy import PROBLEMS

from edit_trl.common.errors import InputError
from edit_trl.evaluation.accuracy.task_file import read_task
from edit_trl.evaluation.accuracy.tasks import read_tasks

QUESTIONS = [
    {"question": "What is 2 + 2?", "answer": "4", "id": "sum"},
    {"question": "Is 7 even?", "answer": "No", "id": "even", "task": "parity"},
]
EXEMPLARS = [
    {"question": "What is 1 + 1?", "chain": "1 + 1 = 2. The answer is 2.", "answer": "2"},
    {"question": "Is 4 even?", "chain": "4 / 2 = 2. The answer is Yes.", "answer": "Yes", "task": "parity"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EXEMPLARS))
    return tmp_path


def write(folder, name="sums.yaml", **options):
    path = folder / name
    path.write_text(yaml.safe_dump({"version": 1, "dataset_name": "questions.jsonl"} | options))
    return str(path)


def read(*files, **options):
    return read_tasks(files, **options)


def test_questions_become_messages(folder):
    tasks = read(write(folder))
    first, second = tasks.problems
    assert (first.task, first.id, first.answer, first.answer_type) == ("sums", "sum", "4", "number")
    assert first.prompt == [{"role": "user", "content": "What is 2 + 2?"}]
    assert (second.task, second.answer_type) == ("parity", "yes_no")
    assert list(tasks.versions) == ["sums", "parity"]


def test_a_dataset_file_is_a_task_that_sets_nothing_else(folder):
    tasks = read(str(folder / "questions.jsonl"))
    named = read(write(folder, name="questions.yaml"))
    assert tasks.problems == named.problems
    assert tasks.versions == named.versions
    assert list(tasks.versions) == ["questions", "parity"]
    (folder / "bad.jsonl").write_text('{"question": "What is 2 + 2?"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl.*answer"):
        read(str(folder / "bad.jsonl"))


def test_exemplars_are_earlier_turns_of_their_task(folder):
    path = write(folder, exemplars="shots.jsonl", system_prompt="Be brief.", prompt="Q: {question}")
    first, second = read(path).problems
    assert [message["role"] for message in first.prompt] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in first.prompt][1:] == [
        "Q: What is 1 + 1?",
        "1 + 1 = 2. The answer is 2.",
        "Q: What is 2 + 2?",
    ]
    assert len(second.prompt) == 6  # the one for every task, and its own
    (first, second) = read(write(folder, exemplars="shots.jsonl", shots=1)).problems
    assert len(second.prompt) == 3


def test_plain_prompts_end_in_a_line(folder):
    path = write(folder, exemplars="shots.jsonl", shots=1, system_prompt="Be brief.")
    first = read(path, conversational=False).problems[0]
    assert first.prompt == ("Be brief.\n\nWhat is 1 + 1?\n1 + 1 = 2. The answer is 2.\n\nWhat is 2 + 2?\n")


def test_the_system_prompt_of_the_command_wins(folder):
    first = read(write(folder, system_prompt="Long."), system_prompt="Short.").problems[0]
    assert first.prompt[0] == {"role": "system", "content": "Short."}


def test_the_version_follows_what_makes_prompts_and_reads_answers(folder):
    versions = {
        read(write(folder, **options)).versions["sums"]
        for options in (
            {},
            {"version": 2},
            {"prompt": "Q: {question}"},
            {"system_prompt": "x"},
            {"exemplars": "shots.jsonl"},
            {"answer_types": {"sums": "text"}},
        )
    }
    assert len(versions) == 6
    assert {version[0] for version in versions} == {"1", "2"}
    assert read(write(folder)).versions == read(write(folder, "sums.yaml")).versions


def test_held_out_dual_cots_are_asked_as_they_are(tmp_path):
    file = tmp_path / "held_out.jsonl"
    rows = [row | {"mistake": ["calculation"], "source": "corrupt"} for row in PROBLEMS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = read(write(tmp_path, dataset_name="held_out.jsonl", answer_types={"logic": "text"}))
    assert [problem.prompt for problem in tasks.problems] == [row["prompt"] for row in PROBLEMS]
    assert tasks.problems[0].mistake == ["calculation"]
    assert tasks.problems[0].source == "corrupt"
    assert {problem.task: problem.answer_type for problem in tasks.problems}["logic"] == "text"
    with pytest.raises(InputError, match=r"has prompts of its own.*leave out `system_prompt`"):
        read(write(tmp_path, dataset_name="held_out.jsonl", system_prompt="Think."))


def test_procedural_problems_and_limits(tmp_path):
    easy = write(tmp_path, "easy.yaml", dataset_name=None, families=["arithmetic", "navigate"], rows=6)
    options = {"dataset_name": None, "families": ["arithmetic"], "rows": 4, "difficulty": 3}
    tasks = read(easy, write(tmp_path, "hard.yaml", prefix="hard/", **options), limit=2)
    assert [problem.task for problem in tasks.problems] == [*["arithmetic", "navigate"] * 2, *["hard/arithmetic"] * 2]
    with pytest.raises(InputError, match=r"task 'arithmetic' is in another file too; give one of them a `p"):
        read(easy, write(tmp_path, "hard.yaml", **options))
    with pytest.raises(InputError, match=r"easy\.yaml: is named twice; name it once"):
        read(easy, easy)
    with pytest.raises(InputError, match=r"is a folder; name a file in it, or a task file with `dataset_name: "):
        read(tmp_path)


def test_several_datasets_are_tasks(folder):
    (folder / "other.jsonl").write_text(
        json.dumps({"passage": "Ann is 7.", "question": "Ann's age?", "options": ["(A)6", "(B)7"]})[:-1]
        + ', "label": "B", "answer": null}\n'
    )
    mapping = {"passage": "context", "options": "choices", "label": "answer"}
    tasks = read(write(folder, dataset_name=None, datasets={"lsat": "other.jsonl"}, column_mapping=mapping))
    (problem,) = tasks.problems
    assert (problem.task, problem.answer, problem.answer_type) == ("lsat", "(B)", "choice")
    assert problem.prompt[0]["content"] == "Ann is 7.\nAnn's age?\nOptions:\n(A) 6\n(B) 7"


def test_names_beside_the_recipe(tmp_path):
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks", "mine.yaml", dataset_name=None, families=["navigate"])
    path, task = read_task("mine", tmp_path)
    assert (path.name, task.families) == ("mine.yaml", ["navigate"])
    with pytest.raises(InputError, match=r"no task 'your'.*the names .* are: .*mine"):
        read_task("your", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer_type": "numbr"}, "`answer_type: 'numbr'`: expected one of .*did you mean 'number'"),
        ({"answer_types": {"sums": "numbr"}}, "`answer_types.sums: 'numbr'`: expected one of .*did you mean 'number'"),
        ({"answer_types": {"summs": "number"}}, "`answer_types` names tasks that are not there: summs"),
        ({"promt": "x"}, "unknown key `promt`; did you mean `prompt`"),
        ({"prompt": "Q: {qestion}"}, "`prompt`: unknown placeholder {qestion}; did you mean `question`"),
        ({"prompt": "{question"}, "`prompt`: not a template"),
        ({"shots": 0}, "`shots` must be at least 1, got 0"),
        ({"families": ["navigate"]}, "a task needs one of"),
        ({"dataset_name": None}, "a task needs one of"),
        ({"dataset_name": "none.jsonl"}, "no such file or folder: 'none.jsonl'"),
        ({"dataset_name": None, "families": ["arithmetik"]}, "arithmetik"),
        ({"exemplars": "none.yaml"}, "no file of exemplars at none.yaml"),
        ({"answer_type": "choice"}, r"row 1, column 'answer': the known answer '4' is not of type 'choice'"),
    ],
)
def test_bad_task_files(folder, options, message):
    with pytest.raises(InputError, match=message):
        read(write(folder, **options))


def test_the_same_id_twice(folder):
    (folder / "questions.jsonl").write_text(json.dumps(QUESTIONS[0]) * 1 + "\n" + json.dumps(QUESTIONS[0]))
    with pytest.raises(InputError, match="id 'sum' occurs 2 times"):
        read(write(folder))


def test_plain_worked_examples_end_where_another_question_begins(folder):
    plain = {"exemplars": "shots.jsonl", "prompt": "Q: {question}"}
    tasks = read(write(folder, **plain), conversational=False)
    assert tasks.stop == {"sums": ("\n\nQ:",), "parity": ("\n\nQ:",)}
    assert read(write(folder, exemplars="shots.jsonl"), conversational=False).stop["sums"] == ("\n\n",)
    assert read(write(folder, **plain)).stop["sums"] == ()  # turns of a conversation end by themselves
    assert read(write(folder, prompt="Q: {question}"), conversational=False).stop["sums"] == ()
    chain = "First.\n\nQ: is the letter. The answer is 2."
    (folder / "shots.jsonl").write_text(json.dumps(EXEMPLARS[0] | {"chain": chain}) + "\n")
    assert read(write(folder, **plain), conversational=False).stop["sums"] == ()  # it tells no question apart


def test_what_is_wrong_beside_a_task_file_names_the_task_file(tmp_path):
    (tmp_path / "a.yaml").write_text("families: [magic]\n")
    (tmp_path / "b.yaml").write_text("families: [arithmetic]\nexemplars: gone.yaml\n")
    with pytest.raises(InputError) as caught:
        read_tasks([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
    first, second = caught.value.problems
    assert first.startswith(f"{tmp_path / 'a.yaml'}: unknown family 'magic'")
    assert second.startswith(f"{tmp_path / 'b.yaml'}: no file of exemplars at gone.yaml")


def test_tasks_that_are_a_whole_split_of_a_dataset_on_the_hub(folder, serve_hub, monkeypatch):
    hub = serve_hub()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    lines = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]
    hub.add("ada/sums", {"test.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}, "dataset")
    tagged = [line | {"task": f"task{number}"} for number, line in enumerate(lines)]
    hub.add("ada/tagged", {"test.jsonl": "".join(json.dumps(line) + "\n" for line in tagged).encode()}, "dataset")
    file = write(folder, "on_hub.yaml", dataset_name="ada/sums", dataset_split="test", prefix="my-")
    local, parts = write(folder), write(folder, "parts.yaml", dataset_name="ada/tagged", dataset_split="test")
    expected = {"my-on_hub": {"dataset": "ada/sums", "config": None, "split": "test"}}
    assert read(file, local, parts).hub_datasets == expected
    assert read(file, limit=3).hub_datasets == expected
    assert read(file, limit=2).hub_datasets == {}  # a part of it is no result on it
