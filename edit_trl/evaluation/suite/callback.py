"""A suite during training, which does not change the training run.

Read in transformers 5.23: `Trainer.evaluate` passes the metrics that it returns to `on_evaluate`, so that
added metrics are available to `metric_for_best_model`; `CallbackHandler.on_log` resets `should_log`; with
`load_best_model_at_end` the best weights are in the model before `on_train_end`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from edit_trl.common.checks import at_least, not_negative
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.files import write_whole
from edit_trl.common.json_text import checker, read_json
from edit_trl.data.row import rows_of, with_prompt
from edit_trl.evaluation.accuracy.answering import checked_item
from edit_trl.evaluation.accuracy.problems import Problem, encode, problems_of
from edit_trl.evaluation.runs.scores import LOWER_IS_BETTER, SCORES, WEIGHTED_VOTES, mean_scores
from edit_trl.evaluation.suite.cases import SuiteCase, cases_of
from edit_trl.evaluation.suite.model_scorer import ModelScorer
from edit_trl.key_steps import KeyStepMethod
from edit_trl.models.decoding import Decoding
from edit_trl.models.generation import ModelGenerator, undisturbed
from edit_trl.models.loading import positions_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

logger = logging.get_logger(__name__)

HISTORY_FILE = "suite_history.jsonl"
"""The file in the folder of the run with one line per suite: `step`, `epoch` and the scores."""

PREFIX = "suite/"
_GENERATED = ("right_branch", "wrong_branch", "greedy_accuracy", "cut_off")
_PAIR_SCORES = tuple(name for name in SCORES["suite"] if name not in _GENERATED)
_ACCURACY_SCORES = tuple(name for name in SCORES["evaluate"] if name not in WEIGHTED_VOTES)


class SuiteCallback(TrainerCallback):
    """Runs a suite on the student during training, and optionally lets it answer some of the questions.

    Scores are logged as `eval_suite/NAME` (see `edit_trl.evaluation.runs.scores`), written to
    `suite_history.jsonl` in the folder of the run, and added to the metrics that `evaluate` returns, so that
    `metric_for_best_model: suite/key_preference` selects the best weights. Weights, modes, random states and
    pending logs of the trainer are the same as without the callback. Processes share the work, and every
    process gets the scores.

    Args:
        dataset: Dual CoTs.
        steps: Number of steps between two suites; None to run one with each evaluation. A suite also runs at
            the last step, and with each evaluation if `metric_for_best_model` is one of its scores.
        rows: The most pairs to score, from the beginning of the dataset.
        accuracy_rows: Number of questions with a known answer that the student answers too.
        max_new_tokens: Maximum number of tokens per answer.
        batch_size: Pairs or answers per batch; `per_device_eval_batch_size` if None.
        key_step_method: How key steps are found.
        chat_template_kwargs: Values of the chat template's variables, such as {"enable_thinking": False}; those of a
            row win. They should be those of the training.
        stop_at_plateau: End the training once the watched score has not become better in this many suites in a row:
            the accuracy, or the score that `metric_for_best_model` names. None to train to the end.

    Attributes:
        trainer: The trainer that logs the scores. `edit-trl train` and `train_recipe` set it; with a trainer
            of your own, set it once it is made: `callback.trainer = trainer`.

    Raises:
        InputError: An option is out of range. Before training begins: the rows make no suite, or
            `metric_for_best_model` names a score that does not exist.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Mapping[str, Any]],
        *,
        steps: int | None = None,
        rows: int | None = None,
        accuracy_rows: int = 0,
        max_new_tokens: int = 256,
        batch_size: int | None = None,
        key_step_method: KeyStepMethod = "words",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop_at_plateau: int | None = None,
    ):
        errors = at_least(1, steps=steps, rows=rows, max_new_tokens=max_new_tokens, batch_size=batch_size)
        errors += at_least(1, stop_at_plateau=stop_at_plateau)
        raise_problems(errors + not_negative(accuracy_rows=accuracy_rows))
        self.trainer: Trainer | None = None
        self._rows = list(rows_of(dataset)) if hasattr(dataset, "column_names") else list(dataset)
        self._steps, self._limit, self._accuracy_rows = steps, rows, accuracy_rows
        self._decoding, self._batch_size = Decoding(max_new_tokens), batch_size
        self._method, self._patience = key_step_method, stop_at_plateau
        self._template_values = chat_template_kwargs
        self._cases: list[SuiteCase] = []
        self._problems: list[Problem] = []
        self._prompts: list[list[int]] = []
        self._training = False
        self._history: dict[int, dict[str, Any]] = {}
        self._last: tuple[int, dict[str, float]] | None = None

    # Hooks of the trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the rows, and the metric that selects the best weights."""
        self._prepare(args, kwargs["model"], kwargs["processing_class"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the history of a run that is resumed, up to the step from which it resumes."""
        if not self._cases:  # the callback was added after the trainer was made
            self._prepare(args, kwargs["model"], kwargs["processing_class"])
        self._training, self._last, self._history = True, None, {}
        if self._steps is None and not _evaluates(args, state) and state.is_world_process_zero:
            logger.warning(
                "the suite will not run in this training: SuiteCallback has no `steps`, and the trainer makes no "
                "evaluation to run it with; give SuiteCallback(..., steps=100), or set `eval_strategy`"
            )
        file = Path(args.output_dir) / HISTORY_FILE
        if state.global_step and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            entries = [read_json(line, f"{file}, line {n}", finite=False) for n, line in enumerate(lines, 1)]
            for number, entry in enumerate(entries, 1):
                step = entry.get("step") if isinstance(entry, dict) else None
                if (problem := checker(int)(step)) is not None:
                    raise InputError(f"{file}, line {number}: step{problem}; remove the file to go on without it")
            self._history = {entry["step"]: entry for entry in entries if entry["step"] <= state.global_step}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run the suite every `steps` steps, and at the end."""
        step = state.global_step
        if self._steps is not None and (step % self._steps == 0 or step >= state.max_steps):
            self._run(args, state, control, kwargs["model"], kwargs["processing_class"])
            if self._patience is not None and self._since_best(args) >= self._patience:
                if state.is_world_process_zero and step < state.max_steps:
                    name = _own_metric(args) or "accuracy"
                    logger.warning(f"stopped at step {step}: {name} has not risen in {self._patience} suites in a row")
                control.should_training_stop = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Add the scores of this step to the metrics; run the suite if it has not run at this step."""
        has_scores = self._last is not None and self._last[0] == state.global_step
        needs_scores = self._steps is None or not self._training or _own_metric(args) is not None
        if not has_scores and needs_scores:
            if not self._cases:
                self._prepare(args, kwargs["model"], kwargs["processing_class"])
            self._run(args, state, control, kwargs["model"], kwargs["processing_class"])
        if has_scores or needs_scores:
            metrics.update(self._last[1])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the last scores, since the best weights may have been loaded."""
        self._training, self._last = False, None

    # The suite

    def _prepare(self, args: TrainingArguments, model: PreTrainedModel, processing_class: Any) -> None:
        tokenizer, positions = _tokenizer(processing_class), positions_of(_bare(model).config)
        self._cases, _ = cases_of(
            self._rows,
            tokenizer,
            key_step_method=self._method,
            chat_template_kwargs=self._template_values,
            positions=positions,
            limit=self._limit,
            where="suite dataset",
        )
        if self._accuracy_rows:
            rows = map(with_prompt, reversed(self._rows))
            answered = {json.dumps(row["prompt"]): row for row in rows if row.get("answer")}
            if not answered:
                raise InputError("suite dataset: no row has an `answer`; set `suite_accuracy_rows: 0`")
            rows = list(reversed(answered.values()))[: self._accuracy_rows]
            self._problems = problems_of(rows, where="suite dataset")
            length = self._decoding.max_new_tokens
            self._prompts = encode(
                self._problems,
                tokenizer,
                max_new_tokens=length,
                positions=positions,
                chat_template_kwargs=self._template_values,
            )
        self._check_metric(args)

    def _since_best(self, args: TrainingArguments) -> int:
        """Return how many suites have been run since the one with the best score, the first of equals."""
        name = _own_metric(args) or "accuracy"
        sign = -1 if name in LOWER_IS_BETTER else 1
        scores = [sign * entry[name] for _, entry in sorted(self._history.items()) if name in entry]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def _check_metric(self, args: TrainingArguments) -> None:
        metric = _own_metric(args)
        if metric is None and self._patience is not None and not self._problems:
            raise InputError("`stop_at_plateau` watches the accuracy, which needs `accuracy_rows` of the suite")
        if metric is None:
            return
        names = (*_PAIR_SCORES, *(_ACCURACY_SCORES if self._problems else ()))
        if metric not in names:
            raise InputError(
                f"`metric_for_best_model: {PREFIX}{metric}` is not one of {', '.join(names)}"
                + ("" if self._problems else "; accuracy needs `suite_accuracy_rows`")
            )
        if args.greater_is_better == (metric in LOWER_IS_BETTER):
            value = str(not args.greater_is_better).lower()
            raise InputError(f"`metric_for_best_model: {PREFIX}{metric}` needs `greater_is_better: {value}`")

    def _run(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        processing_class: Any,
    ) -> None:
        scores = self._measure(args, _bare(model), _tokenizer(processing_class))
        self._last = state.global_step, {f"eval_{PREFIX}{name}": value for name, value in scores.items()}
        if self._training:
            self._history[state.global_step] = {"step": state.global_step, "epoch": state.epoch, **scores}
            if state.is_world_process_zero:
                lines = "".join(json.dumps(line) + "\n" for line in self._history.values())
                write_whole(Path(args.output_dir) / HISTORY_FILE, lines)
        self._log(state, control, dict(self._last[1]))

    def _measure(
        self, args: TrainingArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, float]:
        """Return the scores, which are the same on every process."""
        process = PartialState()
        # With sharded weights each forward needs all processes, so each process runs every batch.
        sharded = process.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        rank, ranks = (0, 1) if sharded else (process.process_index, process.num_processes)
        size = self._batch_size or args.per_device_eval_batch_size
        results: dict[str, Any] = {"pairs": {}, "answers": {}, "error": None}
        try:
            scorer = ModelScorer(
                model,
                tokenizer,
                self._cases,
                batch_size=size,
                layout=self._layout(),
                half_precision=args.bf16 or args.fp16,
            )
            batches = scorer.plan()[rank::ranks]
            for batch, items in zip(batches, scorer.run(batches), strict=True):
                # Log-probabilities of tokens are large, and the scores do not need them.
                results["pairs"] |= {n: item | {"tokens": None} for n, item in zip(batch, items, strict=True)}
            results["answers"] = self._answers(model, tokenizer, size, rank, ranks)
        except (InputError, FloatingPointError) as error:
            results["error"] = error  # raised on every process: the others would wait for this one
        gathered = [results] if sharded else gather_object([results])
        for part in gathered:
            if part["error"] is not None:
                raise part["error"]
        scores = {}
        for kind, name in (("suite", "pairs"), ("evaluate", "answers")):
            items = {number: item for part in gathered for number, item in part[name].items()}
            if items:
                # In the order of the data, so that sums are the same with any number of processes.
                scores |= mean_scores([items[number] for number in sorted(items)], kind)
        return {name: value for name, value in scores.items() if value is not None}

    def _answers(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: int, rank: int, ranks: int
    ) -> dict[int, Any]:
        if not self._problems:
            return {}
        generator = ModelGenerator(model, tokenizer, self._decoding, batch_size=size, batching="padded")
        batches = generator.plan([len(prompt) for prompt in self._prompts])[rank::ranks]
        return {
            number: checked_item(self._problems[number], responses)
            for batch, samples in generator.run(self._prompts, batches)
            for number, responses in zip(batch, samples, strict=True)
        }

    def _layout(self) -> str:
        scorer = getattr(self.trainer, "score_pairs", None)
        return "padded" if scorer is not None and scorer.tree is None else "auto"

    def _log(self, state: TrainerState, control: TrainerControl, logs: dict[str, float]) -> None:
        if self.trainer is None:
            logger.warning_once(
                f"the scores of the suite go to {HISTORY_FILE} and the log history alone; set `trainer` of "
                "the callback to have them reported"
            )
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
            return
        should_log = control.should_log
        # In eval mode, the trainer does not add its pending training metrics to this entry.
        with undisturbed(self.trainer.model):
            self.trainer.log(logs)
        control.should_log = should_log


def _evaluates(args: TrainingArguments, state: TrainerState) -> bool:
    """Return whether the trainer evaluates in this training."""
    if args.eval_on_start or args.eval_strategy == "epoch":
        return True
    return args.eval_strategy == "steps" and state.eval_steps <= state.max_steps


def _own_metric(args: TrainingArguments) -> str | None:
    """Return the score that selects the best weights, if it is one of the suite."""
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    return metric.removeprefix(PREFIX) if metric.startswith(PREFIX) else None


def _tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    return getattr(processing_class, "tokenizer", processing_class)


def _bare(model: Any) -> PreTrainedModel:
    return model.module if isinstance(model, DistributedDataParallel) else model
