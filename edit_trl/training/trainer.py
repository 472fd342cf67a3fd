"""DualCoTTrainer: trains a student on dual chains of thought, as `trl.SFTTrainer` trains on text."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.trainer_utils import PredictionOutput, TrainOutput

from edit_trl.data.preparation import PreparationReport, map_datasets, prepare_for_training
from edit_trl.data.row import is_conversational, refuse_splits, with_prompts
from edit_trl.hub.card_facts import Example, pick_examples
from edit_trl.hub.card_templates import EDIT_CITATION
from edit_trl.key_steps import SIDES
from edit_trl.losses import masked_mean
from edit_trl.models.chat_templates import share_template
from edit_trl.models.pairs.collation import EXAMPLE_COLUMNS, DualCoTCollator
from edit_trl.models.pairs.noise import noisy_embeddings
from edit_trl.models.pairs.scoring import PairLogps, PairScorer, make_pair_scorer
from edit_trl.training import fork_selection
from edit_trl.training.argument_checks import check_arguments, check_model, tell_padding
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.objective import Objective, share_of_step
from edit_trl.training.progress import ProgressMixin
from edit_trl.training.publishing import PublishingMixin
from edit_trl.training.quantization import keep_unpacked, settle_adapter_dtype
from edit_trl.training.reference import add_scores, pair_scores, reference_scores
from edit_trl.training.resuming.resumable import ResumableTrainer
from edit_trl.training.run_log import LoggingMixin, RunLog, is_logged
from edit_trl.training.sampling import check_budget, length_groups, own_pairs, pair_lengths, train_batches
from edit_trl.training.student import check_added_tokens, check_rows, load_student, replaced_options, settle_processing


class DualCoTTrainer(PublishingMixin, LoggingMixin, ProgressMixin, ResumableTrainer):
    """Trainer for key-step learning on dual CoTs (EDIT, arXiv 2405.19737), and for its warm-up.

    Every option of `trl.SFTTrainer` means the same here. The objective is `edit_trl.losses.dual_cot_loss`
    with the weights in `args`, averaged over the pairs of an optimizer step.

    Args:
        model: A model id, a path, a model, or a `PeftModel` whose adapter is trained further.
        args: A `DualCoTConfig`; the defaults where None.
        data_collator: A `DualCoTCollator`; one for the tokenizer where None.
        train_dataset: Dual CoTs: `prompt`, `chosen`, `rejected`, plain strings or conversational.
        eval_dataset: Dual CoTs to evaluate on, or a dict of several such datasets.
        processing_class: The tokenizer; the model's own where None.
        compute_metrics: Receives, per pair, the mean log-probabilities (correct chain, wrong chain) as
            predictions and 0, the index of the correct chain, as label.
        callbacks, optimizers, optimizer_cls_and_kwargs: As in `transformers.Trainer`. Its progress bar is a
            `edit_trl.training.progress.TrainingProgress`.
        quantization_config: As in `trl.SFTTrainer`; needs a model id or path.
        peft_config: Trains a new adapter.

    Attributes:
        preparation_reports: The report of each dataset by name (`train`, `eval`, or `eval_NAME` of several): the pairs
            kept, dropped and cut, with reasons.
        objective: The loss that `args` configures.
        score_pairs: Computes the log-probabilities of a batch's chains, in the layout of the run.

    Raises:
        InputError: Rows, options or an adapter that cannot be trained on; before a model is loaded.

    Example:
        ```python
        from edit_trl import DualCoTConfig, DualCoTTrainer, load_dual_cots

        trainer = DualCoTTrainer(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            args=DualCoTConfig("SmolLM2-135M-EDIT"),
            train_dataset=load_dual_cots("dual_cots.jsonl"),
        )
        trainer.train()
        ```
    """

    data_collator: DualCoTCollator
    _tag_names = ["trl", "edit_trl", "dual-cot"]  # noqa: RUF012 (as in TRL)
    _name = "EDIT"
    _paper = {  # noqa: RUF012 (as in TRL)
        "title": "Capture the Key in Reasoning to Enhance CoT Distillation Generalization",
        "id": "2405.19737",
        "citation": EDIT_CITATION,
    }

    # The loss is a share of the whole optimizer step: the Trainer must not divide it by accumulation steps.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]  # TRL gives it the value None and no type

    # The step comes first: it is what this class adds to TRL's.

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this batch's share of the mean objective over the pairs of the optimizer step."""
        reference = reference_scores(
            self.args.reference,
            self.accelerator.unwrap_model(model),
            inputs,
            lambda batch: self.objective.scores(self.score_pairs(model, batch), batch),
        )
        logps = self._score_chains(model, inputs)
        own = inputs.get("own_pairs")
        share = share_of_step(inputs["layout"].examples, own, num_items_in_batch, self.accelerator)
        parts = self.objective.loss(logps, inputs, reference, share.mean_lengths)
        loss = parts.loss[:own].sum() * share.factor
        if self.aux_loss_enabled:
            assert logps.aux_loss is not None  # the model returns it where it is enabled
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * logps.aux_loss / steps
        self._run_log.add(loss, parts, logps, inputs, own, self.state.global_step, self._mode)
        if not return_outputs:
            return loss
        # Evaluation alone asks for outputs, and runs both chains.
        means = [masked_mean(getattr(logps, side), inputs[f"{side}_mask"]) for side in SIDES]
        return loss, {"logps": torch.stack(means, dim=1)}

    def _score_chains(self, model: nn.Module, batch: dict[str, Any]) -> PairLogps:
        """Return log-probabilities of a batch's chains.

        In a warm-up only the metrics use the wrong chains. They are then run without gradients, in the steps that
        are logged, so that the other steps take the time and memory of the correct chains.
        """
        if self.objective.needs_rejected or not self.model.training:
            return self.score_pairs(model, batch)
        rejected = None
        if is_logged(self.args, self.state):
            with torch.no_grad():
                rejected = self.score_pairs(model, batch).rejected
        return replace(self.score_pairs(model, batch, with_rejected=False), rejected=rejected)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Also count the pairs and tokens of the optimizer step over all processes, to normalize the loss.

        Returns:
            The batches and (pairs, tokens of correct chains, tokens of wrong chains), shape (3,).
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            batches[-1]["own_pairs"] = self._own_pairs(batches[-1], self.args.train_batch_size)
        # Counted on the host: nothing is read from the device.
        examples = [ex for b in batches for ex in b["layout"].examples[: b.get("own_pairs")]]
        counts = [len(examples), *(sum(len(ex[f"{side}_ids"]) for ex in examples) for side in SIDES)]
        return batches, self.accelerator.reduce(torch.tensor(counts, device=device), "sum")

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Return, per pair, the mean log-probabilities of both chains as predictions, and 0 as the label."""
        inputs = self._prepare_inputs(inputs)
        inputs["own_pairs"] = self._own_pairs(inputs, self.args.eval_batch_size)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, outputs["logps"], torch.zeros_like(inputs["fork"])

    def _own_pairs(self, batch: dict[str, Any], batch_size: int) -> int | None:
        """Return how many of a batch's pairs count; see `edit_trl.training.sampling.own_pairs`."""
        if not self.model.training:
            return own_pairs(len(batch["fork"]), batch_size, self.accelerator)
        if self.args.max_tokens_per_batch is not None:
            return None  # batches filled by tokens are dealt out evenly
        size = None if self.args.dataloader_drop_last else len(self.train_dataset)
        # The size in use, which `auto_find_batch_size` makes smaller.
        return own_pairs(len(batch["fork"]), self._train_batch_size, self.accelerator, size)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as in `ResumableTrainer`, with noise on the embeddings (`neftune_noise_alpha`)."""
        student = self.accelerator.unwrap_model(self.model)
        with noisy_embeddings(student, self.args.neftune_noise_alpha, self.score_pairs.chain_lengths):
            return super().train(*args, **kwargs)

    # Construction

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: DualCoTConfig | None = None,
        data_collator: DualCoTCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ):
        check_model(model)
        name = model if isinstance(model, str) else model.config._name_or_path
        args = args or DualCoTConfig(f"{Path(name).name or 'student'}-EDIT")
        check_arguments(model, args, train_dataset, eval_dataset, peft_config, data_collator, compute_metrics)
        processing_class, options = settle_processing(processing_class, model, args, peft_config)
        tokenizer = share_template(processing_class)

        self.preparation_reports: dict[str, PreparationReport] = {}
        self._examples: list[Example] = []  # for the card, as the next
        self._conversational = False
        # Before the model is loaded, so that bad rows are reported within seconds. Not where the chat template brings
        # tokens: the base class then calls `_prepare_dataset` after adding them.
        if options["chat_template_path"] is None:
            prepare = partial(self._prepare_dataset, processing_class=processing_class, args=args)
            train_dataset = prepare(train_dataset)
            eval_dataset = map_datasets(eval_dataset, lambda rows, name: prepare(rows, dataset_name=name))
        student: Any = model
        if isinstance(model, str):
            student = load_student(model, args, quantization_config)
            quantization_config = options["model_init_kwargs"] = None  # or TRL warns that it does not load with them
        if (added := options["chat_template_path"]) is not None and (peft_config or is_peft_model(student)):
            check_added_tokens(student, added)
        multiple: Any = args.pad_to_multiple_of  # TRL has made a number of its words
        self._run_log = RunLog(args.displacement_warning)
        self.objective: Objective = Objective(args)
        with replaced_options(args, **options):
            super().__init__(
                model=student,
                args=args,
                data_collator=data_collator or DualCoTCollator(tokenizer.pad_token_id, multiple),
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
        check_rows(self.model, tokenizer, self.train_dataset)
        keep_unpacked(self.model)
        settle_adapter_dtype(self.model, args.fp16)
        tell_padding(self.model, tokenizer, args)
        self.neftune_noise_alpha = None  # `train` adds the noise; the Trainer's is that of a row
        self.score_pairs: PairScorer = self._pair_scorer()
        self._score_before_training()

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

    def _score_before_training(self) -> None:
        """Check the token budget; add reference scores; drop the pairs whose forks are too easy."""
        args, layout = self.args, self.data_collator.layout
        if args.max_tokens_per_batch is not None:
            check_budget(pair_lengths(self.train_dataset), args.max_tokens_per_batch, layout)
        by_fork = args.max_fork_confidence is not None or args.hardest_forks is not None
        if by_fork or args.reference == "precomputed":
            scored, report = self._add_scores(self.train_dataset, "train"), self.preparation_reports["train"]
            limit, hardest = args.max_fork_confidence, args.hardest_forks
            self.train_dataset = fork_selection.choose(scored, limit, hardest, report)
        if args.reference == "precomputed":
            self.eval_dataset = map_datasets(self.eval_dataset, self._add_scores)

    def _add_scores(self, dataset: Dataset, name: str) -> Dataset:
        return add_scores(
            dataset,
            lambda batch: pair_scores(self.score_pairs(self.model, self._prepare_inputs(batch)), self.objective, batch),
            model=self.model,
            accelerator=self.accelerator,
            collator=self.data_collator,
            batch_size=self.args.per_device_eval_batch_size,
            settings=f"{self.args.preference_scope} {self.args.preference_reduction}",
            name=name,
        )

    # Data

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: Any,  # a DualCoTConfig
        packing: bool = False,
        formatting_func: Callable | None = None,
        dataset_name: str = "train",
    ) -> Dataset:
        """Prepare a dataset given to `__init__` or `evaluate`, as TRL's hook; a prepared one stays as it is."""
        # A format is a way to look at the rows; a transform makes others of them.
        if dataset.format["type"] != "custom" and dataset.format != dataset.with_format(None).format:
            dataset = dataset.with_format(None)
        if "chosen_key_mask" in dataset.column_names:
            return dataset
        dataset = with_prompts(dataset)
        tokenizer = share_template(processing_class)
        is_train = dataset_name == "train" and not self.preparation_reports  # an evaluation set may have that name
        name = dataset_name if is_train or dataset_name == "eval" else f"eval_{dataset_name}"
        prepared, report = prepare_for_training(dataset, tokenizer, args, name)
        self.preparation_reports[name] = report
        if is_train:
            self._examples = pick_examples(dataset, tokenizer, args.key_step_method)
            self._conversational = is_conversational(dataset[0])
        return prepared.shuffle(seed=args.seed) if args.shuffle_dataset else prepared

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predict, as in `transformers.Trainer`, for rows as they are given to `evaluate`.

        Returns:
            The mean log-probabilities of both chains of each pair as predictions, shape (pairs, 2), and 0 as labels.

        Raises:
            InputError: Rows that cannot be used; names them.
        """
        refuse_splits(test_dataset, "test_dataset")
        tokenizer: Any = self.processing_class
        prepared = self._prepare_dataset(test_dataset, tokenizer, self.args, dataset_name=metric_key_prefix)
        return super().predict(prepared, ignore_keys, metric_key_prefix)

    def _set_signature_columns_if_needed(self) -> None:
        columns: Any = [*EXAMPLE_COLUMNS, "length"]  # transformers gives the attribute the value None and no type
        self._signature_columns = columns

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Group rows of a similar length where they are padded, unless an option sets another order."""
        lengths = (train_dataset or self.train_dataset)["length"][:]
        groups = length_groups(lengths, self._train_batch_size, self.args, self.data_collator.layout)
        return super()._get_train_sampler(train_dataset) if groups is None else groups

    def get_train_dataloader(self) -> DataLoader:
        """Also fill batches by tokens (`max_tokens_per_batch`)."""
        if self.args.max_tokens_per_batch is None:
            return super().get_train_dataloader()
        dataset = self._remove_unused_columns(self.train_dataset, description="Training")
        columns = pair_lengths(self.train_dataset)
        return train_batches(dataset, columns, self._max_tokens, self.data_collator, self.args, self.accelerator)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """Also apply `lr_decay_per_epoch`, for which transformers has no schedule."""
        decay = self.args.lr_decay_per_epoch
        if decay is not None and self.lr_scheduler is None:
            batches = len(self.get_train_dataloader())
            steps = math.ceil(batches / self.args.gradient_accumulation_steps)
            scheduled: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(scheduled, lambda step: decay ** (step // steps))
            self._created_lr_scheduler = True  # so that another `train` makes another one
        return super().create_scheduler(num_training_steps, optimizer)
