"""The card of dual CoTs that are pushed as they are (L2)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCardData

from edit_trl.common.markdown import code, table, text
from edit_trl.hub.card_facts import pick_examples
from edit_trl.hub.card_sections import EDIT_CITATION, examples_section

if TYPE_CHECKING:
    from datasets import Dataset


def dataset_card(splits: dict[str, Dataset], files: dict[str, str], name: str) -> str:
    """Counts, and three pairs with their key steps.

    Args:
        splits: Validated dual CoTs, by split.
        files: Each split's file in the repository.
        name: The name in the title.
    """
    data_files = [{"split": split, "path": files[split]} for split in splits]
    data = DatasetCardData(
        task_categories=["text-generation"],
        tags=["dual-cot", "edit_trl", "trl"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    parts = [
        f"# {text(name)}",
        "Dual chains of thought for [EDIT](https://arxiv.org/abs/2405.19737): a correct chain (`chosen`) and "
        "a similar wrong one (`rejected`) of the same question (`prompt`), in TRL's preference columns.",
        table(["split", "rows"], ([code(split), str(len(rows))] for split, rows in splits.items())),
        *(_counts(splits, column) for column in ("task", "source", "mistake")),
        "```bash\nedit-trl train --config RECIPE.yaml --dataset NAMESPACE/NAME\n```",
        "## Examples\n\nThe key steps in bold.",
        examples_section(pick_examples(next(iter(splits.values())), None, "words")),
        f"## Citation\n\n```bibtex\n{EDIT_CITATION}\n```",
    ]
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def _counts(splits: dict[str, Dataset], column: str) -> str:
    counts: Counter[str] = Counter()
    for rows in splits.values():
        for value in rows[column][:] if column in rows.column_names else ():
            counts.update(value if isinstance(value, list) else [value] if value is not None else [])
    return (
        table([column, "rows"], ([code(name), str(n)] for name, n in counts.most_common())) if counts else ""
    )
