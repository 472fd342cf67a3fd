"""The index of runs: what is kept of each, several processes at once, and files that are something else."""

import multiprocessing
import os
import sqlite3
from dataclasses import replace

import pytest
from run_folders import finished_run, outcomes

from edit_trl.common.errors import InputError
from edit_trl.evaluation.runs.history import DEFAULT_FILE, SCHEMA_VERSION, check_history, read_history, record_run
from edit_trl.evaluation.runs.schema import Run


def make_run(path, name="student") -> Run:
    return finished_run(path, outcomes("+-"), name, seed=3)


def test_a_row_says_what_was_measured(tmp_path):
    run = make_run(tmp_path / "run")
    record_run(run, tmp_path / "deep" / "history.sqlite")
    [row] = read_history(tmp_path / "deep" / "history.sqlite")
    assert (row.kind, row.name, row.model, row.model_hash) == ("evaluate", "student", "models/student", "m1")
    assert (row.data_hash, row.recipe_hash, row.seed, row.items) == ("d1", "r1", 3, 2)
    assert row.path == str(tmp_path / "run")
    assert row.finished == run.record.finished
    assert row.git_revision == run.record.git_revision
    assert row.scores == run.record.scores
    assert row.scores["accuracy"] == 0.5


def test_recording_again_changes_nothing_and_a_later_finish_is_another_row(tmp_path):
    file, run = tmp_path / "history.sqlite", make_run(tmp_path / "run")
    for _ in range(3):
        record_run(run, file)
    assert len(read_history(file)) == 1
    record_run(Run(run.path, replace(run.record, finished="2999-01-01T00:00:00Z"), run.items), file)
    assert [row.finished for row in read_history(file)] == [run.record.finished, "2999-01-01T00:00:00Z"]


def test_the_folder_is_known_by_its_absolute_path(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    record_run(run, tmp_path / "history.sqlite")
    monkeypatch.chdir(tmp_path)
    record_run(Run("run", run.record, run.items), "history.sqlite")
    assert len(read_history("history.sqlite")) == 1


def _record_many(folder, file, barrier, worker):
    run = make_run(folder / f"run-{worker}", f"student {worker}")
    barrier.wait()
    for number in range(10):
        record_run(Run(run.path, replace(run.record, finished=f"2026-01-01T00:00:{number:02}Z"), []), file)


def test_processes_record_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, file = context.Barrier(3), tmp_path / "new" / "history.sqlite"
    workers = [context.Process(target=_record_many, args=(tmp_path, file, barrier, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(read_history(file)) == 30


def test_filters(tmp_path):
    file = tmp_path / "history.sqlite"
    for number, name in enumerate(("base", "EDIT small", "edit large")):
        run = make_run(tmp_path / str(number), name)
        run = replace(run, record=replace(run.record, finished=f"2026-01-0{3 - number}T00:00:00Z"))
        record_run(run, file)
    assert [row.name for row in read_history(file)] == ["edit large", "EDIT small", "base"]  # by time
    assert [row.name for row in read_history(file, name="edit")] == ["edit large", "EDIT small"]
    assert [row.name for row in read_history(file, model="MODELS/base")] == ["base"]
    assert [row.name for row in read_history(file, last=2)] == ["EDIT small", "base"]
    assert [row.name for row in read_history(file, last=9)] == ["edit large", "EDIT small", "base"]
    assert [row.name for row in read_history(file, name="edit", last=1)] == ["EDIT small"]
    assert read_history(file, kind="suite") == []


@pytest.mark.parametrize("name", ["a%20b?c#d.sqlite", "naïve ☃.sqlite"])
def test_any_name_of_a_file(tmp_path, name):
    record_run(make_run(tmp_path / "run"), tmp_path / name)
    assert (tmp_path / name).is_file()
    assert len(read_history(tmp_path / name)) == 1


def test_reading_makes_no_file(tmp_path):
    with pytest.raises(InputError, match=r"no history at .*none\.sqlite; .*--file"):
        read_history(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_something_else(tmp_path):
    run = make_run(tmp_path / "run")
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, but long enough to be read as one " * 20)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE responses (id INTEGER)")
    connection.close()
    newer = tmp_path / "newer.sqlite"
    record_run(run, newer)
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    expected = {text: "not a database", other: "not a history of edit-trl", newer: "version 2 of the history"}
    for file, message in expected.items():
        before = file.read_bytes()
        with pytest.raises(InputError, match=message):
            read_history(file)
        with pytest.raises(InputError, match=message):
            record_run(run, file)
        assert file.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder of the history"):
        record_run(make_run(tmp_path / "run"), tmp_path / "file" / "history.sqlite")
    with pytest.raises(InputError, match="cannot be used as a history"):
        record_run(make_run(tmp_path / "run"), tmp_path)


def test_the_default_is_beside_the_runs():
    assert str(DEFAULT_FILE) == "outputs/history.sqlite"


def test_what_can_be_added_to_is_known_before(tmp_path):
    (tmp_path / "begun.sqlite").touch()
    for file in (None, tmp_path / "none.sqlite", tmp_path / "begun.sqlite"):
        check_history(file)
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be looked at as one\n" * 20)
    for file in (tmp_path / "text.sqlite", tmp_path):
        with pytest.raises(InputError, match="history"):
            check_history(file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("scores = '{nope'", "run 1, scores: not JSON"),
        ("scores = '[]'", r"run 1: scores: \[\] \(list\) is no object"),
        ("""scores = '{"accuracy": "x"}'""", r"run 1: scores\['accuracy'\]: 'x' is no number"),
        ("items = 'many'", "run 1: items: 'many' is no integer"),
        ("name = x'ff00'", "run 1: name: .* is no text"),
    ],
)
def test_a_row_that_was_edited_is_named_with_its_column(tmp_path, change, expected):
    file = tmp_path / "history.sqlite"
    record_run(make_run(tmp_path / "run"), file)
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE runs SET {change}")
    connection.close()
    with pytest.raises(InputError, match=expected):
        read_history(file)


def test_a_place_that_cannot_be_written_is_known_before(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is no file"):
        check_history(tmp_path / "pipe")
    (tmp_path / "others").mkdir(mode=0o555)
    user = os.getresuid()
    if user[1] == 0:
        os.setresuid(65534, 0, 0)  # who asks is not root, who tidies up is
    try:
        with pytest.raises(PermissionError, match="others"):
            check_history(tmp_path / "others" / "deep" / "history.sqlite")
    finally:
        os.setresuid(*user)
    assert list((tmp_path / "others").iterdir()) == []
