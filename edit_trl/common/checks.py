"""Range checks of options.

Each check takes values by name, skips those that are None and returns one message for each value out of range.
"""

import math
from collections.abc import Callable, Mapping


def at_least(least: float, **values: float | None) -> list[str]:
    """Return an error for each value below `least`."""
    return _errors(values, lambda value: value >= least, f"must be at least {least}")


def not_negative(**values: float | None) -> list[str]:
    """Return an error for each value below 0."""
    return _errors(values, lambda value: value >= 0, "cannot be negative")


def positive(**values: float | None) -> list[str]:
    """Return an error for each value that is 0 or less."""
    return _errors(values, lambda value: value > 0, "must be positive")


def seed_range(**values: float | None) -> list[str]:
    """Return an error for each value that is no seed; readers of JSON keep whole numbers exact below 2**53."""
    return _errors(values, lambda value: 0 <= value < 2**53, f"must be from 0 to {2**53 - 1}")


def difficulty_range(**values: int | None) -> list[str]:
    """Return an error for each value that is no difficulty of procedural problems."""
    return _errors(values, lambda value: 1 <= value <= 5, "must be from 1 to 5")


def share(**values: float | None) -> list[str]:
    """Return an error for each value outside (0, 1]."""
    return _errors(values, lambda value: 0 < value <= 1, "must be above 0 and at most 1")


def _errors(values: Mapping[str, float | None], is_valid: Callable[[float], bool], rule: str) -> list[str]:
    return [
        f"`{name}` {rule if math.isfinite(value) else 'must be a finite number'}, got {value}"
        for name, value in values.items()
        if value is not None and not (math.isfinite(value) and is_valid(value))
    ]
