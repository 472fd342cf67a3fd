"""Numbers and names as people read them."""

import math

from edit_trl.evaluation.compare.score_text import amount, count_text, interval_text, number, p_text, value_of
from edit_trl.evaluation.statistics import Difference


def test_numbers():
    assert number(-0.0001, "accuracy") == "0.0"
    assert number(0.0, "accuracy") == "0.0"
    assert number(-0.25, "accuracy") == "-25.0"
    assert number(0.25, "margin", sign=False) == "0.250"
    assert number(float("inf"), "accuracy", sign=False) == "-"
    assert [count_text(count) for count in (1234.0, 0.5, 0)] == ["1,234", "0.5", "0"]
    assert [p_text(p) for p in (0.0004, 0.0123, 1.0)] == ["<0.001", "0.012", "1.000"]
    assert (value_of(0.5, "accuracy"), value_of(0.5, "key_margin")) == ("50.0%", "0.500")
    assert (amount(0.5, "accuracy"), amount(-0.5, "margin")) == ("+50.0 points", "-0.500 nats")


def test_intervals():
    assert interval_text(Difference(0.1, -0.05, 0.25, 0.07, 9), "accuracy") == "-5.0 to +25.0"
    assert interval_text(Difference(0.1, -1.0, 1.0, math.inf, 0), "accuracy") == "unknown"
