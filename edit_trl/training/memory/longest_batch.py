"""The longest batch of a run, real or made up, for the estimate of its memory."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig

from edit_trl.common.errors import InputError
from edit_trl.models.pairs.collation import BatchLayoutName
from edit_trl.training.objective import Objective

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from edit_trl.training.recipe.resolving import RunArguments

LENGTH_WHERE_NOTHING_IS_SAID = 1024


def student_config(run: "RunArguments") -> "PretrainedConfig":
    """The configuration of the student, or of the base of an adapter that goes on training.

    Raises:
        InputError: There is none here or on the Hub.
    """
    import json

    from transformers import AutoConfig

    student = run.model.model_name_or_path
    adapter = Path(student) / "adapter_config.json"
    if adapter.is_file():
        student = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    try:
        return AutoConfig.from_pretrained(
            student,
            revision=run.model.model_revision,
            trust_remote_code=run.training.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError(
            f"`model_name_or_path: {student}`: its configuration cannot be read: {reason}"
        ) from error


def mixed_precision(run: "RunArguments") -> "torch.dtype | None":
    """The dtype of the computation where it is not the weights'; on a GPU bf16, unless it is said."""
    import torch

    if run.training.fp16:
        return torch.float16
    if run.training.bf16 or (not run.training.use_cpu and run.values.get("bf16") is None):
        return torch.bfloat16
    return None


def longest_batch(run: "RunArguments") -> tuple[list[dict[str, Any]], str]:
    """The longest batch of the run's own rows, where they and the tokenizer are here, and what it is.

    Raises:
        InputError: Rows that cannot be trained on.
    """

    training = run.training
    pairs = training.per_device_train_batch_size
    rows = _local_rows(run)
    if rows is None:
        length = training.max_length or LENGTH_WHERE_NOTHING_IS_SAID
        if training.max_tokens_per_batch is not None:
            pairs = max(training.max_tokens_per_batch // (2 * length), 1)
        return made_up_examples(pairs, length), f"as if every chain had {length} tokens (no rows here)"
    from edit_trl.models.pairs.collation import EXAMPLE_COLUMNS
    from edit_trl.training.sampling import check_budget, pair_lengths

    lengths, budget = rows["unique_length"][:], training.max_tokens_per_batch
    layout = "padded" if training.layout == "padded" else "tree"
    if layout == "padded":
        lengths = [2 * length for length in rows["length"]]
    elif budget is None and not Objective(training).needs_rejected:
        lengths = [
            len(prompt) + len(chosen)
            for prompt, chosen in zip(rows["prompt_ids"], rows["chosen_ids"], strict=True)
        ]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    if budget is not None:
        check_budget(pair_lengths(rows), budget, layout)
        if layout == "padded":
            pairs = budget // lengths[order[0]]
        else:
            pairs = sum(total <= budget for total in accumulate(lengths[row] for row in order))
    columns = [name for name in EXAMPLE_COLUMNS if name in rows.column_names]
    chosen = rows.select(order[:pairs]).select_columns(columns)
    return chosen.to_list(), f"the longest of {run.data.dataset_name}"


def _local_rows(run: "RunArguments"):
    """The prepared rows, None where dataset or tokenizer would have to be fetched."""
    from transformers import AutoTokenizer

    from edit_trl.data.dual_cots import load_dual_cots
    from edit_trl.data.preparation import RowPreparation, prepare_dual_cots
    from edit_trl.data.views import select_rows

    data, training = run.data, run.training
    if not Path(data.dataset_name).exists():
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            run.model.model_name_or_path,
            local_files_only=True,
            trust_remote_code=training.trust_remote_code,
        )
    except (OSError, ValueError):
        return None
    rows = load_dual_cots(
        data.dataset_name,
        name=data.dataset_config,
        split=data.dataset_train_split,
        revision=data.dataset_revision,
        column_mapping=data.column_mapping,
    )
    rows = select_rows(
        rows, data.view, mistake=data.mistake, rows=data.rows, seed=training.seed, source=data.dataset_name
    )
    if training.eos_token is not None:
        tokenizer.eos_token = training.eos_token
    # As the trainer does it, so that what is cached here is found there.
    preparation = RowPreparation(
        tokenizer,
        training.key_step_method,
        training.max_length,
        training.truncate_long,
        training.max_key_fraction,
        training.key_step_seed,
    )
    return prepare_dual_cots(rows, preparation, num_proc=training.dataset_num_proc)[0]


def batch_tokens(
    examples: Sequence[dict[str, Any]], layout: BatchLayoutName, with_rejected: bool = True
) -> int:
    """How many tokens a batch runs, padding counted; in a tree what chains of a pair share counts once."""
    if layout == "padded":
        lengths = [
            len(ex["prompt_ids"]) + len(ex[f"{side}_ids"])
            for ex in examples
            for side in ("chosen", "rejected")
        ]
        # The correct chains run alone are as wide as the batch.
        return (len(lengths) if with_rejected else len(examples)) * max(lengths)
    return sum(
        len(ex["prompt_ids"])
        + len(ex["chosen_ids"])
        + (len(ex["rejected_ids"]) - ex["fork"] if with_rejected else 0)
        for ex in examples
    )


def made_up_examples(pairs: int, length: int) -> list[dict[str, Any]]:
    """A batch of pairs of `length` tokens a chain: a quarter is the prompt, half of the rest is shared.

    The wrong chain is one token shorter, so that a padded batch has padding, as real ones do: without any,
    SDPA goes another way, which on a CPU takes more.
    """
    prompt = max(length // 4, 1)
    completion = max(length - prompt, 2)
    shared = (completion - 1) // 2
    return [made_up_example(number, prompt, completion, completion - 1, shared) for number in range(pairs)]


def made_up_example(number: int, prompt: int, chosen: int, rejected: int, shared: int) -> dict[str, Any]:
    """A pair of these lengths, of which the completions part after `shared` tokens."""
    example: dict[str, Any] = {"prompt_ids": [number + 2] * prompt, "fork": shared, "row": number}
    for side, size in (("chosen", chosen), ("rejected", rejected)):
        example[f"{side}_ids"] = [0] * shared + [1 if side == "chosen" else 2] * (size - shared)
        example[f"{side}_key_mask"] = example[f"{side}_fork_mask"] = [True] * size
    return example
