"""Pages that a notebook shows below a cell: `edit_trl.show_pairs` and `edit_trl.show_report`."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.pair_text import overview
from edit_trl.cli.report import counted, title_of
from edit_trl.common.errors import InputError, show
from edit_trl.common.terminal import visible
from edit_trl.data.pair_statistics import locate_pairs
from edit_trl.data.row import rows_of
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.evaluation.report import pairs_page, report_page
from edit_trl.evaluation.report.folders import read_folders

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from edit_trl.key_steps import KeyStepMethod


class NotebookPage:
    """An HTML page that Jupyter, Colab and VS Code show where it is the value of a cell.

    The page is in a sandboxed frame of its own: neither can its styles and scripts change the notebook, nor the
    notebook's change it. Where no HTML is shown, such as in a terminal, it is `text`.

    Attributes:
        html: The whole page, as `edit-trl inspect --html` or `edit-trl report` writes it.
        text: What the page is about, in a few lines of plain text.
    """

    def __init__(self, html: str, text: str):
        self.html = html
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Return the frame with the page, for the notebook."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" title="{html.escape(self.text)}" '
            'width="100%" height="720" style="border: 0"></iframe>'
        )


def show_pairs(
    dataset: Dataset,
    *,
    method: KeyStepMethod = "words",
    tokenizer: PreTrainedTokenizerBase | None = None,
    limit: int | None = 200,
    title: str = "dual CoTs",
) -> NotebookPage:
    """Show dual CoTs with their key steps in a notebook: statistics of all pairs, then each pair, with filters.

    Args:
        dataset: Rows with `prompt`, `chosen` and `rejected`, in plain text or messages.
        method: The method that finds key steps; `spans` for those given in the rows.
        tokenizer: Aligns and counts its tokens, instead of words; some methods need it.
        limit: Show only the first pairs, since a notebook stores what it shows; None for all. Statistics are over
            all pairs.
        title: Heading of the page.

    Returns:
        The page, which a notebook shows if it is the last value of a cell.

    Raises:
        InputError: No `datasets.Dataset`, rows that are not dual CoTs, rows that lack what the method needs, or a
            limit below 1.

    Example:
        ```python
        from edit_trl import ProceduralTeacher, generate_dual_cots, show_pairs

        show_pairs(generate_dual_cots(ProceduralTeacher(), 100))
        ```
    """
    from datasets import Dataset

    if isinstance(dataset, Mapping):
        splits = ", ".join(map(repr, dataset))
        raise InputError(f"show_pairs takes one split, got a dictionary of {splits}: `show_pairs(dataset[SPLIT])`")
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"show_pairs takes a datasets.Dataset, got {show(dataset)}; `load_dual_cots` loads a file, a folder or a "
            "Hub dataset, and `Dataset.from_list` makes one of rows"
        )
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, got {limit}")
    validate_dual_cots(dataset)
    pairs = locate_pairs(rows_of(dataset), method, tokenizer)
    unit = "tokens" if tokenizer else "words"
    page = pairs_page(pairs, title=title, method=method, unit=unit, limit=limit)
    return NotebookPage(page.decode(), visible("\n".join(overview(title, pairs, unit, method))))


def show_report(*folders: str | os.PathLike[str], title: str | None = None) -> NotebookPage:
    """Show the report of `edit-trl report` in a notebook: scores, learning curves, flips and every item.

    Args:
        folders: Runs of `evaluate`, `suite` and `train`, in any mix; or folders of such folders.
        title: Heading of the page; the names of the runs by default.

    Returns:
        The page, which a notebook shows if it is the last value of a cell.

    Raises:
        InputError: No folder is given, a folder holds no run, or a run cannot be read.

    Example:
        ```python
        from edit_trl import show_report

        show_report("outputs/evaluate/base", "outputs/evaluate/key_steps", "outputs/my_training")
        ```
    """
    runs, training = read_folders(list(map(Path, folders)))
    title = title or title_of(runs, training)
    page = report_page(runs, training, title=title)
    return NotebookPage(page.decode(), visible(f"{title}: {counted(runs, training)}"))
