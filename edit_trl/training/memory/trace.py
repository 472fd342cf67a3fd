"""The memory of one training step, traced on fake tensors.

torch's fake tensors have shapes and dtypes but no content. The whole step runs on them, forward and backward:
the model's own code, the adapter, gradient checkpointing, the layout and TRL's head. So the tensors that an
architecture keeps for its backward pass are counted, not guessed.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
import trl.kernels.chunked_logprob as trl_head
import trl.trainer.utils as trl_utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from edit_trl.common.malloc import LARGEST_IN_HEAP
from edit_trl.models.pairs import fused_head
from edit_trl.models.pairs.collation import BatchLayoutName, DualCoTCollator
from edit_trl.models.pairs.scoring import PairScorer
from edit_trl.models.pairs.tree_attention import TreeAttention, base_model


@dataclass
class StepMemory:
    """The bytes of a step at its moment of most memory, without the weights.

    Attributes:
        activations: Tensors kept for the backward pass and those that layers use while they run; on a CPU
            also freed blocks that stay in the heap.
        head: The LM head: a tile of logits, what is computed from it, and its gradient in float32.
        gradients: Gradients of the trained weights.
    """

    activations: int = 0
    head: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.activations + self.head + self.gradients


@dataclass(eq=False)
class _Ledger(TorchDispatchMode):
    """Adds up the storages that operations allocate, until they are freed."""

    peak: StepMemory = field(default_factory=StepMemory)
    phase: str = "activations"
    gradients: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[str, int] = defaultdict(int)
        self._counted: set[int] = set()
        self._pools = {"heap": 0, "mapped": 0}
        self._pool_peaks = dict(self._pools)

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Do not count tensors that exist before the step."""
        self._counted |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size, phase = storage._cdata, storage.nbytes(), self.phase
        if key in self._counted:
            return
        self._counted.add(key)
        self._live[phase] += size
        pool = self._pool(size)
        self._pools[pool] += size
        self._pool_peaks[pool] = max(self._pool_peaks[pool], self._pools[pool])
        weakref.finalize(storage, self._leave, key, size, phase)
        total, head = sum(self._live.values()), self._live["head"]
        gradients = min(self.gradients, total)
        if total > self.peak.total:
            self.peak = StepMemory(total - gradients - head, head, gradients)

    def _leave(self, key: int, size: int, phase: str) -> None:
        self._counted.discard(key)
        self._live[phase] -= size
        self._pools[self._pool(size)] -= size

    def _pool(self, size: int) -> str:
        return "heap" if size <= LARGEST_IN_HEAP else "mapped"

    def peak_on_cpu(self) -> StepMemory:
        """Return the peak of the process: the heap keeps its largest size, and mapped blocks come on top of it."""
        retained = sum(self._pool_peaks.values()) - self.peak.total
        return replace(self.peak, activations=self.peak.activations + retained)


def _fake_weights(model: nn.Module) -> None:
    """Give a model on the meta device fake weights on the CPU, in place; tied weights stay tied.

    The model has its adapter: PEFT moves and casts its parameters, which fails with fake tensors.
    """

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    fakes = {p: nn.Parameter(fake(p), p.requires_grad) for p in model.parameters()}
    for module in model.modules():
        module._parameters.update({n: fakes[p] for n, p in module._parameters.items() if p is not None})
        module._buffers.update({n: fake(b) for n, b in module._buffers.items() if b is not None})


def trace_step(
    model: nn.Module,
    examples: Sequence[dict[str, Any]],
    layout: BatchLayoutName,
    *,
    autocast: torch.dtype | None = None,
    on_gpu: bool = False,
    pad_to_multiple_of: int | None = None,
    with_rejected: bool = True,
    accumulate: bool = False,
) -> StepMemory:
    """Run one batch forward and backward and find the moment of most memory.

    Args:
        model: The student as it is trained (adapter, checkpointing, mode), on the meta device; it is given
            fake weights.
        examples: The examples of a batch, as for `DualCoTCollator`.
        layout: The layout of the batch.
        autocast: The dtype of mixed precision; None without it.
        on_gpu: Count the memory of TRL's GPU kernels instead of that of their torch versions, and no heap.
        pad_to_multiple_of: As in the trainer's options.
        with_rejected: Whether the loss uses the wrong chains.
        accumulate: Whether there are gradients of an earlier batch.
    """
    fake = FakeTensorMode()
    with fake:
        _fake_weights(model)
    base = base_model(model)
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    collator = DualCoTCollator(0, pad_to_multiple_of, layout)
    tree = TreeAttention(model, causal_mask=_causal_mask) if layout == "tree" else None
    scorer = PairScorer(model, collator, tree)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ledger = _Ledger()
    precision = torch.autocast("cpu", autocast) if autocast else nullcontext()
    kernels = _as_on_a_gpu() if on_gpu else nullcontext()
    with fake, kernels, _record_phases(base, ledger), _record_gradients(trained, ledger):
        batch = collator(examples)
        ledger.ignore([*model.parameters(), *model.buffers()])
        with ledger:
            for _ in range(2 if accumulate else 1):
                ledger.phase = "activations"
                with precision:
                    logps = scorer(model, batch, with_rejected)
                    loss = logps.chosen.sum()
                    if logps.rejected is not None:
                        loss = loss + logps.rejected.sum()
                loss.backward()
                del logps, loss
        for parameter in trained:
            parameter.grad = None
    if collator.layout != layout:
        raise RuntimeError(f"the {layout} layout did not run on fake tensors; the warning above says why")
    return ledger.peak if on_gpu else ledger.peak_on_cpu()


def _causal_mask(queries: int, keys: int) -> Tensor:
    """Return a plain tensor: fake tensors do not support `CausalBias`, which SDPA on a CPU expands to this."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@contextmanager
def _record_phases(base: PreTrainedModel, ledger: _Ledger) -> Iterator[None]:
    """Set the ledger's phase: the head begins when the backbone's forward ends, and ends at its backward."""

    def backward_reaches_backbone(gradient: Tensor) -> None:
        ledger.phase = "activations"

    def backbone_ends(module: nn.Module, inputs: Any, output: Any) -> None:
        ledger.phase = "head"
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(backward_reaches_backbone)

    handle = base.base_model.register_forward_hook(backbone_ends)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _record_gradients(trained: Sequence[nn.Parameter], ledger: _Ledger) -> Iterator[None]:
    seen: set[int] = set()

    def accumulated(parameter: nn.Parameter) -> None:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            assert parameter.grad is not None  # it was just accumulated
            ledger.gradients += parameter.grad.nbytes

    handles = [parameter.register_post_accumulate_grad_hook(accumulated) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Replace TRL's functions for devices without Triton, which copy a tile of logits; its kernels work in place.

    Tiles have the size of those on a GPU.

    Private names of `trl.kernels.chunked_logprob`, read in TRL 1.16: `_forward_tile` and `_backward_tile` for
    devices without Triton, and `_addmm_fp32`, which makes no copy on a GPU.
    """

    def in_place(*args: Any, **kwargs: Any) -> None:
        """Allocate nothing."""

    with (
        patch.multiple(trl_head, _forward_tile=in_place, _backward_tile=in_place, _addmm_fp32=in_place),
        patch.object(fused_head, "CPU_TILE", trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE),
    ):
        yield
