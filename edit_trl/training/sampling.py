"""Samplers of training batches: pairs grouped by length, or batches filled up to a number of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from edit_trl.common.errors import InputError
from edit_trl.data.preparation import name_rows
from edit_trl.models.pairs.collation import BatchLayoutName, DualCoTCollator

if TYPE_CHECKING:
    from edit_trl.training.config import DualCoTConfig

# Sorting by length within this many batches costs no randomness that matters and saves most padding.
SORT_WINDOW = 50


class LengthGroups(Sampler[int]):
    """A sampler that groups pairs of a similar length, in an order that depends on the seed and the epoch alone.

    `transformers.LengthGroupedSampler` draws from the process's random state, which a resumed run, or another
    process, has in another place.

    Args:
        lengths: The length of each pair.
        batch_size: Number of pairs of a similar length.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


class TokenBudgetBatches(Sampler[list[int]]):
    """A sampler that fills each batch with pairs up to a number of tokens; a pair is never split.

    The batches are made once and come in another order each epoch, so that every epoch has the same number of
    steps. Pairs of one source row stay together where they fit, since in the tree layout they share a prompt.

    Args:
        columns: `length`, `unique_length`, `prompt_length` and `row` of a prepared dataset, one item per pair.
        max_tokens: The budget of one batch on one device: unique tokens in the tree layout, rows times
            width in the padded one.
        layout: The layout of the batches.
        shuffle: Whether pairs and batches are shuffled.
        seed: Seed of the order.
        processes: Number of processes that share the batches; each gets as many as the others.
        rank: The number of this process.

    Raises:
        InputError: Some pairs alone exceed the budget; the message names their rows.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[int]],
        max_tokens: int,
        *,
        layout: BatchLayoutName = "tree",
        shuffle: bool = True,
        seed: int = 0,
        processes: int = 1,
        rank: int = 0,
    ):
        self._columns, self._max_tokens, self._tree = columns, max_tokens, layout == "tree"
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self._processes, self._rank = processes, rank
        check_budget(columns, max_tokens, layout)
        self.batches = self._even(self._fill(self._order()))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the order of the batches."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.batches) // self._processes

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.batches)))
        if self._shuffle:
            order = _permutation(len(self.batches), self._seed + self._epoch)
        for number in order[self._rank :: self._processes]:
            yield self.batches[number]

    def _order(self) -> list[int]:
        """Return all pairs, those of one row after one another, rows shuffled."""
        rows = self._columns["row"]
        groups = [list(group) for _, group in groupby(range(len(rows)), key=rows.__getitem__)]
        if self._shuffle:
            groups = [groups[i] for i in _permutation(len(groups), self._seed)]
        pairs = [pair for group in groups for pair in group]
        if self._tree:
            return pairs
        lengths = self._columns["length"]
        window = SORT_WINDOW * max(self._max_tokens // (2 * max(lengths)), 1)
        return [
            pair
            for start in range(0, len(pairs), window)
            for pair in sorted(pairs[start : start + window], key=lambda pair: -lengths[pair])
        ]

    def _fill(self, pairs: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for pair in pairs:
            if batches[-1] and self._cost([*batches[-1], pair]) > self._max_tokens:
                batches.append([])
            batches[-1].append(pair)
        return batches

    def _cost(self, pairs: Sequence[int]) -> int:
        if not self._tree:
            return 2 * len(pairs) * max(self._columns["length"][pair] for pair in pairs)
        rows = self._columns["row"]
        prompts = self._columns["prompt_length"]
        shared = sum(prompts[b] for a, b in pairwise(pairs) if rows[a] == rows[b])
        return sum(self._columns["unique_length"][pair] for pair in pairs) - shared

    def _even(self, batches: list[list[int]]) -> list[list[int]]:
        """Make the number of batches equal for all processes: halve the largest, or else repeat the first."""
        while len(batches) % self._processes:
            largest = max(range(len(batches)), key=lambda number: len(batches[number]))
            pairs = batches[largest]
            if len(pairs) == 1:
                return batches + batches[: -len(batches) % self._processes]
            middle = len(pairs) // 2
            batches[largest : largest + 1] = [pairs[:middle], pairs[middle:]]
        return batches


def pair_lengths(dataset: Dataset) -> dict[str, list[int]]:
    """Return the columns of a prepared dataset that `TokenBudgetBatches` reads."""
    return {name: dataset[name][:] for name in ("length", "unique_length", "prompt_length", "row")}


def length_groups(
    lengths: Sequence[int], batch_size: int, args: "DualCoTConfig", layout: BatchLayoutName
) -> LengthGroups | None:
    """Return the sampler that groups pairs of a similar length; None for another order.

    Padded batches, of `batch_size` pairs, are grouped unless `train_sampling_strategy` sets an order.
    """
    strategy = args.train_sampling_strategy
    if strategy == "group_by_length" or (layout == "padded" and strategy == "random"):
        return LengthGroups(lengths, batch_size * args.gradient_accumulation_steps, data_seed(args))
    return None


def train_batches(
    dataset: Dataset,
    lengths: dict[str, list[int]],
    max_tokens: int | None,
    collator: DualCoTCollator,
    args: "DualCoTConfig",
    accelerator: Accelerator,
) -> DataLoader:
    """Return a loader of this process's batches, filled by tokens (`max_tokens_per_batch`).

    Args:
        dataset: The prepared rows, without the columns that are no part of a batch.
        lengths: See `pair_lengths`.
        max_tokens: A budget tried after an attempt ran out of memory; None for `max_tokens_per_batch`.
        collator: The collator, whose layout decides how many tokens a pair has.
        args: The options of the run.
        accelerator: The accelerator, whose processes share the batches.

    Raises:
        InputError: A pair alone exceeds the budget.
    """
    longest, limit = max(pair_costs(lengths, collator.layout)), args.max_tokens_per_batch
    assert limit is not None  # see above
    if max_tokens is not None and max_tokens < longest <= limit:
        raise InputError(
            f"out of memory even with batches of {longest} tokens, the length of the longest pair "
            "(`auto_find_batch_size`); lower `max_length` to drop long pairs, or train with less memory (LoRA, 4 bits)"
        )
    batches = TokenBudgetBatches(
        lengths,
        max_tokens or limit,
        layout=collator.layout,
        shuffle=args.train_sampling_strategy != "sequential",
        seed=data_seed(args),
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        in_order=args.dataloader_in_order,
    )
    # The sampler has dealt the batches out already; told of one process, accelerate does not do it again.
    return prepare_data_loader(loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True)


def data_seed(args: "DualCoTConfig") -> int:
    """Return the seed of the order of the rows."""
    return args.data_seed if args.data_seed is not None else args.seed


def own_pairs(pairs: int, batch_size: int, accelerator: Accelerator, dataset_size: int | None = None) -> int | None:
    """Return the number of a batch's pairs that count, the first ones; None for all.

    Where the last pairs of an epoch are too few for all processes, accelerate fills their batches with pairs
    from its beginning, so that all processes make the step. Those pairs must not count twice.

    Args:
        pairs: Pairs in the batch.
        batch_size: Pairs in a full batch of one process.
        accelerator: The accelerator, which keeps the state of the epoch.
        dataset_size: Pairs of the dataset, in training: after a resume accelerate does not know how many are
            left over (its `SkipBatchSampler` has no `batch_size`).
    """
    state, processes = accelerator.gradient_state, accelerator.num_processes
    if processes == 1:
        return None
    remainder = state.remainder if dataset_size is None else dataset_size % (batch_size * processes)
    if not state.end_of_dataloader or remainder <= 0:
        return None
    return min(max(remainder - accelerator.process_index * batch_size, 0), pairs)


def pair_costs(columns: Mapping[str, Sequence[int]], layout: BatchLayoutName) -> Sequence[int]:
    """Return how many tokens of a batch each pair takes by itself."""
    return columns["unique_length"] if layout == "tree" else [2 * length for length in columns["length"]]


def check_budget(columns: Mapping[str, Sequence[int]], max_tokens: int, layout: BatchLayoutName) -> None:
    """Check that every pair fits into a batch by itself.

    Raises:
        InputError: Some do not; the message names their rows and the tokens of the longest pair.
    """
    costs = pair_costs(columns, layout)
    over = [row for row, cost in zip(columns["row"], costs, strict=True) if cost > max_tokens]
    if over:
        raise InputError(
            f"{len(over)} of {len(costs)} pairs are longer than `max_tokens_per_batch: {max_tokens}` "
            f"({name_rows(over)}; the longest has {max(costs)} tokens in the {layout} layout); raise it, or "
            "lower `max_length` to drop long pairs"
        )


def _permutation(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
