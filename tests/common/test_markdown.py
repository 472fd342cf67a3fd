from edit_trl.common.markdown import code, one_line, text


def test_markup_is_shown_as_it_is():
    assert text("a_b <i>|*") == "a&#95;b &#60;i&#62;&#124;&#42;"
    assert code("`|`") == "`'¦'`"


def test_nobody_is_notified():
    assert text("@all") == "@\N{ZERO WIDTH SPACE}all"


def test_one_line_without_control_characters():
    assert one_line("a\r\n---\n\x1b[31mb\u202e") == "a --- [31mb"
