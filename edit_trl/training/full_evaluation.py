"""Evaluation in half precision (`bf16_full_eval`, `fp16_full_eval`) that leaves the weights as they were trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Restore the floating-point weights and buffers of a model, which the block may cast.

    Meanwhile the weights are on the CPU, so that the cast saves memory on a GPU. Parameters remain the same objects, so
    that an optimizer still has them.
    """
    weights = [(p, p.device, p.data.cpu()) for p in model.parameters() if p.is_floating_point()]
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    try:
        yield
    finally:
        for parameter, device, values in weights:
            parameter.data = values.to(device)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


class FullEvaluationMixin:
    """Keeps the trained weights of a `transformers.Trainer` out of the way of an evaluation in half precision.

    Outside of `train` the Trainer casts the model in place, and what is saved after that has been rounded.
    `evaluation_loop` is the one place where it does, for `evaluate` and `predict`; read in transformers 5.24.
    """

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        """Evaluate, as in `transformers.Trainer`."""
        casts = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        if not casts:
            return super().evaluation_loop(*args, **kwargs)
        with weights_kept(self.model):
            return super().evaluation_loop(*args, **kwargs)
