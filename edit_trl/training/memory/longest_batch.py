"""The longest batch of a run, of its own rows or made up, for the estimate of its memory."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from edit_trl.data.preparation import RowPreparation, prepare_dual_cots
from edit_trl.models.pairs.collation import EXAMPLE_COLUMNS, BatchLayoutName
from edit_trl.training.objective import Objective
from edit_trl.training.recipe.resolving import RunArguments
from edit_trl.training.sampling import check_budget, pair_lengths

DEFAULT_LENGTH = 1024
"""Tokens per chain for runs without local rows and without `max_length`."""


def longest_batch(run: RunArguments) -> tuple[list[dict[str, Any]], str]:
    """Return the longest batch that a run will train on.

    Args:
        run: The run's arguments, of the trainer `dual_cot`.

    Returns:
        The batch's examples, of the run's own rows if these and the tokenizer are on this machine, and a
        phrase that says where they are from.

    Raises:
        InputError: The rows cannot be trained on.
    """
    training = run.training
    pairs, budget = training.per_device_train_batch_size, training.max_tokens_per_batch
    rows = _local_rows(run)
    if rows is None:
        length = training.max_length or DEFAULT_LENGTH
        if budget is not None:
            pairs = max(budget // (2 * length), 1)
        return made_up_examples(pairs, length), f"as if every chain had {length} tokens (no rows here)"
    layout: BatchLayoutName = "padded" if training.layout == "padded" else "tree"
    lengths = _tokens_per_pair(rows, layout, budget is not None or Objective(training).needs_rejected)
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    if budget is not None:
        check_budget(pair_lengths(rows), budget, layout)
        if layout == "padded":
            pairs = budget // lengths[order[0]]
        else:
            pairs = sum(total <= budget for total in accumulate(lengths[row] for row in order))
    columns = [name for name in EXAMPLE_COLUMNS if name in rows.column_names]
    examples = rows.select(order[:pairs]).select_columns(columns)
    return examples.to_list(), f"the longest of {run.data.train_source.name}"


def _tokens_per_pair(rows: Dataset, layout: BatchLayoutName, with_rejected: bool) -> list[int]:
    if layout == "padded":
        return [2 * length for length in rows["length"]]
    if with_rejected:
        return rows["unique_length"][:]
    chains = zip(rows["prompt_ids"], rows["chosen_ids"], strict=True)
    return [len(prompt) + len(chosen) for prompt, chosen in chains]


def _local_rows(run: RunArguments) -> Dataset | None:
    """Return the prepared rows; None if the dataset or the tokenizer would have to be downloaded."""
    training = run.training
    if not run.data.train_source.is_local:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            run.model.model_name_or_path, local_files_only=True, trust_remote_code=training.trust_remote_code
        )
    except (OSError, ValueError):
        return None
    # With the trainer's options, so that the trainer finds these rows in the cache.
    preparation = RowPreparation.of_options(tokenizer, training)
    rows = run.data.load_train_rows(training.seed)
    return prepare_dual_cots(rows, preparation, num_proc=training.dataset_num_proc)[0]


def batch_tokens(examples: Sequence[dict[str, Any]], layout: BatchLayoutName, with_rejected: bool = True) -> int:
    """Return the number of tokens that a batch runs.

    Args:
        examples: The batch's examples.
        layout: `padded` counts the padding; `tree` counts the tokens that the chains of a pair share once.
        with_rejected: Whether the wrong chains are run too.
    """
    if layout == "padded":
        lengths = [len(ex["prompt_ids"]) + len(ex[f"{side}_ids"]) for ex in examples for side in ("chosen", "rejected")]
        # Correct chains that run alone keep the width of the batch.
        return (len(lengths) if with_rejected else len(examples)) * max(lengths)
    return sum(
        len(ex["prompt_ids"]) + len(ex["chosen_ids"]) + (len(ex["rejected_ids"]) - ex["fork"] if with_rejected else 0)
        for ex in examples
    )


def made_up_examples(pairs: int, length: int) -> list[dict[str, Any]]:
    """Return a batch of pairs with `length` tokens per chain: a quarter is the prompt, half of the rest is shared.

    The wrong chain is one token shorter, so that a padded batch has padding, as real ones do: without
    padding SDPA takes another path, which on a CPU needs more memory.
    """
    prompt = max(length // 4, 1)
    completion = max(length - prompt, 2)
    shared = (completion - 1) // 2
    pair: dict[str, Any] = {"fork": shared}
    for side, token, size in (("chosen", 1, completion), ("rejected", 2, completion - 1)):
        pair[f"{side}_ids"] = [0] * shared + [token] * (size - shared)
        pair[f"{side}_key_mask"] = pair[f"{side}_fork_mask"] = [True] * size
    return [pair | {"prompt_ids": [number + 2] * prompt, "row": number} for number in range(pairs)]
