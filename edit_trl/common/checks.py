"""Range checks of options: the errors of values that are out of range, in the same words everywhere.

Each takes values by name, skips those that are None and returns a message per value that is out of range.
"""

from collections.abc import Callable, Mapping


def at_least(least: float, **values: float | None) -> list[str]:
    """Errors of values below `least`."""
    return _errors(values, lambda value: value >= least, f"must be at least {least}")


def not_negative(**values: float | None) -> list[str]:
    """Errors of values below 0."""
    return _errors(values, lambda value: value >= 0, "cannot be negative")


def positive(**values: float | None) -> list[str]:
    """Errors of values that are 0 or less."""
    return _errors(values, lambda value: value > 0, "must be positive")


def share(**values: float | None) -> list[str]:
    """Errors of values outside (0, 1]."""
    return _errors(values, lambda value: 0 < value <= 1, "must be above 0 and at most 1")


def _errors(values: Mapping[str, float | None], is_valid: Callable[[float], bool], rule: str) -> list[str]:
    return [
        f"`{name}` {rule}, got {value}" for name, value in values.items() if value is not None and not is_valid(value)
    ]
