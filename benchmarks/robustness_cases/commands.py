"""A good command line of each command; cases add words to it or break its files."""

import shlex

WITH_RECIPE = ("train", "validate", "generate", "evaluate", "suite", "judge")
"""The commands that take `--config`."""

COMMANDS = {
    "train": ("train", "--config", "train.yaml"),
    "validate": ("validate", "--config", "train.yaml"),
    "generate": ("generate", "--config", "generate.yaml"),
    "inspect": ("inspect", "rows.jsonl"),
    "evaluate": ("evaluate", "--config", "evaluate.yaml"),
    "suite": ("suite", "--config", "suite.yaml"),
    "compare": ("compare", "run_a", "run_b"),
    "report": ("report", "run_a", "run_b", "trained", "--output", "r.html"),
    "history": ("history", "--file", "history.sqlite"),
    "judge": ("judge", "--config", "judge.yaml"),
    "merge": ("merge", "adapter", "--output", "merged"),
    "push": ("push", "trained", "--repo_id", "someone/student", "--dry_run"),
    "chat": ("chat", "student", "--max_new_tokens", "4"),
    "quickstart": ("quickstart", "--student", "student", "--output_dir", "out"),
    "recipes": ("recipes",),
}


def words(line: str) -> tuple[str, ...]:
    """Split a command line as a shell does, and put it after the good command line that its first word names."""
    command, *more = shlex.split(line)
    return (*COMMANDS[command], *more)
