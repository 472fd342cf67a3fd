import math

import pytest

from edit_trl.common.checks import at_least, not_negative, positive, seed_range, share


@pytest.mark.parametrize(
    ("check", "valid", "invalid", "rule"),
    [
        (lambda **values: at_least(2, **values), (2, 3.5), (1, 1.99), "must be at least 2"),
        (not_negative, (0, 0.0, 7), (-1, -1e-9), "cannot be negative"),
        (positive, (1, 1e-9), (0, -3), "must be positive"),
        (seed_range, (0, 2**53 - 1), (-1, 2**53), "must be from 0 to 9007199254740991"),
        (share, (1, 0.01), (0, 1.01, -0.5), "must be above 0 and at most 1"),
    ],
)
def test_a_range(check, valid, invalid, rule):
    for value in (*valid, None):
        assert check(size=value) == []
    for value in invalid:
        assert check(size=value) == [f"`size` {rule}, got {value}"]
    assert check(size=math.nan) == ["`size` must be a finite number, got nan"]
    assert check(size=math.inf) == ["`size` must be a finite number, got inf"]


def test_every_value_out_of_range_is_named():
    assert at_least(1, rows=0, limit=None, shots=-2) == [
        "`rows` must be at least 1, got 0",
        "`shots` must be at least 1, got -2",
    ]
