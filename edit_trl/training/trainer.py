"""DualCoTTrainer (L3): trains a student on dual chains of thought, as `trl.SFTTrainer` trains on text."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoProcessor,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.data.preparation import PreparationReport, RowPreparation, prepare_dual_cots
from edit_trl.data.row import is_conversational
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.hub.card_facts import (
    OBJECTIVE_FIELDS,
    TRAINING_FIELDS,
    CardFacts,
    Example,
    StageFacts,
    adapter_options,
    pick_examples,
    plain_logs,
    plain_options,
    quantization_name,
    write_facts,
)
from edit_trl.hub.card_templates import EDIT_CITATION
from edit_trl.hub.model_card import package_versions, write_card
from edit_trl.hub.repository import account, model_files, open_repository, upload
from edit_trl.losses import DualCoTLoss, masked_mean
from edit_trl.models.pairs.collation import EXAMPLE_COLUMNS, SIDES, DualCoTCollator
from edit_trl.models.pairs.scoring import PairLogps, PairScorer, make_pair_scorer
from edit_trl.training.argument_checks import _check_arguments
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.fork_selection import fork_histogram, hardest_forks, keep_hard_forks
from edit_trl.training.metrics import LossWatch, MetricTotals, chosen_metrics, pair_metrics
from edit_trl.training.objective import Objective
from edit_trl.training.quantization import settle_adapter_dtype
from edit_trl.training.reference import adapter_off, add_scores
from edit_trl.training.resuming.resumable import ResumableTrainer
from edit_trl.training.sampling import (
    LengthGroups,
    TokenBudgetBatches,
    check_budget,
    pair_lengths,
    token_budget_loader,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig

logger = logging.get_logger(__name__)


class DualCoTTrainer(ResumableTrainer):
    """Trainer for key-step learning on dual CoTs (EDIT, arXiv 2405.19737), and for its warm-up.

    Every option of `trl.SFTTrainer` means the same here. The objective is
    `edit_trl.losses.dual_cot_loss` with the weights in `args`, averaged over the pairs of an
    optimizer step.

    Args:
        model: A model id, a path, a model, or a `PeftModel` whose adapter goes on training.
        args: A `DualCoTConfig`; the defaults where None.
        data_collator: A `DualCoTCollator` of one's own.
        train_dataset: Dual CoTs: `prompt`, `chosen`, `rejected`, plain strings or conversational.
        eval_dataset: Likewise, or a dict of such.
        processing_class: The tokenizer; the model's own where None.
        compute_metrics: Gets, per pair, the mean log-probabilities (correct chain, wrong chain) as
            predictions and 0, the index of the right one, as label.
        callbacks: As in `transformers.Trainer`.
        optimizers: As in `transformers.Trainer`.
        optimizer_cls_and_kwargs: As in `transformers.Trainer`.
        quantization_config: As in `trl.SFTTrainer`; needs a model id or path.
        peft_config: Trains a new adapter.

    Attributes:
        preparation_reports: Per dataset name, how many rows were kept, dropped and cut, and why.
        objective: The loss as `args` sets it.
        score_pairs: Log-probabilities of a batch's chains, in the layout that was chosen.

    Raises:
        InputError: Rows, options or adapter that cannot be trained on; before a model is loaded.

    Example:
        ```python
        from datasets import load_dataset
        from edit_trl import DualCoTConfig, DualCoTTrainer

        trainer = DualCoTTrainer(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            args=DualCoTConfig("SmolLM2-135M-EDIT"),
            train_dataset=load_dataset("json", data_files="dual_cots.jsonl", split="train"),
        )
        trainer.train()
        ```
    """

    _tag_names = ["trl", "edit_trl", "dual-cot"]  # noqa: RUF012 (as in TRL)
    _name = "EDIT"
    _paper = {  # noqa: RUF012 (as in TRL)
        "title": "Capture the Key in Reasoning to Enhance CoT Distillation Generalization",
        "id": "2405.19737",
        "citation": EDIT_CITATION,
    }

    # The loss is divided by the pairs of the whole optimizer step, so the Trainer must not divide it
    # by the accumulation steps again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: DualCoTConfig | None = None,
        data_collator: DualCoTCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (
            None,
            None,
        ),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        name = model if isinstance(model, str) else model.config._name_or_path
        args = args or DualCoTConfig(f"{Path(name).name or 'student'}-EDIT")
        if isinstance(model, str):  # pickles are not loaded
            args.model_init_kwargs = {"use_safetensors": True, **(args.model_init_kwargs or {})}
        _check_arguments(model, args, train_dataset, peft_config, data_collator)
        processing_class = processing_class or AutoProcessor.from_pretrained(
            name,
            revision=(args.model_init_kwargs or {}).get("revision"),
            trust_remote_code=args.trust_remote_code,
        )
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = args.eos_token or tokenizer.eos_token

        # Before the base class loads the model: bad rows are known in seconds. Not where the chat
        # template comes with the model; the base class then calls `_prepare_dataset` after cloning it.
        self.preparation_reports: dict[str, PreparationReport] = {}
        self._examples: list[Example] = []
        self._conversational = False
        if args.chat_template_path is None:
            train_dataset = self._prepare_dataset(train_dataset, processing_class, args)
            eval_dataset = _map_datasets(
                eval_dataset,
                lambda dataset, key: self._prepare_dataset(dataset, processing_class, args, dataset_name=key),
            )
        self._totals = {"train": MetricTotals(), "eval": MetricTotals()}
        self._tokens_run = 0
        self._losses = LossWatch()
        self.objective = Objective(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or DualCoTCollator(tokenizer.pad_token_id, args.pad_to_multiple_of),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        settle_adapter_dtype(self.model, args.fp16)
        self.score_pairs = self._pair_scorer()
        for callback in callbacks or ():
            if hasattr(callback, "trainer"):
                callback.trainer = self  # it logs through the trainer
        if args.max_tokens_per_batch is not None:
            lengths = pair_lengths(self.train_dataset)
            check_budget(lengths, args.max_tokens_per_batch, self.data_collator.layout)
        by_fork = args.max_fork_confidence is not None or args.hardest_forks is not None
        if by_fork or args.reference == "precomputed":
            self.train_dataset = self._drop_easy_forks(self._score(self.train_dataset, "train"))
        if args.reference == "precomputed":
            self.eval_dataset = _map_datasets(self.eval_dataset, self._score)

    def _pair_scorer(self) -> PairScorer:
        parallelism = self.accelerator.parallelism_config
        sharded = parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled)
        longest = max(range(len(self.train_dataset)), key=self.train_dataset["unique_length"][:].__getitem__)
        return make_pair_scorer(
            self.model,
            self.data_collator,
            self.args.layout,
            check_example=self.train_dataset[longest],
            half_precision=self.args.bf16 or self.args.fp16,
            obstacle="context parallelism cuts the row into pieces" if sharded else None,
        )

    # Data

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: DualCoTConfig,
        packing: bool = False,
        formatting_func: Callable | None = None,
        dataset_name: str = "train",
    ) -> Dataset:
        """TRL's hook for datasets given to `__init__` and `evaluate`; leaves a prepared one as it is."""
        if "chosen_key_mask" in dataset.column_names:
            return dataset
        validate_dual_cots(dataset, source=f"{dataset_name} dataset")
        rows = dataset
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if args.eos_token is not None:
            tokenizer.eos_token = args.eos_token
        preparation = RowPreparation(
            tokenizer,
            args.key_step_method,
            args.max_length,
            args.truncate_long,
            args.max_key_fraction,
            args.key_step_seed,
        )
        with PartialState().main_process_first():
            dataset, report = prepare_dual_cots(
                dataset, preparation, name=dataset_name, num_proc=args.dataset_num_proc
            )
        self.preparation_reports[dataset_name] = report
        if dataset_name == "train":
            self._examples = pick_examples(rows, tokenizer, args.key_step_method)
            self._conversational = is_conversational(rows[0])
        log = logger.warning if report.dropped or report.truncated else logger.info
        if PartialState().is_main_process:
            log(f"{dataset_name} dataset: {report}")
        return dataset

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [*EXAMPLE_COLUMNS, "length"]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Rows of a similar length together where they are padded, unless another order is asked for."""
        dataset, args = train_dataset or self.train_dataset, self.args
        strategy = args.train_sampling_strategy
        if strategy == "group_by_length" or (self.data_collator.layout == "padded" and strategy == "random"):
            size = args.train_batch_size * args.gradient_accumulation_steps
            return LengthGroups(dataset["length"][:], size, self._data_seed())
        return super()._get_train_sampler(train_dataset)

    def _data_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def get_train_dataloader(self) -> DataLoader:
        """Also batches by tokens (`max_tokens_per_batch`)."""
        args = self.args
        if args.max_tokens_per_batch is None:
            return super().get_train_dataloader()
        batches = TokenBudgetBatches(
            pair_lengths(self.train_dataset),
            args.max_tokens_per_batch,
            layout=self.data_collator.layout,
            shuffle=args.train_sampling_strategy != "sequential",
            seed=self._data_seed(),
            processes=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
        )
        dataset = self._remove_unused_columns(self.train_dataset, description="Training")
        return token_budget_loader(dataset, batches, self.data_collator, args, self.accelerator.device)

    def _score(self, dataset: Dataset, name: str) -> Dataset:
        """Add the student's scores before training: at the fork, and for the preference term."""

        def score_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            logps = self.score_pairs(self.model, self._prepare_inputs(batch))
            scores = self.objective.scores(logps, batch)
            fork = logps.chosen.gather(1, batch["fork"].unsqueeze(1)).squeeze(1).exp()
            return {
                "reference_chosen_score": scores[0],
                "reference_rejected_score": scores[1],
                "fork_confidence": fork,
            }

        return add_scores(
            dataset,
            score_batch,
            model=self.model,
            accelerator=self.accelerator,
            collator=self.data_collator,
            batch_size=self.args.per_device_eval_batch_size,
            settings=f"{self.args.preference_scope} {self.args.preference_reduction}",
            name=name,
        )

    def _drop_easy_forks(self, dataset: Dataset) -> Dataset:
        logger.warning(fork_histogram(dataset["fork_confidence"][:]))
        limit, share = self.args.max_fork_confidence, self.args.hardest_forks
        report = self.preparation_reports["train"]
        kept = dataset
        if limit is not None:
            kept = keep_hard_forks(dataset, limit)
            report.dropped[f"fork confidence over {limit}"] = len(dataset) - len(kept)
        if share is not None:
            before, kept = len(kept), hardest_forks(kept, share)
            report.dropped[f"not among the hardest {share:g} of the forks"] = before - len(kept)
        if kept is not dataset:
            report.kept = len(kept)
            logger.warning(f"train dataset: {report}")
        return kept

    # The step

    def _logps(self, model: nn.Module, batch: dict[str, Any]) -> PairLogps:
        """Log-probabilities of a batch's chains; of the wrong ones where anybody looks at them.

        In a warm-up only the metrics do, so they are run for the steps that are logged alone, and without
        gradients: it takes the time and the memory of the correct chains, and the logs are as full.
        """
        if self.objective.needs_rejected or not self.model.training:
            return self.score_pairs(model, batch)
        rejected = None
        if self._is_logged():
            with torch.no_grad():
                rejected = self.score_pairs(model, batch).rejected
        return replace(self.score_pairs(model, batch, with_rejected=False), rejected=rejected)

    def _is_logged(self) -> bool:
        args, step = self.args, self.state.global_step
        if args.logging_strategy != "steps" or (args.logging_first_step and step == 0):
            return True
        return (step + 1) % self.state.logging_steps == 0

    def _reference_scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        if self.args.reference == "none":
            return None
        if self.args.reference == "adapter_off":
            with torch.no_grad(), adapter_off(self.accelerator.unwrap_model(model)):
                return self.objective.scores(self.score_pairs(model, batch), batch)
        if "reference_chosen_score" not in batch:
            raise InputError(
                "`reference: precomputed` scores the datasets that the trainer is made with, before "
                "training; this one came later. Pass it as `eval_dataset` to the trainer"
            )
        return batch["reference_chosen_score"], batch["reference_rejected_score"]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Also `lr_decay_per_epoch`, for which transformers has no schedule."""
        decay = self.args.lr_decay_per_epoch
        if decay is not None and self.lr_scheduler is None:
            batches = len(self.get_train_dataloader())
            steps_per_epoch = math.ceil(batches / self.args.gradient_accumulation_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: decay ** (step // steps_per_epoch)
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also count what the loss of the optimizer step is divided by, over all processes.

        Returns:
            The batches and (pairs, tokens of correct chains, tokens of wrong ones), shape (3,).
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            batches[-1]["own_pairs"] = self._own_pairs(batches[-1], self.args.train_batch_size)
        # Known on this side: nothing is read from the device.
        examples = [ex for b in batches for ex in b["layout"].examples[: b.get("own_pairs")]]
        counts = [len(examples), *(sum(len(ex[f"{side}_ids"]) for ex in examples) for side in SIDES)]
        return batches, self.accelerator.reduce(torch.tensor(counts, device=device), "sum")

    def _own_pairs(self, batch: dict[str, Any], batch_size: int) -> int | None:
        """How many of a batch's pairs count; None for all. They come first.

        Where the last pairs of an epoch are too few for all processes, accelerate fills their batches with
        pairs from its beginning, so that all go on together. Those must not count twice.
        """
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if processes == 1 or (self.args.max_tokens_per_batch is not None and self.model.training):
            return None  # batches filled by tokens are dealt out evenly
        remainder = state.remainder
        if self.model.training and not self.args.dataloader_drop_last:
            # After a resume accelerate does not know it: `SkipBatchSampler` has no `batch_size`.
            remainder = len(self.train_dataset) % (batch_size * processes)
        if not state.end_of_dataloader or remainder <= 0:
            return None
        before = self.accelerator.process_index * batch_size
        return min(max(remainder - before, 0), len(batch["fork"]))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ):
        """The mean objective over the pairs of the optimizer step, as this batch's share of it."""
        reference_scores = self._reference_scores(model, inputs)
        logps = self._logps(model, inputs)
        own = inputs.get("own_pairs")
        examples = inputs["layout"].examples[:own]
        step_means, scale = None, 1 / max(len(examples), 1)
        if own:
            tokens = [sum(len(ex[f"{side}_ids"]) for ex in examples) * scale for side in SIDES]
            step_means = tuple(torch.tensor(tokens, device=self.accelerator.device).clamp(min=1))
        if num_items_in_batch is not None:
            pairs = num_items_in_batch[0]
            step_means = tuple((num_items_in_batch[1:] / pairs).clamp(min=1))
            # Data-parallel training averages gradients over processes, `pairs` counts all of them.
            scale = self.accelerator.num_processes / pairs
        parts = self.objective.loss(logps, inputs, reference_scores, step_means)
        loss = parts.loss[:own].sum() * scale
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * logps.aux_loss / steps
        self._losses.add(loss, inputs["row"], self.state.global_step, self.model.training)
        self._record(parts, logps, inputs, own)
        if not return_outputs:
            return loss
        # Asked for in evaluation alone, where both chains are run.
        sides = ((logps.chosen, inputs["chosen_mask"]), (logps.rejected, inputs["rejected_mask"]))
        return loss, {"logps": torch.stack([masked_mean(*side) for side in sides], dim=1)}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Per pair, the mean log-probabilities of both chains as predictions, and 0 as the label."""
        inputs = self._prepare_inputs(inputs)
        inputs["own_pairs"] = self._own_pairs(inputs, self.args.eval_batch_size)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, outputs["logps"], torch.zeros_like(inputs["fork"])

    def _check_finite(self) -> None:
        ids = {}
        if self.train_dataset is not None:
            ids = dict(zip(self.train_dataset["row"], self.train_dataset["row_id"], strict=True))
        self._losses.check(ids)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._check_finite()  # such weights are not worth keeping
        super()._save_checkpoint(*args, **kwargs)

    # Metrics

    def _progress(self) -> dict[str, Any]:
        totals = {mode: totals.state() for mode, totals in self._totals.items()}
        return super()._progress() | {"tokens_run": self._tokens_run, "totals": totals}

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        super()._restore_progress(progress)
        self._tokens_run = progress["tokens_run"]
        for mode, totals in self._totals.items():
            totals.restore(progress["totals"][mode], self.accelerator.device)

    def _record(
        self, parts: DualCoTLoss, logps: PairLogps, batch: dict[str, Tensor], own: int | None
    ) -> None:
        totals = self._totals["train" if self.model.training else "eval"]
        # Of the process's own pairs, none included: all processes add up the same totals.
        parts = DualCoTLoss(*(getattr(parts, field.name)[:own] for field in fields(parts)))
        masks = [batch[f"{side}_{name}"][:own] for name in ("mask", "key_mask") for side in SIDES]
        forks = [batch[f"{side}_fork_mask"][:own].any(-1) for side in SIDES]
        paired = forks[0] | forks[1]
        chosen, fork = logps.chosen[:own], batch["fork"][:own]
        totals.add(chosen_metrics(parts, chosen, masks[0], masks[2], fork, paired))
        if logps.rejected is not None:
            totals.add(pair_metrics(chosen, logps.rejected[:own], *masks, paired))
        if self.model.training and own != 0:
            self._tokens_run += logps.tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last log, and the drift of the correct chains."""
        self._check_finite()
        mode = "train" if self.model.training else "eval"
        metrics = self._totals[mode].read(lambda totals: self.accelerator.reduce(totals, "sum"))
        if mode == "train" and metrics:
            tokens = torch.tensor(self._tokens_run, device=self.accelerator.device)
            self._total_train_tokens += int(self.accelerator.reduce(tokens, "sum"))
            self._tokens_run = 0
            metrics["num_tokens"] = self._total_train_tokens
        if "logps/chosen" in metrics:
            metrics["drift/chosen"] = self._drift(mode, metrics["logps/chosen"])
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        super().log(logs, start_time)

    def _drift(self, mode: str, logp: float) -> float:
        """How far the correct chains' mean log-probability has moved since the first log.

        The start is read from the log history, which checkpoints keep.
        """
        key = "eval_logps/chosen" if mode == "eval" else "logps/chosen"
        start = next((entry[key] for entry in self.state.log_history if key in entry), logp)
        drift, limit = logp - start, self.args.displacement_warning
        if limit is not None and drift < -limit:
            logger.warning_once(
                f"likelihood displacement: the correct chains' mean log-probability has fallen by "
                f"more than {limit} nats a token since the start. Lower `rejected_key_weight`, "
                "`preference_weight` or `learning_rate`, or raise `chosen_context_weight`"
            )
        return drift

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer pickles its arguments beside the weights, the Hub token with them.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the card, its picture and `card.json` into the output folder: what was trained on what."""
        if self.is_world_process_zero():
            tags = {*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])}
            folder = Path(self.args.output_dir)
            facts = CardFacts(
                "adapter" if is_peft_model(self.model) else "model", [self._facts(dataset_name)]
            )
            write_facts(folder, facts)
            write_card(folder, facts, model_name=model_name, tags=sorted(tags))

    def _facts(self, dataset_name: str | None) -> StageFacts:
        args, config = self.args, self.model.config
        quantization = getattr(config, "quantization_config", None)
        return StageFacts(
            name=Path(args.output_dir).name,
            base_model=config._name_or_path,
            revision=(args.model_init_kwargs or {}).get("revision"),
            adapter=adapter_options(self.model) if is_peft_model(self.model) else None,
            quantization=quantization_name(quantization) if quantization else None,
            dataset=dataset_name,
            rows={name: str(report) for name, report in self.preparation_reports.items()},
            objective=plain_options(args, OBJECTIVE_FIELDS),
            training=plain_options(args, TRAINING_FIELDS),
            processes=self.accelerator.num_processes,
            logs=plain_logs(self.state.log_history),
            results=next((e for e in reversed(self.state.log_history) if "train_runtime" in e), {}),
            examples=self._examples,
            conversational=self._conversational,
            versions=package_versions(),
        )

    # The Hub: only what `model_files` names goes there, and no checkpoints

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, private unless `hub_private_repo` is false; see that it may be written to."""
        if not self.is_world_process_zero():
            return
        token, args = token or self.args.hub_token, self.args
        repo_id = args.hub_model_id or f"{account(token) or 'your-name'}/{Path(args.output_dir).name}"
        private = args.hub_private_repo if private is None else private
        self.hub_model_id = open_repository(
            repo_id, private=private, revision=args.hub_revision, token=token
        ).id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> str | None:
        """Save the model and its card and upload them; returns the page of the commit.

        `card` are arguments of `create_model_card`. It always waits for the upload (`blocking`).
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.create_model_card(**card)
        if not self.is_world_process_zero():
            return None
        return upload(
            model_files(Path(self.args.output_dir)),
            self.hub_model_id,
            message=commit_message,
            revision=revision or self.args.hub_revision,
            token=token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: checkpoints hold optimizer states and pickles. What is pushed is the finished model."""


def _map_datasets(datasets, function: Callable[[Dataset, str], Dataset]):
    """Apply a function to an eval dataset, to each of a dict of them, or to none."""
    if not datasets:
        return datasets
    if isinstance(datasets, dict):
        return {name: function(dataset, name) for name, dataset in datasets.items()}
    return function(datasets, "eval")
