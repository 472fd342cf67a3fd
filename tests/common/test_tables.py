from edit_trl.common.tables import aligned


def test_texts_to_the_left_numbers_to_the_right():
    assert aligned([[["model", "mean"]], [["a", "1.5"], ["longer", "10"]]]) == (
        "model   mean\n------------\na        1.5\nlonger    10"
    )


def test_several_columns_of_text_and_no_space_at_the_end():
    assert aligned([[["a", "metric", ""], ["bb", "x", "3"]]], left=2) == "a   metric\nbb  x       3"


def test_a_cell_stays_in_its_line():
    assert aligned([[["a\nb", "\x1b"]]]) == "a b  \u241b"
