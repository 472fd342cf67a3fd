"""A run's folder: written piece by piece, taken up, and read only if it is whole and of this format."""

import json
import os
import re
import subprocess

import pytest
from run_folders import finished_run, suite_item

from edit_trl.common.errors import InputError
from edit_trl.common.files import content_hash, git_revision
from edit_trl.data.answers import VERIFIER_VERSION
from edit_trl.evaluation.accuracy.answering import answer_problems
from edit_trl.evaluation.accuracy.problems import Problem
from edit_trl.evaluation.runs.folder import RunFolder, read_run
from edit_trl.evaluation.runs.schema import RunRecord

NO_SCORES = ({"accuracy": 1.0}, {"accuracy": (1.0, 1.0)}, {"task": {"sums": {"items": 3}}})


def record(**changes):
    values = {"kind": "evaluate", "name": "student", "model": "path", "model_hash": "abc"}
    values |= {"settings": {"max_new_tokens": 9}, "tasks": {"sums": "1-abc"}, "data_hash": "def"}
    return RunRecord(**values | changes)


def item(number, text="fine\u2028 <b>\n"):
    sample = {"response": text, "verdict": "correct", "value": "4", "span": [0, 1], "cut_off": False, "tokens": 3}
    sample |= {"lenient_verdict": "correct", "lenient_value": "4", "lenient_span": [0, 1]}
    item = {"task": "sums", "id": str(number), "prompt": "2 + 2?", "answer": "4", "answer_type": "number"}
    item |= {"mistake": None, "source": None, "verdict": "correct", "value": "4", "cut_off": 0}
    return item | {"lenient_verdict": "correct", "lenient_value": "4", "samples": [sample]}


ORDER = [("sums", str(number)) for number in range(3)]


def finished(path, **changes):
    folder = RunFolder(path, record(**changes))
    folder.append(map(item, range(3)))
    return folder.finish(ORDER, *NO_SCORES)


def test_a_run_without_items_gives_way_to_another(tmp_path):
    """Such as one whose endpoint refused every request."""
    RunFolder(tmp_path / "run", record(model_hash="mistyped")).start()
    (tmp_path / "run" / "items.jsonl").write_text('{"task": "half a li')
    run = finished(tmp_path / "run")
    assert run.record.model_hash == "abc"
    assert len(read_run(tmp_path / "run").items) == 3


def test_written_in_any_order_read_in_the_order_of_the_data(tmp_path):
    folder = RunFolder(tmp_path / "run", record())
    assert not (tmp_path / "run").exists()  # nothing has been measured
    folder.append([item(2)])
    folder.append([item(0), item(1)])
    assert not folder.finished
    run = folder.finish(ORDER, *NO_SCORES)
    read = read_run(tmp_path / "run")
    assert read == run
    assert [of["id"] for of in read.items] == ["0", "1", "2"]
    assert read.items[0]["samples"][0]["response"] == "fine\u2028 <b>\n"
    assert (read.record.items, read.record.scores) == (3, {"accuracy": 1.0})
    assert read.record.finished >= read.record.created
    assert read_run(tmp_path / "run" / "items.jsonl") == read


def test_taken_up_after_a_torn_line(tmp_path):
    folder = RunFolder(tmp_path, record())
    folder.append([item(0), item(1)])
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write('{"task": "sums", "id": "2", "pro')
    folder.release()
    again = RunFolder(tmp_path, record())
    assert list(again.done) == ORDER[:2]
    assert again.record.created == folder.record.created
    again.append([item(2)])
    again.finish(ORDER, *NO_SCORES)
    finished(tmp_path.with_name("whole"))
    assert (tmp_path / "items.jsonl").read_bytes() == (tmp_path.with_name("whole") / "items.jsonl").read_bytes()


def test_a_finished_run_says_so(tmp_path):
    run = finished(tmp_path)
    again = RunFolder(tmp_path, record(name="other", recipe_hash="x"))  # neither changes an item
    assert again.finished
    assert again.record == run.record
    assert len(again.done) == 3


def test_time_adds_up_over_starts(tmp_path):
    folder = RunFolder(tmp_path, record())
    folder.pause()
    assert not (tmp_path / "evaluation.json").exists()  # it has not begun
    folder.start()
    folder.pause()
    folder.release()
    first = folder.record.seconds
    again = RunFolder(tmp_path, record())
    again.pause()
    assert again.record.seconds >= first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_hash": "other"}, "model_hash: 'abc' there, 'other' now"),
        ({"settings": {"max_new_tokens": 9, "samples": 2}}, "samples: 'not set' there, 2 now"),
        ({"tasks": {"sums": "2-abc"}}, "sums: '1-abc' there, '2-abc' now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"verifier": "0"}, "verifier: "),
        ({"kind": "suite"}, "kind: 'evaluate' there, 'suite' now"),
    ],
)
def test_another_run_is_not_taken_up(tmp_path, change, told):
    finished(tmp_path)
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path, record(**change))
    assert "holds another run" in str(caught.value)
    assert told in str(caught.value)


class NothingToGenerate:
    """A generator all of whose prompts are answered already."""

    def plan(self, lengths):
        return [[index] for index in range(len(lengths))]

    def run(self, prompts, batches):
        assert not list(batches)
        return iter(())


def test_responses_of_an_unfinished_run_are_graded_again(tmp_path):
    """An earlier answer check took the 3 of 3½ for the answer, and 4 for wrong."""
    stored = [item(0, "The answer is 3½."), item(1, "The answer is 4 apples.")]
    for one, value in zip(stored, ("3", "4 apples"), strict=True):
        for holder in (one, one["samples"][0]):
            holder.update(verdict="correct" if value == "3" else "wrong", value=value)
    problems = [Problem("sums", str(number), "2 + 2?", answer, "number") for number, answer in enumerate(("3", "4"))]
    folder = RunFolder(tmp_path, record(verifier="1"))
    folder.append(stored)
    folder.release()
    folder = RunFolder(tmp_path, record())
    assert folder.needs_grading
    items = answer_problems(problems, ["", ""], NothingToGenerate(), folder=folder, progress=False)
    assert [(one["verdict"], one["value"]) for one in items] == [("wrong", "7/2"), ("correct", "4")]
    assert items[1]["samples"][0]["span"] == [14, 15]
    folder.release()
    again = RunFolder(tmp_path, record())
    assert not again.needs_grading
    assert list(again.done.values()) == items
    assert json.loads((tmp_path / "evaluation.json").read_text())["verifier"] == VERIFIER_VERSION


def test_a_finished_run_of_an_earlier_answer_check_stays_as_it_is(tmp_path):
    run = finished(tmp_path, verifier="1")
    folder = RunFolder(tmp_path, record())
    assert (folder.finished, folder.needs_grading, folder.record) == (True, False, run.record)
    assert read_run(tmp_path) == run


def test_other_files_are_not_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        RunFolder(tmp_path, record())
    with pytest.raises(InputError, match="is not empty and holds no run"):
        RunFolder(tmp_path / "notes.txt", record())
    with pytest.raises(InputError, match=r"notes\.txt is a file, not a folder"):
        RunFolder(tmp_path / "notes.txt" / "run", record())


def spoil_record(tmp_path, **changes):
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_run_of_another_version(tmp_path):
    finished(tmp_path)
    spoil_record(tmp_path, format=7, edit_trl="9.9")
    with pytest.raises(
        InputError, match=r"has format 7 .*; edit_trl .* reads format 1.*version that wrote it \('9.9'\)"
    ):
        read_run(tmp_path)


def test_what_is_no_record(tmp_path):
    finished(tmp_path)
    spoil_record(tmp_path, extra=1)
    with pytest.raises(InputError, match="is not the record of a run: extra"):
        read_run(tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"evaluation.json: not JSON"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="no run of `edit-trl evaluate` or `suite` at"):
        read_run(tmp_path / "elsewhere")


def test_a_run_that_is_not_finished(tmp_path):
    RunFolder(tmp_path, record()).append([item(0)])
    with pytest.raises(InputError, match="not finished; run its command again"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-9], "line 3: cut short"),
        (lambda text: text + "{}\n", "line 4: not an item of `edit-trl evaluate`"),
        (lambda text: text + "nonsense\n", "line 4: not JSON"),
        (lambda text: text.partition("\n")[2], "items.jsonl has 2 items, evaluation.json says 3"),
    ],
)
def test_spoilt_items(tmp_path, spoil, message):
    finished(tmp_path)
    file = tmp_path / "items.jsonl"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(InputError, match=message):
        read_run(tmp_path)


def test_items_that_are_gone(tmp_path):
    finished(tmp_path)
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(InputError, match=r"items\.jsonl is missing"):
        read_run(tmp_path)


def test_numbers_that_are_none_are_not_written(tmp_path):
    folder = RunFolder(tmp_path, record())
    with pytest.raises(ValueError, match="Out of range float"):
        folder.append([item(0) | {"value": float("nan")}])


def test_hashes():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash(["a"]) != content_hash(["b"])


def test_git_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_revision() is None
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        (tmp_path / "file").write_text("1")
        subprocess.run(["git", *identity, *command], check=True)
    clean = git_revision()
    assert len(clean) == 12
    (tmp_path / "file").write_text("2")
    assert git_revision() == f"{clean}+"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task": [1]}, "task: [1] (list) is no text"),
        ({"samples": []}, "samples: is empty"),
        ({"samples": [5]}, "samples[0]: 5 (int) is no object"),
        ({"cut_off": float("nan")}, "cannot be read: NaN is no number of JSON"),
        ({"cut_off": None}, "cut_off: None (NoneType) is no integer"),
    ],
)
def test_an_item_that_was_edited_is_named_with_its_line(tmp_path, change, expected):
    finished(tmp_path)
    file = tmp_path / "items.jsonl"
    first, second, *others = file.read_text().split("\n")
    file.write_text("\n".join([first, json.dumps(json.loads(second) | change), *others]))
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        read_run(tmp_path)
    assert str(caught.value).startswith(f"{file}, line 2: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": ["suite"]}, "kind: ['suite'] (list) is none of 'evaluate', 'suite'"),
        ({"name": None}, "name: None (NoneType) is no text"),
        ({"scores": {"accuracy": "x"}}, "scores['accuracy']: 'x' is no number"),
        ({"intervals": {"accuracy": [0]}}, "intervals['accuracy']: [0] (list) has not 2 values"),
        ({"tasks": ["sums"]}, "tasks: ['sums'] (list) is no object"),
    ],
)
def test_a_record_that_was_edited_is_named_with_its_field(tmp_path, change, expected):
    finished(tmp_path)
    spoil_record(tmp_path, **change)
    with pytest.raises(InputError, match=re.escape(f"evaluation.json is not the record of a run: {expected}")):
        read_run(tmp_path)


def test_a_second_process_is_kept_out(tmp_path):
    """Until the first has finished, or gives up; a process that read the folder before the first began, too."""
    late = RunFolder(tmp_path / "run", record())
    first = RunFolder(tmp_path / "run", record())
    first.start()
    with pytest.raises(InputError, match=f"run is in use by process {os.getpid()}; wait until it ends"):
        late.start()
    with pytest.raises(InputError, match="is in use by process"):
        RunFolder(tmp_path / "run", record())
    first.append([item(0)])
    first.release()
    with pytest.raises(InputError, match="another process has begun this run meanwhile"):
        late.start()
    second = RunFolder(tmp_path / "run", record())
    assert list(second.done) == [("sums", "0")]
    second.finish([("sums", "0")], {}, {}, {})
    assert RunFolder(tmp_path / "run", record()).finished


def test_what_a_killed_process_left_does_not_block_and_is_removed(tmp_path):
    for name in (".edit_trl.lock", "evaluation.json.99.draft", "items.jsonl.99.draft"):
        (tmp_path / name).write_text("{")
    run = finished(tmp_path)
    assert not list(tmp_path.glob("*.draft"))
    assert read_run(tmp_path) == run


def test_a_full_disk_is_named_with_the_file(tmp_path):
    folder = RunFolder(tmp_path / "run", record())
    folder.start()
    (tmp_path / "run" / "items.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*items\.jsonl"):
        folder.append([item(0)])


def test_numbers_as_ids_of_earlier_versions_are_read_as_text(tmp_path):
    finished(tmp_path)
    file = tmp_path / "items.jsonl"
    file.write_text(file.read_text().replace('"id": "1"', '"id": 1'))
    assert [one["id"] for one in read_run(tmp_path).items] == ["0", "1", "2"]


def test_settings_and_seeds_that_nothing_else_can_hold(tmp_path):
    finished(tmp_path)
    deep = json.loads("[" * 60 + "]" * 60)
    spoil_record(tmp_path, settings={"deep": deep})
    with pytest.raises(InputError, match=r"evaluation.json, 'settings': its lists or objects are nested too deeply"):
        read_run(tmp_path)
    spoil_record(tmp_path, settings={}, seed=2**70)
    with pytest.raises(InputError, match=r"is not the record of a run: seed: .* is no integer"):
        read_run(tmp_path)


@pytest.mark.parametrize("value", ["1e400", "1" + "0" * 400])
def test_numbers_that_no_statistics_can_take(tmp_path, value):
    finished_run(tmp_path / "run", [suite_item(0, 0.5)], kind="suite")
    file = tmp_path / "run" / "items.jsonl"
    file.write_text(file.read_text().replace('"margin": 0.5', f'"margin": {value}', 1))
    with pytest.raises(InputError, match=r"line 1: not an item of `edit-trl suite`: margin: .* is no number"):
        read_run(tmp_path / "run")
