"""The journal: what is in it stays in it."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edit_trl.models.chat.journal import SCHEMA_VERSION, Journal, JournalError
from edit_trl.models.chat.protocol import ChatRequest, RawResponse, Sampling
from edit_trl.teachers.procedural_chat import ProceduralChat

TEACHER = ProceduralChat(rows=1)
REQUEST = ChatRequest("annotate", "row 1", "v1", (("system", "Be brief."), ("user", "Why?")), Sampling(), 2, 7)
BODY = '{"text": "Weil – darum 🙂\\u0000"}'


def add(journal: Journal, key: str, body: str = BODY) -> None:
    asyncio.run(journal.add(key, REQUEST, TEACHER, RawResponse(body, 0.25)))


def test_what_is_added_is_found_also_later(tmp_path):
    with Journal(tmp_path / "run") as journal:
        assert journal.find("a") == []
        add(journal, "a")
        add(journal, "a", "second")
        add(journal, "b", "other")
        assert journal.find("a") == [RawResponse(BODY, 0.25), RawResponse("second", 0.25)]
        assert len(journal) == 3
    with Journal(tmp_path / "run") as journal:
        assert [raw.body for raw in journal.find("a")] == [BODY, "second"]


def test_a_request_is_kept_beside_its_answer(tmp_path):
    with Journal(tmp_path) as journal:
        add(journal, "a")
        path = journal.path
    columns = "stage, row_id, template, messages, model, address, sampling, seed, sample"
    (row,) = sqlite3.connect(path).execute(f"SELECT {columns} FROM responses")
    assert row[:4] == ("annotate", "row 1", "v1", '[["system", "Be brief."], ["user", "Why?"]]')
    assert row[4:6] == ("procedural", TEACHER.address)
    assert '"temperature": 0.2' in row[6]
    assert row[7:] == (7, 2)


def test_many_at_once(tmp_path):
    async def main(journal):
        await asyncio.gather(*(journal.add(f"k{n}", REQUEST, TEACHER, RawResponse(str(n), 0)) for n in range(500)))

    with Journal(tmp_path) as journal:
        asyncio.run(main(journal))
        assert len(journal) == 500
        assert journal.find("k499") == [RawResponse("499", 0)]


def test_a_second_process_is_refused_with_the_first_ones_pid(tmp_path):
    code = f"from edit_trl.models.chat.journal import Journal; Journal({str(tmp_path)!r}, wait=0.1)"
    with Journal(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"is in use by process {os.getpid()}; wait until it ends" in second.stderr
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr


def test_what_cannot_be_kept_is_said_and_the_journal_goes_on(tmp_path):
    async def main(journal):
        bad = replace(REQUEST, row_id="a \ud83d")
        with pytest.raises(JournalError, match="it can hold no such value"):
            await asyncio.wait_for(journal.add("a", bad, TEACHER, RawResponse("x", 0)), 10)
        await asyncio.wait_for(journal.add("b", REQUEST, TEACHER, RawResponse("y", 0)), 10)

    with Journal(tmp_path) as journal:
        asyncio.run(main(journal))
        assert journal.find("b") == [RawResponse("y", 0)]


def test_whether_a_teacher_has_responded(tmp_path):
    with Journal(tmp_path) as journal:
        assert not journal.has_response_of(TEACHER)
        add(journal, "a")
        assert journal.has_response_of(TEACHER)
        assert not journal.has_response_of(ProceduralChat(rows=1, seed=5))


def test_a_seed_beyond_the_integers_of_sqlite_is_no_reason_to_lose_an_answer(tmp_path):
    with Journal(tmp_path) as journal:
        big = replace(REQUEST, seed=2**64)
        asyncio.run(journal.add("a", big, TEACHER, RawResponse("x", 0)))
        assert journal.find("a") == [RawResponse("x", 0)]


def test_a_damaged_file_is_said(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(60):
            add(journal, f"k{number}", "x" * 2000)
        path = journal.path
    data = bytearray(path.read_bytes())
    data[8192:60000] = b"\xff" * (60000 - 8192)
    path.write_bytes(data)

    def read_all() -> None:
        with Journal(tmp_path) as journal:
            for number in range(60):
                journal.find(f"k{number}")

    with pytest.raises(JournalError, match=r"cannot be (read|opened)"):
        read_all()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot make the folder .*file: File exists; choose another"):
        Journal(tmp_path / "file")


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "journal-0.sqlite").write_text("hello " * 1000)
    with pytest.raises(JournalError, match=r"cannot be opened as a journal: file is not a database"):
        Journal(tmp_path)
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "journal-0.sqlite"
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(JournalError, match="version 0"):
        Journal(tmp_path / "other")
    assert sqlite3.connect(file).execute("SELECT count(*) FROM mine").fetchone() == (0,)


def test_a_journal_of_another_version_is_refused(tmp_path):
    with Journal(tmp_path) as journal:
        path = journal.path
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(JournalError, match=f"has version {SCHEMA_VERSION + 1} of the journal"):
        Journal(tmp_path)


def test_a_full_disk_stops_the_run_and_harms_nothing(tmp_path):
    """A child process may write no file of more than 200 kB, as on a disk that is full."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "JournalError: cannot write" in done.stderr
    assert "free some space" in done.stderr
    kept = int(done.stdout.splitlines()[-1])
    with Journal(tmp_path) as journal:
        assert len(journal) == kept > 3
        assert all(journal.find(f"k{n}") for n in range(kept))
        add(journal, "more")
    check = sqlite3.connect(tmp_path / "journal-0.sqlite").execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)


def fill(folder: Path) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    with Journal(folder) as journal:
        for number in range(1000):
            add(journal, f"k{number}", "x" * 10_000)
            print(number + 1, flush=True)


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
