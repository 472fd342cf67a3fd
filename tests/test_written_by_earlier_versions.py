"""What version 5848ae2 left behind is taken up: journals, checkpoints, runs and a history.

`fixtures/written_by_5848ae2` holds work that was cut off (`cut_off`) and what that version itself made of it
when it went on (`completed`); its README says how both were written. Here the version under test goes on.
"""

import html
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer, running
from pyarrow import parquet
from safetensors.torch import load_file

from edit_trl.cli.main import main
from edit_trl.data.answers import VERIFIER_VERSION

FIXTURES = Path(__file__).parent / "fixtures" / "written_by_5848ae2"

COMMANDS = {
    "procedural": "generate",
    "teacher": "generate",
    "training": "train",
    "answers": "evaluate",
    "endpoint": "evaluate",
    "pairs": "suite",
    "judge": "judge",
}
"""The recipes there, which are also the names of the folders of what they make, and whose they are."""

RESULTS = {
    "generate": ("dual.parquet", "warm_up.parquet", "report.json", "README.md"),
    "train": ("adapter_model.safetensors", "trainer_state.json"),
    "evaluate": ("evaluation.json", "items.jsonl"),
    "suite": ("evaluation.json", "items.jsonl"),
    "judge": ("judgements.jsonl", "report.json"),
}
"""What is kept of a command that came to its end."""

WEAK = ("--name", "weak", "--extra_body", "{student: weak}", "--output_dir", "completed/weak")
"""Options of the recipe `endpoint` for a second, worse student."""

MEASURED = ("answers", "endpoint", "weak", "pairs")
"""The runs in the history, in order."""

# How often the students at the endpoint are right: all but every so manieth time.
SKILLS = {"weak": 2, "strong": 5}
QUALITY = {"weak": 3, "strong": 6}
MARK = ", as measured before"


def answer(body: dict) -> str:
    """What the endpoint says: a teacher who is wrong about odd numbers, two students and a judge of them."""
    prompt = body["messages"][-1]["content"]
    number = int(re.findall(r"What is (\d+)", prompt)[-1])
    if "Score 1:" in prompt:
        shown = re.findall(r"^> \((\w+)\)", prompt, re.MULTILINE)
        scores = [f"Score {place}: {QUALITY[name] + number % 2}" for place, name in enumerate(shown, 1)]
        return "\n".join(["The key step is the sum.", *scores])
    if "Kinds: " in prompt:
        return "Kinds: calculation"
    if "Verdict: " in prompt:
        return "Verdict: sound"
    student = body.get("student")
    if student is not None:
        wrong, beginning = (number + body["seed"]) % SKILLS[student] == 0, f"({student}) {number}"
    else:
        wrong = "Wrong reasoning:" in prompt or ("Hint:" not in prompt and number % 2 == 1)
        beginning = str(number)
    if wrong:
        return f"{beginning} and two more. Therefore, the answer is {number + 2}."
    return f"{beginning} and one more. Therefore, the answer is {number + 1}."


@contextmanager
def endpoint(**options: Any) -> Iterator[ChatServer]:
    """Serves http://endpoint.test, whose name is in the journals: as a proxy, whatever its own port is."""
    server = ChatServer(answer, **options)
    with running(server) as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv("http_proxy", url.removesuffix("/v1"))
        environment.setenv("no_proxy", "")
        yield server


def run(name: str, *options: str, code: int = 0) -> None:
    """Runs a recipe, as a person does from the folder that holds them."""
    assert main([COMMANDS[name], "--config", f"recipes/{name}.yaml", *options]) == code


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> None:
    """A copy of what was written, to work in: every path in it is relative to it."""
    shutil.copytree(FIXTURES, tmp_path / "workplace")
    monkeypatch.chdir(tmp_path / "workplace")


def journal(name: str) -> list[tuple]:
    """The attempts in a journal, in order: what was asked (three columns), its key and the answer."""
    query = "SELECT stage, row_id, sample, key, body FROM responses ORDER BY id"
    with closing(sqlite3.connect(f"cut_off/{name}/journal-0.sqlite")) as connection:
        return connection.execute(query).fetchall()


def read_json(*parts: str) -> Any:
    return json.loads(Path(*parts).read_text(encoding="utf-8"))


def read_items(folder: str, name: str) -> list[dict]:
    lines = Path(folder, name, "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def card(file: Path) -> tuple[dict, list[str]]:
    """A card's metadata and the lines of its text: a card may be laid out or escaped anew, and must say the same."""
    _, metadata, text = html.unescape(file.read_text(encoding="utf-8")).split("---\n", 2)
    lines = (re.sub(r"\| *-+ *(?=\|)", "|---", line) for line in text.splitlines())
    return yaml.safe_load(metadata), [line for line in lines if line.strip()]


def approximately(value: Any) -> Any:
    """Values as JSON has them, to compare others with: another processor may round the fifth digit up."""
    if isinstance(value, dict):
        return {name: approximately(of) for name, of in value.items()}
    if isinstance(value, list):
        return [approximately(of) for of in value]
    return pytest.approx(value, rel=0, abs=2e-5) if isinstance(value, float) else value


def assert_same_file(found: Path, expected: Path) -> None:
    """To the byte; but for a table that another version of Arrow packs in its own way."""
    if found.suffix == ".parquet":
        tables = [parquet.ParquetFile(path) for path in (found, expected)]
        assert tables[0].read().equals(tables[1].read(), check_metadata=True)
        if tables[0].metadata.created_by != tables[1].metadata.created_by:
            return
    if found.suffix == ".md":
        assert card(found) == card(expected)
        return
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["procedural", "teacher", "judge", "endpoint"])
def test_what_was_answered_is_not_asked_again(name):
    before = journal(name)
    with endpoint() as server:
        run(name)
    after = journal(name)
    assert after[: len(before)] == before
    added = after[len(before) :]
    assert added
    assert not {attempt[:3] for attempt in added} & {attempt[:3] for attempt in before}
    assert server.seen == (0 if name == "procedural" else len(added))


@pytest.mark.parametrize("name", ["procedural", "teacher", "judge"])
def test_what_was_answered_makes_the_same_files(name):
    with endpoint():
        run(name)
    for file in RESULTS[COMMANDS[name]]:
        assert_same_file(Path("cut_off", name, file), Path("completed", name, file))


@pytest.mark.parametrize("name", ["answers", "endpoint", "pairs"])
def test_what_was_measured_is_not_measured_again(name):
    """Each item that was there bears a mark, which it would lose if it were."""
    marked = {
        (item["task"], item["id"]): item | {"answer": item["answer"] + MARK} for item in read_items("cut_off", name)
    }
    expected = [marked.get((item["task"], item["id"]), item) for item in read_items("completed", name)]
    assert 0 < len(marked) < len(expected)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in marked.values())
    Path("cut_off", name, "items.jsonl").write_text(lines, encoding="utf-8")
    with endpoint():
        run(name)
    assert read_items("cut_off", name) == approximately(expected)


@pytest.mark.parametrize("name", ["answers", "endpoint", "pairs"])
def test_a_run_ends_with_the_same_record(name):
    with endpoint():
        run(name)
    found, expected = (read_json(folder, name, "evaluation.json") for folder in ("cut_off", "completed"))
    assert found["finished"]
    # The responses there were graded again, by the present answer check.
    assert found["verifier"] == VERIFIER_VERSION
    assert found == approximately(expected) | {name: found[name] for name in ("finished", "seconds", "verifier")}


def test_training_goes_on_from_a_checkpoint(capfd):
    run("training")
    printed = capfd.readouterr().out
    assert "cut_off/training/warm_up is finished" in printed
    assert "Resuming from cut_off/training/key_steps/checkpoint-2" in printed
    assert_trained()


def test_a_stage_starts_from_the_one_before():
    shutil.rmtree("cut_off/training/key_steps")
    run("training", "--stage", "key_steps")
    assert_trained()


def assert_trained() -> None:
    """The second stage ended with the weights and the log that it had."""
    found, expected = Path("cut_off/training/key_steps"), Path("completed/training")
    weights, expected_weights = (load_file(at / "adapter_model.safetensors") for at in (found, expected))
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        assert tensor.numpy() == pytest.approx(expected_weights[name].numpy(), rel=0, abs=1e-5), name
    log, expected_log = (
        [without_speed(entry) for entry in read_json(at, "trainer_state.json")["log_history"]]
        for at in (found, expected)
    )
    assert log == approximately(expected_log)


def without_speed(entry: dict) -> dict:
    """What a trainer logged, without what is of the machine."""
    return {name: value for name, value in entry.items() if not re.search("runtime|per_second", name)}


def test_runs_are_compared_to_the_same_figures():
    assert main(["compare", "completed/weak", "completed/endpoint", "--json", "found.json"]) == 0
    assert read_json("found.json") == approximately(read_json("completed/compare.json"))


def test_a_history_is_read_and_added_to(capsys):
    rows = read_history(capsys)
    for row, name in zip(rows, MEASURED, strict=True):
        record = read_json("completed", name, "evaluation.json")
        assert row == {column: record.get(column) for column in row} | {"path": row["path"]}
        assert Path(row["path"]).name == name
    run("endpoint", *WEAK)  # it is finished, and new only in being here
    added = rows[MEASURED.index("weak")] | {"path": str(Path("completed/weak").resolve())}
    grown = read_history(capsys)
    assert len(grown) == len(rows) + 1
    assert all(row in grown for row in [*rows, added])


def read_history(capsys) -> list[dict]:
    capsys.readouterr()
    assert main(["history", "--file", "history.sqlite", "--json"]) == 0
    return json.loads(capsys.readouterr().out)
