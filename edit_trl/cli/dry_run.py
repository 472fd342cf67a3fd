"""`edit-trl train --dry_run`: the memory that each stage will need, and the GPUs that have it."""

import os
from collections.abc import Sequence

from edit_trl.training.memory.estimate import GPU_SIZES, MemoryEstimate, estimate_stage
from edit_trl.training.memory.longest_batch import longest_batch
from edit_trl.training.objective import Objective
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import RunArguments, parse_options, pick_run, resolve_runs

NOTES = {
    "weights": "",
    "adapter": "",
    "optimizer": "its states",
    "gradients": "at the moment of most memory",
    "activations": "of the longest batch",
    "head": "logits, a tile at a time",
}


def dry_run(config: str | None, stage: str | None, options: Sequence[str], shards: int = 1) -> int:
    """Print the estimate of every stage; only tokenizer and rows are loaded, if they are local.

    Args:
        config: The recipe's file.
        stage: One stage instead of all.
        options: Options that win over the recipe.
        shards: The number of devices over which weights, gradients and optimizer states are sharded.

    Raises:
        InputError: The recipe, its rows or its student's configuration cannot be used.
    """
    recipe = read_recipe(config)
    runs = resolve_runs(recipe, parse_options(options, recipe))
    print("Estimated from the model's configuration and the recipe; nothing is loaded or trained.")
    for run in runs if stage is None else [pick_run(recipe, runs, stage)]:
        if run.note:
            print(f"\n{run.note}")
        print("\n" + "\n".join(_describe(run, shards)))
    return 0


def _describe(run: RunArguments, shards: int) -> list[str]:
    name = f"stage {run.stage}: " if run.stage else ""
    if run.data.trainer != "dual_cot":
        return [f"{name}the memory of TRL's trainer `{run.data.trainer}` is not estimated"]
    examples, source = longest_batch(run)
    estimate = estimate_stage(run, examples, shards)
    # A warm-up runs its wrong chains for the logs alone, without gradients.
    chains = "pairs" if Objective(run.training).needs_rejected else "correct chains"
    checkpointing = "on" if run.training.gradient_checkpointing else "off"
    optimizer = getattr(run.training.optim, "value", run.training.optim)
    sharding = f", sharded over {shards} devices" if shards > 1 else ""
    return [
        f"{name}{run.model.model_name_or_path}, {_count(estimate.parameters)} parameters, "
        f"{_count(estimate.trained)} trained",
        f"  longest batch: {len(examples)} {chains}, {estimate.batch_tokens:,} tokens in the "
        f"{estimate.layout} layout, {source}",
        f"  gradient checkpointing {checkpointing}, optimizer {optimizer}{sharding}",
        *_table(estimate, run.training.use_cpu),
    ]


def _table(estimate: MemoryEstimate, on_cpu: bool) -> list[str]:
    """Return the parts of an estimate, their sum and the devices that have enough memory, as lines of text."""
    notes = NOTES | {"overhead": "Python and its libraries" if on_cpu else "CUDA context, fragmentation"}
    lines = [f"  {part:12}{_gib(size):>10}  {notes[part]}".rstrip() for part, size in estimate.parts.items() if size]
    lines.append(f"  {'peak':12}{_gib(estimate.peak):>10}")
    if on_cpu:
        memory = _machine_memory()
        here = f"this machine has {_gib(memory)}" if memory else "the memory of this machine is unknown"
        return [*lines, f"  of the memory of one process; {here}"]
    fits = estimate.fits()
    sizes = ", ".join(map(str, fits)) + " GB" if fits else f"none of {', '.join(map(str, GPU_SIZES))} GB"
    return [*lines, f"  fits GPUs of: {sizes}"]


def _machine_memory() -> int:
    """Return the memory of this machine in bytes; 0 if it is unknown."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return os.sysconf(names[0]) * os.sysconf(names[1]) if set(names) <= os.sysconf_names.keys() else 0


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.1f} MiB"


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{name}"
    return str(parameters)
