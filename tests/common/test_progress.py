import io
import logging
import os
import sys
import time

import pytest

from edit_trl.common.metric_names import MEANINGS, explained
from edit_trl.common.progress import Progress, clock, folded, within_batch


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def started_before(progress: Progress, seconds: float) -> None:
    """As if the task had begun that long ago."""
    progress._started = time.monotonic() - seconds


def test_a_task_prints_a_line_where_it_is_asked_for_one_and_at_its_end(capsys):
    with Progress() as progress:
        progress.begin("step", 200, paced=False)
        progress.update(10, ["loss 0.412"])
        assert lines(capsys) == []
        started_before(progress, 20)
        progress.update(20, ["loss 0.412", "", "fork 0.63"], rate="1,240 tokens/s", line=True)
        # 20 steps in 20 seconds, and 180 to do.
        assert lines(capsys) == ["step 20/200  loss 0.412  fork 0.63  1,240 tokens/s  3:00 left"]
        progress.update(200)
        started_before(progress, 3_671)
    assert lines(capsys) == ["step 200/200  loss 0.412  fork 0.63  1,240 tokens/s  in 1:01:11"]


def test_what_was_done_before_does_not_count_for_the_speed(capsys):
    with Progress() as progress:
        progress.begin("step", 400, 100)
        started_before(progress, 40)
        progress.update(120, line=True)
        # 20 new ones in 40 seconds; 280 are left.
        assert lines(capsys) == ["step 120/400  2.0 s each  9:20 left"]


def test_lines_come_from_time_to_time_also_within_the_first_batch(capsys):
    with Progress() as progress:
        progress.begin("answering", 20, unit="problems", batch=8)
        within_batch(0, 16, 64, 4 / 100)
        assert lines(capsys) == []
        progress._last_line -= 60
        started_before(progress, 10)
        within_batch(4, 16, 1_560, 0.5)
        # A quarter of the responses to 8 problems has ended; half of the batch is done at least, 4 in 10 seconds.
        assert lines(capsys) == ["answering 2/20 problems  1,560 tokens in this batch  2.5 s each  0:40 left"]
        progress.update(8, ["3 tokens/s"])
        progress.update(20)
    assert lines(capsys)[-1].startswith("answering 20/20 problems  3 tokens/s  ")


def test_nothing_is_within_a_batch_where_nothing_is_shown(capsys):
    within_batch(1, 2, 3, 0.5)
    with Progress(hidden=True) as progress:
        progress.begin("answering", 2)
        within_batch(1, 2, 3, 0.5)
        progress.update(2)
        progress.say(["a line"])
    assert lines(capsys) == []


def test_an_interrupted_task_says_how_far_it_came(capsys):
    def interrupted() -> None:
        with Progress() as progress:
            progress.begin("annotate", 5)
            progress.update(3, ["2 correct, 1 wrong"])
            started_before(progress, 1.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines(capsys) == ["annotate 3/5  2 correct, 1 wrong  2.5/s  in 0:01"]


def test_control_characters_are_shown(capsys):
    with Progress() as progress:
        progress.begin("\x1b[2J", 1)
        progress.update(1, ["a\nb\x07", "[bold]red[/bold]"])
        progress.say(["\x1b]0;title"])
    ended, said = lines(capsys)
    assert ended.startswith("\u241b[2J 1/1  a b\u2407  [bold]red[/bold]  ")
    assert said == "\u241b]0;title"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_at_a_terminal_lines_update_and_what_is_logged_stands_above(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    # `Dataset.map` with several processes, in a test before, replaces `os.environ`; rich keeps the one of its import.
    monkeypatch.setattr("rich.console.Console._environ", os.environ)
    handler = logging.StreamHandler()
    logger = logging.getLogger("test_progress")
    logger.addHandler(handler)
    try:
        with Progress() as progress:
            progress.begin("[red]step", 10)
            progress.update(3, ["a [bold]part[/bold]", "\x1b]0;title", "a" * 50])
            assert handler.stream is sys.stderr is not terminal
            logger.error("a warning")
            progress.say(["evaluation", "b" * 30, "c" * 7])
        assert handler.stream is sys.stderr is terminal
        progress.begin("again", 1)
        progress.close()
    finally:
        logger.removeHandler(handler)
    written = terminal.getvalue()
    assert "a warning\n" in written
    assert f"evaluation\n  {'b' * 30}\n  {'c' * 7}\n" in written
    last = written[written.rindex("[red]step 3/10") :]
    assert "a [bold]part[/bold]" in last  # no markup is read
    assert "\x1b]0" not in written
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 2  # the cursor is back


def test_plain_lines_at_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress(plain=True) as progress:
        progress.begin("step", 1)
        progress.update(1)
    assert sys.stderr.getvalue().startswith("step 1/1  ")


def test_a_line_is_folded_between_its_parts():
    assert folded(["aaaa", "bbb", "cc"], 9) == "aaaa  bbb\n  cc"
    assert folded(["aaaa", "bbb", "cc"], 8) == "aaaa\n  bbb\n  cc"
    assert folded(["aaaa"], 2) == "aaaa"
    assert folded([], 9) == ""


def test_times():
    assert [clock(seconds) for seconds in (0, 59.4, 60, 3_599.6, 36_061)] == [
        "0:00",
        "0:59",
        "1:00",
        "1:00:00",
        "10:01:01",
    ]


def test_names_are_explained_that_were_logged():
    assert [label for label, _ in explained(["eval_fork/confidence", "loss", "step", "eval_suite/margin"])] == [
        *("loss", "fork", "margin")
    ]
    assert MEANINGS["suite/key_margin"].startswith("nats per token")
