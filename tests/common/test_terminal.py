import io

import pytest

from edit_trl.common.terminal import VisibleStream, visible, visible_line


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2028", "\ud800", "\uffff"], ids=ascii)
def test_what_cannot_be_seen_becomes_one_character_that_can(character):
    [shown] = visible(character)
    assert shown.isprintable()


def test_text_stays_as_it_is():
    assert visible("a\tb\nc\x7f é 中 👩\u200d🚀") == "a\tb\nc\u2421 é 中 👩\u200d🚀"


def test_a_line_is_one_line_of_the_same_length():
    assert visible_line("a\tb\r\nc\u202e") == "a b\u240d c\N{REPLACEMENT CHARACTER}"
    assert visible_line(3) == "3"


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_stream_shows_control_characters(is_terminal):
    stream = Stream(is_terminal)
    print("a\x1b]0;title\x07\tb\ud800", end="\n", file=VisibleStream(stream))
    assert stream.getvalue() == "a\u241b]0;title\u2407\tb\N{REPLACEMENT CHARACTER}\n"


def test_a_progress_bar_is_passed_on_to_a_terminal():
    bar = "\r50%\x1b[A\x1b[1;31mred\x1b[0m"
    streams = Stream(True), Stream(False)
    for stream in streams:
        VisibleStream(stream).writelines([bar])
    assert streams[0].getvalue() == bar
    assert streams[1].getvalue() == bar.replace("\x1b", "\u241b")
