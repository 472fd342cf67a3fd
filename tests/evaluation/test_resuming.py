"""Ctrl-C in a run that is stored batch by batch."""

import os
import signal

import pytest
from run_folders import evaluate_item

from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import complete_items
from edit_trl.evaluation.runs.schema import RunRecord
from edit_trl.models.chat.dispatch import Interrupted


class Entry:
    def __init__(self, number: int):
        self.key = ("sums", str(number))


def folder_of(path) -> RunFolder:
    return RunFolder(path, RunRecord("evaluate", "m", "m", "0", settings={}, tasks={}, data_hash="0"))


def complete(folder, press=()):
    """Complete six items in three batches; Ctrl-C comes `press[n]` times while batch n is made."""
    made = []

    def make(batches):
        for batch in batches:
            for _ in range(dict(press).get(batch[0], 0)):
                os.kill(os.getpid(), signal.SIGINT)
            made.append(batch)
            yield [evaluate_item(index, "correct", "sums") for index in batch]

    batches = [[0, 1], [2, 3], [4, 5]]
    try:
        items = complete_items([Entry(n) for n in range(6)], batches, make, None, "answers", "answer", folder, False)
        return [item["id"] for item in items], made
    finally:
        complete.made = made


def test_the_batch_at_hand_is_finished_and_the_run_resumes(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"interrupted: 4 of 6 are in .*run\. Run the same command again to resume"):
        complete(folder_of(tmp_path / "run"), {2: 1}.items())
    assert complete.made == [[0, 1], [2, 3]]
    assert capsys.readouterr().err == "\nstopping after this batch; Ctrl-C again stops at once\n"
    assert signal.getsignal(signal.SIGINT) is handler
    ids, made = complete(folder_of(tmp_path / "run"))
    assert (ids, made) == ([str(n) for n in range(6)], [[4, 5]])


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete(folder_of(tmp_path / "run"), {2: 2}.items())
    assert complete.made == [[0, 1]]
    assert complete(folder_of(tmp_path / "run"))[1] == [[2, 3], [4, 5]]


def test_after_the_last_batch_there_is_nothing_to_stop(tmp_path):
    assert len(complete(folder_of(tmp_path / "run"), {4: 1}.items())[0]) == 6


def test_without_a_folder_it_interrupts_as_usual():
    with pytest.raises(KeyboardInterrupt):
        complete(None, {2: 1}.items())
