"""The items of a run, of which an interrupted run already has some."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from edit_trl.common.interruption import after_the_batch
from edit_trl.evaluation.runs.folder import RunFolder, read_run
from edit_trl.evaluation.runs.history import record_run
from edit_trl.evaluation.runs.schema import Run, key_of
from edit_trl.evaluation.runs.scores import run_scores
from edit_trl.models.chat.dispatch import Interrupted


class Keyed(Protocol):
    """A question or a pair, identified by its task and id."""

    @property
    def key(self) -> tuple[str, str]: ...


def complete_items(
    entries: Sequence[Keyed],
    batches: Sequence[list[int]],
    make_items: Callable[[Sequence[list[int]]], Iterator[list[Any]]],
    grade_again: Callable[[Any, Any], Any],
    description: str,
    unit: str,
    folder: RunFolder | None,
    progress: bool,
) -> list[Any]:
    """Make the items that the folder does not hold yet, and store them batch by batch.

    Args:
        entries: The questions or pairs.
        batches: All planned batches, as indexes of `entries`.
        make_items: Makes the items of some of these batches.
        grade_again: Returns the item of an entry with the verdicts of the present answer check.
        description: The title of the progress bar.
        unit: The unit of the progress bar.
        folder: The folder of the run; None to store nothing.
        progress: Whether to show a progress bar.

    Returns:
        The items, in the order of `entries`.

    Raises:
        Interrupted: Ctrl-C was pressed; the batch at hand was finished and stored.
    """
    if folder and folder.needs_grading:
        by_key = {entry.key: entry for entry in entries}
        folder.grade_again([grade_again(by_key[key], item) for key, item in folder.done.items()])
    items = dict(folder.done) if folder else {}
    # A batch is always made as a whole: another batch could change the rounding, and so an item.
    remaining = [batch for batch in batches if any(entries[index].key not in items for index in batch)]
    count = sum(map(len, remaining))
    if folder:
        folder.start()
    bar = tqdm(
        total=len(entries), initial=len(entries) - count, desc=description, unit=unit, disable=not progress or not count
    )
    started, tokens = time.perf_counter(), 0
    try:
        with bar, after_the_batch() if folder else nullcontext() as interruption:
            for batch_items in make_items(remaining):
                items |= {key_of(item): item for item in batch_items}
                if folder:
                    folder.append(batch_items)
                bar.update(len(batch_items))
                tokens += sum(sample["tokens"] for item in batch_items for sample in item.get("samples", ()))
                if interruption and interruption.requested and len(items) < len(entries):
                    raise Interrupted(
                        f"interrupted: {len(items)} of {len(entries)} are in {folder.path}. Run the same command again "
                        "to resume"
                    )
                if tokens:
                    bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):.0f} tokens/s")
    except BaseException:
        if folder:
            folder.pause()
            folder.release()
        raise
    if folder:
        folder.pause()
    return [items[entry.key] for entry in entries]


def finish_run(folder: RunFolder, entries: Sequence[Keyed], history: str | Path | None = None) -> Run:
    """Write the scores of a run that has the items of all entries, and add the run to a history."""
    if folder.finished:
        run = read_run(folder.path)
    else:
        order = [entry.key for entry in entries]
        run = folder.finish(order, *run_scores([folder.done[key] for key in order], folder.record.kind))
    record_run(run, history)
    return run
