"""`edit-trl train --dry_run`: what each stage will take of memory, and which cards hold it (L4)."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from edit_trl.training.memory.estimate import MemoryEstimate
    from edit_trl.training.recipe.resolving import RunArguments

LENGTH_WHERE_NOTHING_IS_SAID = 1024
PARTS = {
    "weights": "",
    "adapter": "",
    "optimizer": "its states",
    "gradients": "at the moment of most memory",
    "activations": "of the longest batch",
    "head": "logits, a tile at a time",
}


def dry_run(config: str | None, stage: str | None, options: Sequence[str], shards: int = 1) -> int:
    """Print the estimate of every stage; nothing is loaded but tokenizer and rows, where they are here.

    Args:
        config: The recipe's file.
        stage: One stage instead of all.
        options: Options over the recipe.
        shards: Over how many devices weights, gradients and optimizer are spread.

    Raises:
        InputError: The recipe, its rows or its student's configuration cannot be used.
    """
    from edit_trl.training.recipe.resolving import parse_options, read_recipe, resolve_runs

    recipe = read_recipe(config)
    runs = resolve_runs(recipe, parse_options(options, recipe))
    chosen = [run for run in runs if stage in (None, run.stage)]
    if not chosen:
        names = ", ".join(str(run.stage) for run in runs)
        raise InputError(f"no stage {stage!r} in {recipe.path}; it has: {names}")
    print("Estimated from the model's configuration and the recipe; nothing is loaded or trained.")
    for run in chosen:
        if run.note:
            print(f"\n{run.note}")
        print("\n" + "\n".join(_describe_run(run, shards)))
    return 0


def _describe_run(run: "RunArguments", shards: int) -> list[str]:
    from edit_trl.training.memory.estimate import estimate_memory
    from edit_trl.training.objective import Objective

    name = f"stage {run.stage}: " if run.stage else ""
    if run.data.trainer != "dual_cot":
        return [f"{name}the memory of TRL's trainer `{run.data.trainer}` is not estimated"]
    config = student_config(run)
    examples, source = longest_batch(run)
    device = "cpu" if run.training.use_cpu else "cuda"
    estimate = estimate_memory(
        config, run.model, run.training, examples, device=device, mixed=mixed_precision(run), shards=shards
    )
    # A warm-up runs its wrong chains for the logs alone, without gradients.
    chains = "pairs" if Objective(run.training).needs_rejected else "correct chains"
    checkpointing = "on" if run.training.gradient_checkpointing else "off"
    lines = [
        f"{name}{run.model.model_name_or_path}, {_count(estimate.parameters)} parameters, "
        f"{_count(estimate.trained)} trained",
        f"  longest batch: {len(examples)} {chains}, {estimate.batch_tokens:,} tokens in the "
        f"{estimate.layout} layout, {source}",
        f"  gradient checkpointing {checkpointing}, optimizer {_text(run.training.optim)}"
        + (f", sharded over {shards} devices" if shards > 1 else ""),
    ]
    return lines + table(estimate, on_cpu=device == "cpu")


def table(estimate: "MemoryEstimate", on_cpu: bool) -> list[str]:
    """The parts of an estimate, their sum and what holds it, as lines of text."""
    from edit_trl.training.memory.estimate import CARDS

    overhead = "Python and its libraries" if on_cpu else "CUDA context, fragmentation"
    notes = PARTS | {"overhead": overhead}
    lines = [
        f"  {part:12}{_gib(size):>10}  {notes[part]}".rstrip()
        for part, size in estimate.parts.items()
        if size
    ]
    lines.append(f"  {'peak':12}{_gib(estimate.peak):>10}")
    if on_cpu:
        total = _machine_memory()
        here = f"this machine has {_gib(total)}" if total else "this machine does not tell what it has"
        lines.append(f"  of the memory of one process; {here}")
    fits = estimate.fits()
    sizes = ", ".join(map(str, fits)) + " GB" if fits else f"none of {', '.join(map(str, CARDS))} GB"
    return lines if on_cpu else [*lines, f"  fits cards of: {sizes}"]


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
    from edit_trl.training.memory.estimate import made_up_examples

    training = run.training
    pairs = training.per_device_train_batch_size
    rows = _local_rows(run)
    if rows is None:
        length = training.max_length or LENGTH_WHERE_NOTHING_IS_SAID
        if training.max_tokens_per_batch is not None:
            pairs = max(training.max_tokens_per_batch // (2 * length), 1)
        return made_up_examples(pairs, length), f"as if every chain had {length} tokens (no rows here)"
    from edit_trl.models.pairs.collation import EXAMPLE_COLUMNS
    from edit_trl.training.objective import Objective
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
    from edit_trl.data.tokenization import RowPreparation, prepare_dual_cots
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


def _machine_memory() -> int:
    import os

    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return os.sysconf(names[0]) * os.sysconf(names[1]) if set(names) <= os.sysconf_names.keys() else 0


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.1f} MiB"


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{name}"
    return str(parameters)


def _text(name: Any) -> str:
    return str(getattr(name, "value", name))
