"""The one exception for input that the user can correct."""

from collections.abc import Iterable
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


def raise_problems(problems: Iterable[str], source: str, max_problems: int = 20) -> None:
    """Raise an InputError if there are problems in `source`, a file or dataset; list at most `max_problems` of them."""
    problems = list(problems)
    if not problems:
        return
    listed = problems[:max_problems]
    if len(problems) > len(listed):
        listed.append(f"... and {len(problems) - len(listed)} more")
    heading = f"{source}: {len(problems)} problems" if len(problems) > 1 else None
    raise InputError(listed, heading)


def show(value: Any) -> str:
    """Format a value for a message: at most 60 characters, with its type unless it is a string."""
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"
