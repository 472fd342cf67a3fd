"""The card of dual CoTs that are pushed as they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCardData

from edit_trl.hub.card_facts import pick_examples
from edit_trl.hub.card_templates import render_card

if TYPE_CHECKING:
    from datasets import Dataset


def dataset_card(splits: dict[str, Dataset], files: dict[str, str], name: str) -> str:
    """A card with the number of rows, by split and by what the columns tell, and three examples.

    Args:
        splits: Validated dual CoTs, by split.
        files: Each split's file in the repository.
        name: The name in the title.
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
    counts: Counter[str] = Counter()
    for rows in splits.values():
        for value in rows[column][:] if column in rows.column_names else ():
            counts.update(value if isinstance(value, list) else [value] if value is not None else [])
    return counts
