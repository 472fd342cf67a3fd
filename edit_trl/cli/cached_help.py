"""A help text that takes seconds to make, kept on the disk (L4).

The options of `edit-trl train` are those of TRL's and transformers' classes, whose import takes most of the
time that a person would wait for `--help`.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path


def cached_help(make: Callable[[], str], packages: Sequence[str], sources: Sequence[Path]) -> str:
    """The text as it was made before, if nothing that it is made from has changed.

    Args:
        make: Makes it.
        packages: Installed packages whose options are in it.
        sources: Files of ours whose options are in it.
    """
    key = sha256(repr([(name, version(name)) for name in packages]).encode())
    key.update(repr(shutil.get_terminal_size().columns).encode())
    for source in sources:
        key.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edit_trl"
    file = cache / f"help-{key.hexdigest()[:16]}.txt"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    text = make()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError:  # nowhere to keep it: it is made anew each time
        pass
    return text
