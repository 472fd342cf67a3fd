"""Whole files and folders: the new contents or the old ones, and never a draft left."""

import os
import subprocess
import sys

import pytest

from edit_trl.common.files import git_revision, replacing, write_whole


def test_a_file_is_replaced_and_its_folder_is_made(tmp_path):
    file = tmp_path / "deep" / "file.txt"
    write_whole(file, "é\n")
    write_whole(file, b"new\n")
    assert file.read_bytes() == b"new\n"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path):
    for name in ("first", "second"):
        with replacing(tmp_path / "rows") as draft:
            draft.mkdir()
            (draft / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["rows", "rows/second"]


def test_what_was_there_stays_where_writing_fails(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(OSError, match="full"):
        fail_to_write(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_stays_where_writing_fails(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "old").touch()
    with pytest.raises(OSError, match="full"):
        fail_to_write(tmp_path / "rows")
    assert [path.name for path in tmp_path.rglob("*")] == ["rows", "old"]


def fail_to_write(path):
    with replacing(path) as draft:
        draft.write_text("ne")
        raise OSError("full")


def test_an_error_names_the_file_and_not_its_draft(tmp_path):
    with pytest.raises(OSError, match="File name too long") as caught:
        write_whole(tmp_path / ("x" * 300), "new")
    assert caught.value.filename == str(tmp_path / ("x" * 300))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "folder", "new")
    assert caught.value.filename == str(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "new")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_standard_output_that_goes_to_a_file_is_appended_to(tmp_path):
    """As `--json /dev/stdout > FILE` does it, after other lines."""
    code = "from edit_trl.common.files import write_whole; print('a', flush=True); write_whole('/dev/stdout', 'b')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "a\nb"


def test_the_revision_runs_no_program_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    program.chmod(0o755)

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *words], check=True, capture_output=True)

    (tmp_path / "file").write_text("first")
    (tmp_path / ".gitattributes").write_text("file filter=own\n")
    git("init")
    git("add", "file", ".gitattributes")
    git("commit", "-m", "first")
    clean = git_revision()
    for key in ("core.fsmonitor", "filter.own.clean", "filter.own.process"):
        git("config", key, str(program))
    git("config", "filter.own.required", "true")
    hooks = tmp_path / ".git" / "hooks"
    (hooks / "post-index-change").write_bytes(program.read_bytes())
    (hooks / "post-index-change").chmod(0o755)
    (tmp_path / "file").write_text("other")
    assert len(clean) == 12
    assert git_revision() == f"{clean}+"
    assert not (tmp_path / "ran").exists()


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match=r"/a'$"):
        write_whole(tmp_path / "a" / "file", "new")
