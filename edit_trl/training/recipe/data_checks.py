"""Checks of the data of runs: of their rows, and of what each run selects of them.

`edit-trl validate --dataset` uses them without a run, and imports neither TRL nor torch for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from edit_trl.common.errors import collect_problems, raise_problems
from edit_trl.data.row import chain_text, is_conversational, rows_of
from edit_trl.models.chat_templates import is_chat_model

if TYPE_CHECKING:
    from datasets import Dataset

    from edit_trl.data.dual_cots import DatasetSource
    from edit_trl.data.mixture import Mixture
    from edit_trl.training.recipe.outline import Recipe
    from edit_trl.training.recipe.resolving import RunArguments


def sources_of(runs: Sequence[RunArguments]) -> list[DatasetSource | Mixture]:
    """Return every dataset that the runs would load, each once."""
    sources: list[DatasetSource | Mixture] = []
    for run in runs:
        sources.append(run.data.train_source)
        if run.training.eval_strategy != "no":
            sources.append(run.data.eval_source)
        if run.data.suite_eval_steps is not None:
            sources.append(run.data.suite_source)
    return [source for number, source in enumerate(sources) if source not in sources[:number]]


def data_problems(
    sources: Sequence[DatasetSource | Mixture],
    runs: Sequence[RunArguments],
    say: Callable[[str], object],
    warn: Callable[[str], object],
) -> list[str]:
    """Load datasets, and return what is wrong with their rows and with what each run selects of them.

    Args:
        sources: The datasets.
        runs: The runs that train on them.
        say: Called with a line about each dataset, and about each view of it.
        warn: Called with a line about rows that are probably not meant as they are.
    """
    problems: list[str] = []
    for source in sources:
        with collect_problems(problems):
            rows = source.load()
            say(f"{source.name}{f' ({source.split})' if source.split else ''}: {len(rows)} dual CoTs")
            for warning in _row_warnings(rows, [str(run.model.model_name_or_path) for run in runs]):
                warn(f"warning: {source.name}: {warning}")
            for run in runs:
                data, stage = run.data, f"stage {run.stage}" if run.stage else ""
                if data.train_source != source:
                    continue
                selection: list[str] = []
                with collect_problems(selection):
                    selected = data.train_view(rows, run.training.seed)
                    if (data.view_names, data.mistake, data.rows) != (["pairs"], None, None):
                        view = f"view {', '.join(data.view_names)}"
                        say(f"  {f'{stage}, ' if stage else ''}{view}: {len(selected)} rows")
                problems += [f"{stage}: {problem}" if stage else problem for problem in selection]
    return problems


def _row_warnings(rows: Dataset, students: Sequence[str]) -> Iterator[str]:
    """Yield what is probably wrong with plain rows, of which prompt and chain are concatenated as they are."""
    if is_conversational(rows[0]):
        return
    joined = [
        (row["prompt"], chain_text(row["chosen"]))
        for row in rows_of(rows.select_columns(["prompt", "chosen"]))
        if row["prompt"][-1:].strip() and row["chosen"][:1].strip()
    ]
    if joined:
        prompt, chain = joined[0]
        yield (
            f"in {len(joined)} of {len(rows)} rows the chain follows the prompt without a space or a line break, as in "
            f"{f'{prompt[-12:]}{chain[:12]}'!r}; end the prompts with a newline"
        )
    for student in dict.fromkeys(students):
        if is_chat_model(student):
            yield (
                f"the rows are plain text, and {student} is a chat model: it would be trained without its chat "
                "template, and `evaluate` asks through it. Write conversational rows, as `edit-trl generate` does, or "
                "evaluate with `--conversational false`"
            )


def check_data(recipe: Recipe, runs: Sequence[RunArguments]) -> None:
    """Check the data of all these runs, before the first of them trains.

    Raises:
        InputError: All that is wrong with the rows, and with what each run selects of them.
    """

    def ignore(_line: str) -> None:
        pass

    warn = partial(print, file=sys.stderr) if runs[0].training.process_index == 0 else ignore
    problems = data_problems(sources_of(runs), runs, ignore, warn)
    raise_problems(problems, str(recipe.path or "command line"))
