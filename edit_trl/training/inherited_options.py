"""What becomes of every option of TRL and transformers in a run on dual CoTs: who honours it, or why it is refused.

Plain data, read with TRL 1.16 and transformers 5.24: the options of `SFTConfig` (with those of
`TrainingArguments`), `ModelConfig` and `ScriptArguments`. `edit_trl.training.option_checks` refuses what is refused.
"""

from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """An option that is refused when it is set.

    Attributes:
        reason: Continues the sentence "`option: value` ...": what it would do, why not here, what to use.
        allowed: Values that are accepted besides the default, since they ask for what is done anyway.
    """

    reason: str
    allowed: tuple[Any, ...] = ()


HONOURED: dict[str, tuple[str, ...]] = {
    # By the recipe and its stages: edit_trl.training.recipe, cli/train_recipe.py
    "recipe": (
        *("output_dir", "resume_from_checkpoint", "do_train", "do_eval", "push_to_hub", "hub_token"),
        *("hub_private_repo", "hub_model_id", "hub_revision", "model_name_or_path", "model_revision"),
        *("dtype", "attn_implementation", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
        *("lora_target_parameters", "lora_modules_to_save", "use_rslora", "use_dora", "load_in_8bit"),
        *("load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"),
    ),
    # By DualCoTTrainer: its datasets, batches, schedule, loss, evaluation and checkpoints
    "DualCoTTrainer": (
        *("eos_token", "pad_token", "max_length", "dataset_num_proc", "shuffle_dataset", "chat_template_path"),
        *("pad_to_multiple_of", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "train_sampling_strategy", "data_seed", "bf16", "fp16"),
        *("logging_nan_inf_filter", "prediction_loss_only", "neftune_noise_alpha", "auto_find_batch_size"),
        *("bf16_full_eval", "fp16_full_eval", "save_total_limit", "eval_on_start", "router_aux_loss_coef"),
    ),
    # By trl.SFTTrainer, whose constructor and training step are used
    "SFTTrainer": (
        *("model_init_kwargs", "trust_remote_code", "activation_offloading", "use_liger_kernel"),
        *("liger_kernel_config", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ),
    # By transformers.Trainer, whose training loop is used, and its callbacks
    "Trainer": (
        *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
        *("warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("optim_target_modules", "max_grad_norm", "tf32", "activation_checkpointing", "gradient_checkpointing"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
        *("log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
        *("trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay"),
        *("eval_use_gather_object", "eval_accumulation_steps", "save_only_model", "save_strategy", "save_steps"),
        *("save_on_each_node", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("restore_callback_states_from_checkpoint", "full_determinism", "seed", "use_cpu", "debug"),
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("skip_memory_metrics",),
    ),
    # By accelerate, which puts the model on its devices
    "accelerate": (
        *("accelerator_config", "parallelism_config", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
        *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config"),
        *("deepspeed",),
    ),
    # By DualCoTTrainer(compute_metrics=...), and refused without it
    "compute_metrics": ("batch_eval_metrics", "include_for_metrics", "eval_do_concat_batches"),
}
"""The options that are honoured, by whom."""

NOT_FOR_PAIRS = "does not apply to dual CoTs"

REFUSED: dict[str, Refusal] = {
    # Data that dual CoTs do not have, or a loss that is replaced
    "packing": Refusal(
        f"{NOT_FOR_PAIRS}: pairs are laid out without padding; remove it, or set `max_tokens_per_batch`"
    ),
    "packing_strategy": Refusal(f"{NOT_FOR_PAIRS}, since nothing is packed; remove it, or set `max_tokens_per_batch`"),
    "eval_packing": Refusal(f"{NOT_FOR_PAIRS}: pairs are laid out without padding; remove it", (False,)),
    "padding_free": Refusal(f"{NOT_FOR_PAIRS}; `layout: tree` has no padding. Remove it"),
    "completion_only_loss": Refusal(f"{NOT_FOR_PAIRS}: the loss is of the two chains, never of the prompt", (True,)),
    "assistant_only_loss": Refusal(f"{NOT_FOR_PAIRS}: the loss is of the two chains, which are the assistant's"),
    "loss_type": Refusal(
        f"{NOT_FOR_PAIRS}; choose by `chosen_loss` (nll or dft), `preference_loss` and the weights of the objective"
    ),
    "dataset_text_field": Refusal(f"{NOT_FOR_PAIRS}; rename columns with `column_mapping`"),
    "truncation_mode": Refusal(f"{NOT_FOR_PAIRS}: a cut chain keeps its start (`truncate_long: true`); remove it"),
    "dataset_kwargs": Refusal(f"{NOT_FOR_PAIRS}: rows are always prepared here; remove it"),
    "label_smoothing_factor": Refusal(f"{NOT_FOR_PAIRS}: the objective has no smoothed labels; remove it"),
    # What a run on pairs does otherwise
    "average_tokens_across_devices": Refusal(
        "would weigh the pairs of each process by themselves; the loss is always the mean over the pairs of all "
        "processes. Remove it"
    ),
    "include_num_input_tokens_seen": Refusal(
        "would count the tokens that the model is given; the log has `num_tokens`, the tokens that are trained on. "
        "Remove it",
        (False,),
    ),
    "label_names": Refusal("names columns of labels, which pairs do not have: both chains are scored. Remove it"),
    "length_column_name": Refusal("names a column of lengths; the lengths of pairs are counted here. Remove it"),
    "remove_unused_columns": Refusal("would keep columns that no part of a batch reads; remove it"),
    "use_cache": Refusal("would keep keys and values for generation, of which training has no use; remove it"),
    "ignore_data_skip": Refusal(
        "would train on rows again that the run has seen before it was resumed; a resumed run ends with the weights "
        "of an uninterrupted one. Remove it"
    ),
    "enable_jit_checkpoint": Refusal(
        "would write a checkpoint at SIGTERM in a way of its own; `edit-trl train` saves at SIGTERM and SIGUSR1 "
        "and is resumed by the same command. Remove it"
    ),
    "do_predict": Refusal("would predict after training; use `edit-trl evaluate` on the result. Remove it"),
    "local_rank": Refusal("is what launchers set in the environment; remove it"),
    "hub_strategy": Refusal("would push while the run trains; the finished model is pushed. Remove it, or write `end`"),
    "hub_always_push": Refusal("is about pushes of checkpoints; the finished model is pushed, once. Remove it"),
    # ModelConfig
    "lora_task_type": Refusal("makes another model than the causal language model that is trained here; remove it"),
}
"""The options that are refused when they are set."""

PUSHES_CHECKPOINTS = (
    "would push checkpoints, which hold optimizer states and pickles; they stay here, and the finished model is "
    "pushed. Remove it, or write `end`"
)

SHARD = "choose how to shard when launching: `edit-trl train --accelerate_config fsdp2`"

REFUSED_IN_RECIPES: dict[str, str] = {
    "fsdp": f"is no option of a recipe; {SHARD}",
    "fsdp_config": f"is no option of a recipe; {SHARD}",
    **dict.fromkeys(
        HONOURED["compute_metrics"],
        "is about `compute_metrics`, a function that only DualCoTTrainer in Python takes; remove it",
    ),
}
"""Options that only the Python API can honour."""

OF_EVERY_RUN = ("hub_strategy", "hub_always_push", "do_predict", "local_rank", "lora_task_type")
"""The refusals that hold for TRL's trainers (`trainer: dpo`) as well: a run honours them in no trainer."""

ACCELERATOR_OPTIONS: dict[str, tuple[Any, str]] = {
    "split_batches": (False, "`per_device_train_batch_size` is the number of pairs of one process"),
    "dispatch_batches": (None, "every process collates its own batches"),
    "even_batches": (True, "every process makes every step, and pairs that fill a batch up do not count"),
    "use_seedable_sampler": (True, "the order of the rows depends on the seed and the epoch alone"),
    "use_configured_state": (False, "the state is made by the run"),
    "num_steps": (None, "`gradient_accumulation_steps` sets it"),
}
"""Keys of `accelerator_config`, also of its `gradient_accumulation_kwargs`: the one value allowed, and why."""

FORMER_NAMES: dict[str, str] = {
    "warmup_ratio": "write `warmup_steps`, where a number below 1 is a share of all steps",
    "torch_dtype": "write `dtype`",
    "max_seq_length": "write `max_length`",
    "evaluation_strategy": "write `eval_strategy`",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "no_cuda": "write `use_cpu`",
    "use_mps_device": "remove it: the device is found",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "remove it; a run is resumed, and another run needs another `output_dir`",
    "per_gpu_train_batch_size": "write `per_device_train_batch_size`",
    "per_gpu_eval_batch_size": "write `per_device_eval_batch_size`",
    "push_to_hub_model_id": "write `hub_model_id`",
    "push_to_hub_token": "write `hub_token`",
    "push_to_hub_organization": "write `hub_model_id: ORGANIZATION/NAME`",
    "adafactor": "write `optim: adafactor`",
    "torchdynamo": "write `torch_compile_backend`",
    "jit_mode_eval": "remove it",
    "half_precision_backend": "remove it",
    "use_ipex": "remove it",
    "save_safetensors": "remove it: weights are always saved as safetensors",
    "include_tokens_per_second": "remove it",
    "include_inputs_for_metrics": "is about `compute_metrics`; remove it",
    "fp16_opt_level": "remove it",
    "tpu_num_cores": "remove it",
    "past_index": "remove it",
    "mp_parameters": "remove it",
    "fsdp_min_num_params": SHARD,
    "fsdp_transformer_layer_cls_to_wrap": SHARD,
    "gradient_checkpointing_use_reentrant": "write `gradient_checkpointing_kwargs: {use_reentrant: true}`",
    "dataset_batch_size": "remove it",
    "tokenizer_name_or_path": "remove it: the student's own tokenizer is used",
    "dataset_streaming": "remove it: key steps are found before training, from all rows",
    "streaming": "remove it: key steps are found before training, from all rows",
    "env": "write it at the top of a recipe: environment variables of all stages, by name",
    "ignore_bias_buffers": "write `ddp_broadcast_buffers: false`",
    "bnb_4bit_use_double_quant": "write `use_bnb_nested_quant`",
    "lora_rank": "write `lora_r`",
}
"""What to write instead of options that do not exist here: of earlier versions, of `ScriptArguments`, of others."""

CHOICES: dict[str, tuple[str, ...]] = {
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "bnb_4bit_quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32", "float64"),
    "include_for_metrics": ("inputs", "loss"),
    "debug": ("underflow_overflow", "tpu_metrics_debug"),
    # Of DPOConfig; the other classes list theirs.
    "loss_type": (
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
        *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    ),
}
"""The words of options for which the classes of TRL and transformers list none."""

CHECKPOINTING_KEYS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "selective")
"""The keys of `gradient_checkpointing_kwargs` that a recipe can give: those of torch, and TRL's `selective`."""

MAPPINGS = (
    *("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    *("model_init_kwargs", "liger_kernel_config", "chat_template_kwargs"),
)
"""The options that must be mappings, or JSON of one; others may also name a file."""

LOADING = (
    *("revision", "dtype", "attn_implementation", "experts_implementation", "device_map", "max_memory", "subfolder"),
    *("variant", "cache_dir", "force_download", "local_files_only", "token", "proxies", "offload_folder"),
    *("offload_buffers", "tp_plan", "tp_size", "device_mesh", "distributed_config", "use_kernels", "kernel_config"),
    *("allow_all_kernels", "key_mapping", "generation_config", "weights_only", "use_safetensors"),
)
"""The keys of `model_init_kwargs` that `from_pretrained` takes besides the attributes of a configuration."""
