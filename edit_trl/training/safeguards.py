"""SafeguardsMixin: what `transformers.Trainer` does in silence, made right or said, for every trainer of a recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from edit_trl.common.conversion import nearest
from edit_trl.common.errors import InputError


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


class SafeguardsMixin(Trainer):
    """Overrides hooks of `transformers.Trainer`, read in transformers 5.24."""

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> Any:
        """Return the steps of the run and what belongs to them, as in `transformers.Trainer`.

        Raises:
            InputError: The run would end without a step.
        """
        values = super().set_initial_training_values(args, dataloader) if len(dataloader) else (0,)
        if values[-1] > 0:
            return values
        raise InputError(
            f"the run would make no step: `num_train_epochs: {args.num_train_epochs:g}`, "
            f"`max_steps: {args.max_steps}`, "
            f"`per_device_train_batch_size: {args.per_device_train_batch_size}`, `dataloader_drop_last: "
            f"{str(args.dataloader_drop_last).lower()}`; set an epoch or a step, and batches that the rows fill"
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            name = str(self.args.metric_for_best_model).removeprefix("eval_")
            names = [metric.removeprefix("eval_") for metric in metrics]
            hint = nearest(name, names) or f"; choose from {', '.join(names)}"
            raise InputError(f"`metric_for_best_model: {name}` is no metric of the evaluation{hint}") from error

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate and keep the trained weights, with `bf16_full_eval` and `fp16_full_eval` too.

        Outside of `train` the Trainer casts the model in place, for `evaluate` and `predict`, and what is saved after
        that has been rounded.
        """
        casts = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        if not casts:
            return super().evaluation_loop(*args, **kwargs)
        model: Any = self.model
        with weights_kept(model):
            return super().evaluation_loop(*args, **kwargs)
