"""The card of a dataset of dual CoTs that is pushed from a file or folder."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCardData

from edit_trl.hub.card_facts import pick_examples
from edit_trl.hub.card_templates import render_card

if TYPE_CHECKING:
    from datasets import Dataset


def dataset_card(splits: dict[str, Dataset], files: dict[str, str], name: str) -> str:
    """Return a card titled `name` with the counts of rows and three examples.

    `splits` has validated dual CoTs by split, `files` the file of each split in the repository.
    """
    data_files = [{"split": split, "path": files[split]} for split in splits]
    metadata = DatasetCardData(
        task_categories=["text-generation"],
        tags=["dual-cot", "edit_trl", "trl"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    counts = {column: _count(splits, column).most_common() for column in ("task", "source", "mistake")}
    values = {
        "title": name,
        "splits": splits,
        "counts": {column: values for column, values in counts.items() if values},
        "examples": pick_examples(next(iter(splits.values())), None, "words"),
        "generated": None,
    }
    return render_card("dataset_card.md", metadata, values)


def _count(splits: dict[str, Dataset], column: str) -> Counter[str]:
    cells = [cell for rows in splits.values() if column in rows.column_names for cell in rows[column][:]]
    names = (cell if isinstance(cell, list) else [cell] for cell in cells if cell is not None)
    return Counter(chain.from_iterable(names))
