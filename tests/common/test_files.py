"""Whole files and folders: the new contents or the old ones, and never a draft left."""

import pytest

from edit_trl.common.files import replacing, write_whole


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
