"""`edit-trl train --dry_run`: what each stage will take of memory, and which cards hold it (L4)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.training.memory.longest_batch import longest_batch, mixed_precision, student_config

if TYPE_CHECKING:
    from edit_trl.training.memory.estimate import MemoryEstimate
    from edit_trl.training.recipe.resolving import RunArguments

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
