"""Refusals before and while a model is loaded, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edit_trl.common.errors import InputError


@contextmanager
def one_line_errors(subject: str) -> Iterator[None]:
    """Say what transformers and the Hub client say in fifty lines in one: "`subject` cannot be loaded: ...".

    Raises:
        InputError: Something could not be loaded.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{subject} cannot be loaded: {brief(error)}") from error


def refuse_pickled_model(model: str) -> None:
    """Refuse a folder with a whole model of pickled weights.

    From the Hub, transformers loads safetensors only, as it is told to.

    Raises:
        InputError: The folder holds a model, and no safetensors.
    """
    folder = Path(model)
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        pickles = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no other weights either"
        raise InputError(
            f"{model} has no weights in safetensors ({pickles}); pickled weights are not loaded. Save it "
            "anew as safetensors where you trust it"
        )


def brief(error: Exception | None) -> str:
    """The first two lines of an error, in one."""
    return " ".join(str(error).split("\n")[:2])
