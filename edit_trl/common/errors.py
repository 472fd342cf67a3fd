"""The one exception for input that the user can correct."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """Bad input: a recipe, a dataset, an option. The message is complete by itself.

    The command line prints it without a traceback; every other exception is a bug and keeps its traceback.
    Several problems are reported at once, so that one run shows all of them.

    Args:
        problems: One message or several. Each says what was wrong, the value seen and the way out.
        heading: A line above several problems, such as the file that they are in.

    Attributes:
        problems: The messages, as a list.
        heading: The line above them, or None.
    """

    def __init__(self, problems: str | Iterable[str], heading: str | None = None):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.heading = heading
        lines = self.problems
        if len(lines) > 1:
            lines = [f"  - {problem}" for problem in lines]
            heading = heading or f"{len(lines)} problems:"
        super().__init__("\n".join(([heading] if heading else []) + lines))


@contextmanager
def collect_problems(problems: list[str]) -> Iterator[None]:
    """Append the problems of an InputError to a list, so that several steps report theirs at once."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def raise_problems(problems: Iterable[str], source: str | None = None, max_problems: int = 20) -> None:
    """Raise an InputError if there are problems.

    Args:
        problems: The messages.
        source: The file or dataset that they are in, for the line above several messages.
        max_problems: How many are listed; the others are counted.
    """
    problems = list(problems)
    if not problems:
        return
    listed = problems[:max_problems]
    if len(problems) > len(listed):
        listed.append(f"... and {len(problems) - len(listed)} more")
    heading = f"{source}: {len(problems)} problems" if source else f"{len(problems)} problems:"
    raise InputError(listed, heading if len(problems) > 1 else None)


def show(value: Any) -> str:
    """Format a value for a message: at most 60 characters, with its type unless it is a string."""
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"


def brief(error: Exception) -> str:
    """Return the first two lines of an error as one line."""
    return " ".join(str(error).split("\n")[:2])
