"""The one exception for input that a person can mend (L0)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class InputError(ValueError):
    """Bad input: a recipe, a dataset, an option. The message is complete by itself.

    The command line prints it without a traceback; everything else is a bug and keeps its
    traceback. Several problems are reported at once, so that one run shows all of them.

    Args:
        problems: One message or several. Each says what was wrong, the value seen and the way out.
        heading: A line put before several problems, such as the file they were found in.

    Attributes:
        problems: The messages, as a list.
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
    problems = list(problems)
    if not problems:
        return
    shown = problems[:max_problems]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    heading = f"{source}: {len(problems)} problems" if len(problems) > 1 else None
    raise InputError(shown, heading)


def show(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"
