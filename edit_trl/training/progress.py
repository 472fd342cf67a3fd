"""TrainingProgress: a line about each logged step of a `transformers.Trainer`, instead of its dictionary.

The log history and the trackers of `report_to` keep all metrics. Read in transformers 5.24: `Trainer.__init__` adds a
`PrinterCallback` or a `ProgressCallback`, and in a notebook a table, which stays.
"""

import time
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length
from transformers.utils import logging

from edit_trl.common.metric_names import DETAILS, METRICS
from edit_trl.common.progress import Progress

EVALUATION = "eval_"
SUITE = "suite/"


class TrainingProgress(ProgressCallback, PrinterCallback):
    """Shows the progress of training and evaluation, on the main process; `disable_tqdm` asks for plain lines.

    As a subclass of both callbacks that it replaces, it is removed by the name of either.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._training = self._evaluating = False
        self._batches = 0
        self._has_bars = False

    def close(self) -> None:
        """Leave the last line, also after an error."""
        self._training = self._evaluating = False
        if self._progress is not None:
            self._progress.close()
            self._progress = None
            if self._has_bars:
                logging.enable_progress_bar()

    def _shown(self, args: TrainingArguments, state: TrainerState) -> Progress:
        if self._progress is None:
            self._progress = Progress(plain=bool(args.disable_tqdm), hidden=not state.is_world_process_zero)
            self._has_bars = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()  # that of saved shards would cut through ours
        return self._progress

    # Training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = True
        # No part of the steps: what a suite generates meanwhile.
        self._shown(args, state).begin("step", state.max_steps, state.global_step, batch=0, paced=False)
        # A resumed run does not know how many of its tokens were run before.
        self._tokens = None if state.global_step else 0.0
        self._since = self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = time.monotonic()
        self._shown(args, state).update(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._leave_out()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    # Evaluation

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not has_length(eval_dataloader):
            return
        progress, total = self._shown(args, state), len(eval_dataloader)
        self._batches += 1
        if self._training:
            progress.note(f"evaluating {self._batches}/{total}")
            return
        if not self._evaluating:
            self._evaluating = True
            progress.begin("evaluating", total, 1, unit="batches", batch=0)
        if self._batches < total:  # what it gives is a line of its own
            progress.update(self._batches)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._end_evaluation()

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        self._batches = 0
        self._leave_out()
        if not self._training:
            self.close()
        elif self._progress is not None:
            self._progress.note("")

    # Logs

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" in logs and self._training:
            parts = [_part(name, logs[name]) for name in METRICS if name in logs]
            self._shown(args, state).update(state.global_step, parts, rate=self._speed(logs), line=True)
        elif any(name.startswith(EVALUATION) for name in logs):
            step = f"step {state.global_step:,}/{state.max_steps:,}" if state.max_steps else ""
            self._leave_out()
            progress = self._shown(args, state)
            if not self._training:
                progress.end(leaves_line=False)
            progress.say([_evaluated(logs), step, *_evaluation_parts(logs)])

    def _speed(self, logs: dict[str, float]) -> str | None:
        """Return the tokens per second since the last line; None where they are not counted."""
        tokens, before, seconds = logs.get("num_tokens"), self._tokens, time.monotonic() - self._since
        self._tokens, self._since = tokens, time.monotonic()
        if tokens is None or before is None or tokens < before or not seconds:
            return None
        return f"{(tokens - before) / seconds:,.0f} tokens/s"

    def _leave_out(self) -> None:
        """Leave the time since the last step out of the speed: an evaluation or a checkpoint has taken it."""
        if self._training:
            now = time.monotonic()
            self._since, self._last = self._since + now - max(self._last, self._since), now


class ProgressMixin(Trainer):
    """Shows the progress of a `transformers.Trainer` with a `TrainingProgress`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The first of the callbacks, so that the time that the others take is not counted as training.
        self._display = TrainingProgress()
        kwargs["callbacks"] = [self._display, *(kwargs.get("callbacks") or [])]
        super().__init__(*args, **kwargs)
        replaced = [cb for cb in self.callback_handler.callbacks if type(cb) in (PrinterCallback, ProgressCallback)]
        for callback in replaced or [self._display]:
            self.remove_callback(callback)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as in `transformers.Trainer`; the display ends with it, also after an error."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._display.close()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, as in `transformers.Trainer`; the display ends after an error."""
        try:
            return super().evaluation_loop(*args, **kwargs)
        except BaseException:
            self._display.close()
            raise


def _part(name: str, value: float) -> str:
    metric = METRICS.get(name)
    if metric is None:
        return f"{name.replace('_', ' ')} {value:.3g}"
    return f"{metric.label} {value:{metric.form}}"


def _set_name(logs: dict[str, float]) -> str:
    """Return how the names of the metrics of an evaluation begin: `eval_`, or `eval_NAME_` for one of several sets."""
    losses = [name for name in logs if name.startswith(EVALUATION) and name.endswith("_loss")]
    return min(losses, key=len).removesuffix("loss") if losses else EVALUATION


def _evaluated(logs: dict[str, float]) -> str:
    if any(name.startswith(EVALUATION + SUITE) for name in logs):
        return "suite"
    return f"evaluation {_set_name(logs)[len(EVALUATION) :].removesuffix('_')}".strip()


def _evaluation_parts(logs: dict[str, float]) -> list[str]:
    prefix = _set_name(logs)
    metrics = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    # Those that are explained, and those of `compute_metrics`.
    names = [name for name in METRICS if name in metrics]
    names += [name for name in metrics if not ("/" in name or name in DETAILS or name in METRICS)]
    return [_part(name, metrics[name]) for name in names]
