"""One training step of a student that takes no memory (L2), and what it would take.

The step is run with torch's fake tensors, which have shapes and dtypes but nothing in them: the model's own
code, the adapter, gradient checkpointing, the layouts and TRL's head, forward and backward. So whatever an
architecture keeps for its backward pass is counted and not guessed.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
import trl.kernels.chunked_logprob as trl_head
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from edit_trl.models.pairs import tree_attention
from edit_trl.models.pairs.collation import BatchLayoutName, DualCoTCollator
from edit_trl.models.pairs.scoring import PairScorer
from edit_trl.models.pairs.tree_attention import TreeAttention
from edit_trl.training.memory.heap import LARGEST_IN_HEAP


@dataclass
class StepMemory:
    """Bytes at the moment of a step when most memory is used, the weights not counted.

    Attributes:
        activations: What the backward pass needs, and what layers use while they run; on a CPU also what
            was freed of either or of gradients and stays in the heap.
        head: The LM head: a tile of logits and what is made of it, and its gradient in float32.
        gradients: Of the trained weights.
    """

    activations: int = 0
    head: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.head + self.gradients


@dataclass(eq=False)
class _Ledger(TorchDispatchMode):
    """Adds up the storages that operations make, until they are let go."""

    peak: StepMemory = field(default_factory=StepMemory)
    phase: str = "activations"
    gradients: int = 0
    largest_in_heap: int = LARGEST_IN_HEAP

    def __post_init__(self):
        super().__init__()
        self._live: dict[str, int] = defaultdict(int)
        self._known: set[int] = set()
        self._pools = {"heap": 0, "mapped": 0}
        self._most = dict(self._pools)

    def know(self, tensors: Sequence[Tensor]) -> None:
        """These were there before the step."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size, phase = storage._cdata, storage.nbytes(), self.phase
        if key in self._known:
            return
        self._known.add(key)
        self._live[phase] += size
        pool = self._pool(size)
        self._pools[pool] += size
        self._most[pool] = max(self._most[pool], self._pools[pool])
        weakref.finalize(storage, self._leave, key, size, phase)
        if sum(self._live.values()) > self.peak.total:
            gradients = min(self.gradients, sum(self._live.values()))
            head = self._live["head"]
            self.peak = StepMemory(sum(self._live.values()) - gradients - head, head, gradients)

    def _leave(self, key: int, size: int, phase: str) -> None:
        self._known.discard(key)
        self._live[phase] -= size
        self._pools[self._pool(size)] -= size

    def _pool(self, size: int) -> str:
        return "heap" if size <= self.largest_in_heap else "mapped"

    def peak_on_cpu(self) -> StepMemory:
        """The peak of the process: the heap, at its largest, stays, and what is mapped comes on top of it."""
        kept = sum(self._most.values()) - self.peak.total
        return replace(self.peak, activations=self.peak.activations + kept)


def with_fake_weights(model: nn.Module, fake: FakeTensorMode) -> None:
    """Give a model on the meta device fake weights on the CPU, in place; tied ones stay tied.

    PEFT moves and casts what it makes, which fake parameters do not bear; those on the meta device do.
    """
    made: dict[int, Tensor] = {}
    with fake:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in made:
                        tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                        made[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                    module._parameters[name] = made[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def trace_step(
    model: nn.Module,
    fake: FakeTensorMode,
    examples: Sequence[dict[str, Any]],
    layout: BatchLayoutName,
    *,
    autocast: torch.dtype | None = None,
    on_gpu: bool = False,
    pad_to_multiple_of: int | None = None,
    with_rejected: bool = True,
    accumulate: bool = False,
    largest_in_heap: int = LARGEST_IN_HEAP,
) -> StepMemory:
    """Run one batch forward and backward and find the moment of most memory.

    Args:
        model: The student as the trainer has it, its tensors made under `fake`: adapter, checkpointing, mode.
        fake: The mode that they were made under.
        examples: Of a batch, as for `DualCoTCollator`.
        layout: In which they are run.
        autocast: Mixed precision: the dtype of the computation.
        on_gpu: Count what TRL's kernels for GPUs take, and not the same in torch; and no heap that is kept.
        pad_to_multiple_of: As in the trainer's options.
        with_rejected: Whether the loss looks at the wrong chains.
        accumulate: Gradients of an earlier batch are there already.
        largest_in_heap: On a CPU, bytes of the largest blocks that stay in the heap; see
            `edit_trl.training.memory.heap`.
    """
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    collator = DualCoTCollator(0, pad_to_multiple_of, layout)
    scorer = PairScorer(model, collator, TreeAttention(model) if layout == "tree" else None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ledger = _Ledger(largest_in_heap=largest_in_heap)
    precision = torch.autocast("cpu", autocast) if autocast else nullcontext()
    kernels = _as_on_a_gpu() if on_gpu else nullcontext()
    masks = patch.object(tree_attention, "causal_lower_right", _causal_lower_right)
    with fake, masks, kernels, _told_phases(base, ledger), _told_gradients(trained, ledger):
        batch = collator(examples)
        ledger.know([*model.parameters(), *model.buffers()])
        with ledger:
            for _ in range(2 if accumulate else 1):
                ledger.phase = "activations"
                with precision:
                    logps = scorer(model, batch, with_rejected)
                    loss = logps.chosen.sum()
                    if with_rejected:
                        loss = loss + logps.rejected.sum()
                loss.backward()
                del logps, loss
        for parameter in trained:
            parameter.grad = None
    if collator.layout != layout:
        raise RuntimeError(f"the {layout} layout did not run on fake tensors; what was said above tells why")
    return ledger.peak if on_gpu else ledger.peak_on_cpu()


def _causal_lower_right(queries: int, keys: int) -> Tensor:
    """The mask itself: fake tensors take no `CausalBias`, which a CPU makes into it anyway."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@contextmanager
def _told_phases(base: PreTrainedModel, ledger: _Ledger) -> Iterator[None]:
    """The head begins where the backbone ends, and in the backward pass ends there."""

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
def _told_gradients(trained: Sequence[nn.Parameter], ledger: _Ledger) -> Iterator[None]:
    seen: set[int] = set()

    def accumulated(parameter: nn.Parameter) -> None:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            ledger.gradients += parameter.grad.nbytes

    handles = [parameter.register_post_accumulate_grad_hook(accumulated) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """TRL's kernels fold a tile of logits in place; what stands in for them without Triton makes copies.

    Private names of `trl.kernels.chunked_logprob`, read in TRL 1.16: `_forward_tile` and `_backward_tile` for
    devices without Triton, and `_addmm_fp32`, which makes no copy on a GPU.
    """

    def in_place(*args: Any, **kwargs: Any) -> None:
        """Takes no memory of its own."""

    with ExitStack() as stack:
        for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
            stack.enter_context(patch.object(trl_head, name, in_place))
        yield
