from edit_trl.common.errors import InputError


def test_one_problem_stands_alone():
    error = InputError("row 3: empty")
    assert str(error) == "row 3: empty"
    assert error.problems == ["row 3: empty"]


def test_several_problems_are_listed_under_a_heading():
    error = InputError(["first", "second"], heading="rows.jsonl:")
    assert str(error) == "rows.jsonl:\n  - first\n  - second"
    assert str(InputError(["first", "second"])).startswith("2 problems:")


def test_is_a_value_error():
    assert isinstance(InputError("x"), ValueError)
