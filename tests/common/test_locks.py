"""One process at a time: the second is told who holds it, and a process that ends holds nothing."""

import os
import signal
import subprocess
import sys

import pytest

from edit_trl.common.errors import InputError
from edit_trl.common.locks import FOLDER_LOCK, hold_folder

HOLDER = """
import sys
from edit_trl.common.locks import hold_folder
held = hold_folder(sys.argv[1])
print("held", flush=True)
input()
"""


def test_the_second_is_told_which_process_holds_the_folder(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(InputError, match=f"{tmp_path}/run is in use by process {other.pid}; wait until it ends"):
        hold_folder(tmp_path / "run")
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with hold_folder(tmp_path / "run"):
        assert (tmp_path / "run" / FOLDER_LOCK[1]).read_text() == str(os.getpid())
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {FOLDER_LOCK[0]}


def test_it_is_held_until_it_is_released(tmp_path):
    with hold_folder(tmp_path), pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
        hold_folder(tmp_path)
    hold_folder(tmp_path).release()
