import pytest

from edit_trl.common.terminal import visible, visible_line


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2028", "\ud800", "\uffff"], ids=ascii)
def test_what_cannot_be_seen_becomes_one_character_that_can(character):
    [shown] = visible(character)
    assert shown.isprintable()


def test_text_stays_as_it_is():
    assert visible("a\tb\nc\x7f é 中 👩\u200d🚀") == "a\tb\nc\u2421 é 中 👩\u200d🚀"


def test_a_line_is_one_line_of_the_same_length():
    assert visible_line("a\tb\r\nc\u202e") == "a b\u240d c\N{REPLACEMENT CHARACTER}"
    assert visible_line(3) == "3"
