"""Every option of TRL and transformers is honoured or refused: the table against the libraries, and effects."""

import dataclasses
from importlib.util import find_spec

import pytest
import torch
from conftest import ROWS, tiny_llama
from datasets import Dataset
from test_invariants import config
from trainers import make_trainer
from trl import DPOConfig, ModelConfig, ScriptArguments, SFTConfig

from edit_trl import DualCoTConfig, DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.training.inherited_options import FORMER_NAMES, HONOURED, OF_EVERY_RUN, REFUSED, REFUSED_IN_RECIPES
from edit_trl.training.option_checks import RANGES, choices_of, option_problems
from edit_trl.training.requirements import requirement_problems

CLASSES = (SFTConfig, ModelConfig, ScriptArguments)


def undecided(classes) -> tuple[set[str], set[str]]:
    """The options that the table does not have, and those of the table that no class has."""
    theirs = {field.name for cls in classes for field in dataclasses.fields(cls)}
    honoured = [name for names in HONOURED.values() for name in names]
    assert len(honoured) == len(set(honoured)), "honoured by one"
    assert not set(honoured) & REFUSED.keys(), "honoured or refused"
    ours = {*honoured, *REFUSED}
    # ScriptArguments is no class of a recipe: its options are unknown keys, with what to write instead.
    unknown = theirs - {field.name for cls in classes[:2] for field in dataclasses.fields(cls)} - ours
    return theirs - ours - (unknown & FORMER_NAMES.keys()), ours - theirs


def test_every_option_is_decided():
    assert undecided(CLASSES) == (set(), set())
    assert set(OF_EVERY_RUN) <= REFUSED.keys()
    assert REFUSED_IN_RECIPES.keys() <= {name for names in HONOURED.values() for name in names}


def test_a_new_option_is_noticed():
    new = dataclasses.make_dataclass("New", [("brand_new", bool, False)], bases=(SFTConfig,))
    assert undecided((new, ModelConfig, ScriptArguments)) == ({"brand_new"}, set())
    names = [(f.name, f.type, f.default) for f in dataclasses.fields(ModelConfig) if f.name != "lora_r"]
    less = dataclasses.make_dataclass("Less", names)
    assert undecided((SFTConfig, less, ScriptArguments)) == (set(), {"lora_r"})


def test_former_names_are_no_options():
    options = {field.name for cls in (DualCoTConfig, ModelConfig) for field in dataclasses.fields(cls)}
    assert not options & FORMER_NAMES.keys()


SET = {
    "packing": True,
    "packing_strategy": "wrapped",
    "eval_packing": True,
    "padding_free": True,
    "completion_only_loss": False,
    "assistant_only_loss": True,
    "loss_type": "dft",
    "dataset_text_field": "body",
    "truncation_mode": "keep_end",
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "include_num_input_tokens_seen": "all",
    "label_names": ["chosen"],
    "length_column_name": "size",
    "remove_unused_columns": False,
    "use_cache": True,
    "ignore_data_skip": True,
    "enable_jit_checkpoint": True,
    "do_predict": True,
    "local_rank": 0,
    "hub_strategy": "every_save",
    "hub_always_push": True,
}


def test_every_refusal_has_a_case():
    assert {*SET, "lora_task_type"} == REFUSED.keys()


@pytest.mark.parametrize("name", SET)
def test_refused_where_it_is_set(tmp_path, name):
    with pytest.raises(InputError) as caught:
        config(tmp_path, **{name: SET[name]})
    assert caught.value.problems == [f"`{name}: {SET[name]}` {REFUSED[name].reason}"]


def test_the_default_and_what_is_done_anyway_are_taken(tmp_path):
    defaults = {
        field.name: getattr(SFTConfig("o", use_cpu=True, bf16=False), field.name)
        for field in dataclasses.fields(SFTConfig)
    }
    names = REFUSED.keys() & defaults.keys() - {"hub_strategy"}
    config(tmp_path, **{name: defaults[name] for name in names})
    config(tmp_path, completion_only_loss=True, eval_packing=False, include_num_input_tokens_seen=False)


def test_a_configuration_can_be_made_of_itself(tmp_path):
    options = {
        "eval_strategy": "steps",
        "activation_checkpointing": True,
        "torch_compile": True,
        "save_strategy": "epoch",
    }
    first = config(tmp_path, **options)
    again = DualCoTConfig(**{f.name: getattr(first, f.name) for f in dataclasses.fields(first) if f.init})
    assert {f.name: getattr(again, f.name) for f in dataclasses.fields(first)} == {
        f.name: getattr(first, f.name) for f in dataclasses.fields(first)
    }


# Effects on the weights


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def trained(tmp_path, tokenizer, **options) -> torch.Tensor:
    options = {"per_device_train_batch_size": 2, "max_steps": 3, "disable_tqdm": True} | options
    trainer = make_trainer(tmp_path, tokenizer, **options)
    trainer.train()
    return weights(trainer)


@pytest.fixture(scope="module")
def plainly_trained(tmp_path_factory):
    from conftest import byte_level_tokenizer

    return trained(tmp_path_factory.mktemp("plain"), byte_level_tokenizer())


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 2e-2},
        {"weight_decay": 0.5},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.5},
        {"adam_epsilon": 0.1},
        {"max_grad_norm": 1e-4},
        {"optim": "sgd"},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        {"train_sampling_strategy": "random"},
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "random", "data_seed": 5},
        {"gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 3},
        {"shuffle_dataset": True},
        {"max_steps": -1, "num_train_epochs": 1.0},
        {"neftune_noise_alpha": 5.0},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_what_changes_the_weights(tmp_path, tokenizer, plainly_trained, options):
    assert not torch.allclose(trained(tmp_path, tokenizer, **options), plainly_trained, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"activation_checkpointing": True},
        {"full_determinism": True},
        {"torch_empty_cache_steps": 1},
        {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2, "dataloader_persistent_workers": True},
        {"accelerator_config": {"non_blocking": True}},
        {"debug": "underflow_overflow"},
    ],
    ids=str,
)
def test_what_leaves_the_weights_alone(tmp_path, tokenizer, plainly_trained, options):
    try:
        torch.testing.assert_close(trained(tmp_path, tokenizer, **options), plainly_trained)
    finally:
        torch.use_deterministic_algorithms(False)


# Effects on data and batches


def test_shuffle_dataset_is_trls_order(tmp_path, tokenizer):
    rows = [{**row, "id": str(number)} for number, row in enumerate(ROWS * 3)]
    trainer = make_trainer(tmp_path, tokenizer, rows=rows, shuffle_dataset=True, seed=7)
    expected = Dataset.from_list(rows).shuffle(seed=7)["id"][:]
    assert trainer.train_dataset["row_id"][:] == expected != [row["id"] for row in rows]
    seen = [ex["row"] for batch in trainer.get_train_dataloader() for ex in batch["layout"].examples]
    assert seen == [int(number) + 1 for number in expected]


def test_pad_token(tmp_path, tokenizer):
    token = tokenizer.convert_ids_to_tokens(7)
    trainer = make_trainer(tmp_path, tokenizer, pad_token=token, layout="padded")
    assert trainer.processing_class.pad_token == token
    assert trainer.data_collator.pad_token_id == 7
    assert trainer.model.config.pad_token_id == trainer.model.generation_config.pad_token_id == 7
    batch = next(iter(trainer.get_train_dataloader()))
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert len(padding)
    assert (padding == 7).all()


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_token_that_is_none(tmp_path, tokenizer, name):
    size = len(tokenizer)
    with pytest.raises(InputError, match=rf"`{name}: <nope>` is no token of the student's tokenizer"):
        make_trainer(tmp_path, tokenizer, **{name: "<nope>"})
    assert len(tokenizer) == size


def test_eos_token_ends_the_chains(tmp_path, tokenizer):
    token = tokenizer.convert_ids_to_tokens(9)
    trainer = make_trainer(tmp_path, tokenizer, eos_token=token)
    assert {ids[-1] for ids in trainer.train_dataset["chosen_ids"][:]} == {9}
    assert trainer.model.config.eos_token_id == 9


def test_pad_to_multiple_of(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, pad_to_multiple_of=32, layout="padded")
    assert next(iter(trainer.get_train_dataloader()))["input_ids"].shape[1] % 32 == 0


def test_dataloader_options_reach_the_batches_filled_by_tokens(tmp_path, tokenizer):
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn", "dataloader_in_order": False}
    trainer = make_trainer(tmp_path, tokenizer, max_tokens_per_batch=1000, **options)
    loader = trainer.get_train_dataloader()
    assert (loader.multiprocessing_context.get_start_method(), loader.in_order) == ("spawn", False)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_torch_compile_compiles(tmp_path, tokenizer, layout):
    torch._dynamo.utils.counters.clear()
    plain = trained(tmp_path, tokenizer, layout=layout, max_steps=1)
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    compiled = trained(tmp_path, tokenizer, layout=layout, max_steps=1, **options)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_memory_and_first_step_are_logged(tmp_path, tokenizer):
    options = {"skip_memory_metrics": False, "logging_first_step": True, "logging_steps": 5, "max_steps": 2}
    trainer = make_trainer(tmp_path, tokenizer, **options)
    assert "train_mem_cpu_alloc_delta" in trainer.train().metrics
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1]


# Evaluation with compute_metrics


def evaluate(tmp_path, tokenizer, compute_metrics, **options) -> dict:
    rows = Dataset.from_list(ROWS)
    args = config(tmp_path, per_device_eval_batch_size=2, disable_tqdm=True, **options)
    return DualCoTTrainer(
        tiny_llama(),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    ).evaluate()


def test_eval_do_concat_batches(tmp_path, tokenizer):
    shapes = []
    evaluate(
        tmp_path,
        tokenizer,
        lambda p: shapes.append([b.shape for b in p.predictions]) or {},
        eval_do_concat_batches=False,
    )
    assert shapes == [[(2, 2)] * (len(ROWS) // 2)]


def test_include_for_metrics(tmp_path, tokenizer):
    given = []
    evaluate(tmp_path, tokenizer, lambda p: given.append((p.losses, p.inputs)) or {}, include_for_metrics=["loss"])
    [(losses, inputs)] = given
    assert losses.shape == (len(ROWS),)
    assert inputs is None


def test_batch_eval_metrics(tmp_path, tokenizer):
    calls = []

    def metrics(prediction, compute_result):
        calls.append(compute_result)
        return {"calls": len(calls)} if compute_result else {}

    result = evaluate(tmp_path, tokenizer, metrics, batch_eval_metrics=True)
    assert calls == [False] * (len(ROWS) // 2 - 1) + [True]
    assert result["eval_calls"] == len(calls)


def test_prediction_loss_only(tmp_path, tokenizer):
    assert "eval_seen" not in evaluate(tmp_path, tokenizer, lambda p: {"seen": 1}, prediction_loss_only=True)
    assert evaluate(tmp_path, tokenizer, lambda p: {"seen": 1})["eval_seen"] == 1


@pytest.mark.parametrize(
    "options", [{"batch_eval_metrics": True}, {"include_for_metrics": ["loss"]}, {"eval_do_concat_batches": False}]
)
def test_options_of_metrics_need_metrics(tmp_path, tokenizer, options):
    [name] = options
    with pytest.raises(InputError, match=rf"`{name}: .*` is about `compute_metrics`, which is not given; remove it"):
        make_trainer(tmp_path, tokenizer, **options)


def test_arguments_for_a_model_that_is_loaded(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"`model_init_kwargs` are for a model that the trainer loads; this one is"):
        make_trainer(tmp_path, tokenizer, model_init_kwargs={"dtype": "bfloat16"})


# Words


@pytest.mark.parametrize(
    "name",
    sorted(choices_of(DualCoTConfig).keys() & {f.name for f in dataclasses.fields(DualCoTConfig)} - REFUSED.keys()),
)
def test_a_word_that_is_none(tmp_path, name):
    words = choices_of(DualCoTConfig)[name]
    with pytest.raises(InputError) as caught:
        config(tmp_path, **{name: f"{words[-1]}x"})
    assert any(
        problem.startswith(f"`{name}: '{words[-1]}x'`: expected one of {words[0]}") and "did you mean" in problem
        for problem in caught.value.problems
    )


def test_words_of_other_classes():
    assert option_problems(ModelConfig, {"bnb_4bit_quant_type": "nf5"}) == [
        "`bnb_4bit_quant_type: 'nf5'`: expected one of fp4, nf4; did you mean 'nf4'?"
    ]
    [problem] = option_problems(DPOConfig, {"output_dir": "o", "loss_type": ["sigmoid", "sftt"], "use_cpu": True})
    assert problem.endswith("did you mean 'sft'?")
    assert option_problems(ModelConfig, {"lora_task_type": "SEQ_CLS"}) == [
        f"`lora_task_type: SEQ_CLS` {REFUSED['lora_task_type'].reason}"
    ]


# Numbers and combinations

BAD = [
    ({"learning_rate": -1.0}, "`learning_rate` must be a finite number, 0 or more, got -1.0"),
    ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number, 0 or more, got nan"),
    ({"learning_rate": "fast"}, "`learning_rate` must be a number, got 'fast'"),
    ({"num_train_epochs": 0}, "`num_train_epochs` must be a finite number above 0, or no step is trained, got 0"),
    ({"num_train_epochs": float("inf"), "max_steps": 5}, "`num_train_epochs` must be a finite number above 0"),
    ({"max_steps": 0}, "`max_steps` must be at least 1, or -1 where `num_train_epochs` decides, got 0"),
    (
        {"warmup_steps": 1.5, "lr_scheduler_type": "linear"},
        "`warmup_steps` must be 0 or more; below 1 it is a share, got 1.5",
    ),
    ({"adam_beta2": 1.0}, "`adam_beta2` must be 0 or more and below 1, got 1.0"),
    ({"save_steps": 2.5}, "`save_steps` must be a number of steps, or below 1 a share of them, got 2.5"),
    ({"seed": -1}, "`seed` must be between 0 and 4294967295, got -1"),
    ({"pad_to_multiple_of": "wide"}, "`pad_to_multiple_of` must be a number, got 'wide'"),
    ({"warmup_steps": 5}, "has no warm-up, so `warmup_steps: 5` would do nothing; write `constant_with_warmup`"),
    ({"fp16": True}, "`fp16: true` has no effect on a CPU"),
    ({"activation_offloading": True}, "`activation_offloading: true` has no effect on a CPU"),
    ({"dataloader_persistent_workers": True}, "`dataloader_persistent_workers` needs processes that load"),
    ({"liger_kernel_config": {"rope": True}}, "`liger_kernel_config` needs `use_liger_kernel: true`"),
    ({"optim_target_modules": "all-linear"}, "`optim_target_modules` is for the optimizers galore and apollo"),
    ({"do_eval": True}, "`do_eval: true` evaluates nothing with `eval_strategy: no`"),
    ({"save_strategy": "best"}, "`save_strategy: best` needs `metric_for_best_model`"),
    ({"max_tokens_per_batch": 500, "dataloader_drop_last": True}, "`dataloader_drop_last: true` has no effect with"),
    ({"max_tokens_per_batch": 500, "train_sampling_strategy": "group_by_length"}, "has no effect with `max_tokens"),
    ({"accelerator_config": {"split_batches": True}}, "`accelerator_config: {split_batches: True}` is not used here"),
    (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
        "`gradient_accumulation_steps` sets it",
    ),
    ({"accelerator_config": {"even": True}}, "`accelerator_config` has no key 'even'"),
    ({"accelerator_config": "none.json"}, "`accelerator_config: none.json`: there is no such file"),
    ({"gradient_checkpointing_kwargs": {"reentrant": True}}, "`gradient_checkpointing_kwargs` has no key 'reentrant'"),
    ({"lr_scheduler_kwargs": "min_lr"}, "`lr_scheduler_kwargs` must be a mapping, got 'min_lr'"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "'cycles'; it takes num_cycles"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate should be set"),
    (
        {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"a": 1}},
        "`lr_scheduler_type: constant_with_warmup` has no options",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError) as caught:
        config(tmp_path, **options)
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


def test_every_range_is_of_an_option():
    options = {field.name for cls in (DualCoTConfig, ModelConfig, DPOConfig) for field in dataclasses.fields(cls)}
    assert RANGES.keys() <= options


def test_steps_decide_where_epochs_do_not(tmp_path):
    assert config(tmp_path, max_steps=3, num_train_epochs=-1).max_steps == 3


# What is not installed, and what an optimizer does not take


@pytest.mark.parametrize(
    ("package", "options", "message"),
    [
        (
            "wandb",
            {"report_to": "wandb"},
            "`report_to: wandb` needs wandb, which is not installed here; `pip install wandb`",
        ),
        ("liger_kernel", {"use_liger_kernel": True}, "`use_liger_kernel: true` needs liger-kernel, which is not"),
        ("lomo_optim", {"optim": "lomo"}, "`optim: lomo`: You need to install `lomo_optim`"),
        ("torchao", {"optim": "adamw_torch_8bit"}, "`optim: adamw_torch_8bit`: You need to have `torchao"),
        (
            "kernels",
            {"model_init_kwargs": {"use_kernels": True}},
            "`model_init_kwargs: {use_kernels: true}` needs kernels",
        ),
        ("no tracker", {"report_to": ["wandbb"]}, "`report_to: wandbb` is no tracker; there are"),
        ("no key", {"optim": "adamw_torch", "optim_args": "foo=1"}, "`optim: adamw_torch` does not read 'foo'"),
        ("no value", {"optim": "sgd", "optim_args": "momentum"}, "`optim_args: momentum` must be `key=value"),
        ("no range", {"optim": "sgd", "optim_args": "momentum=-1"}, "Invalid momentum value: -1.0"),
        ("no TPU", {"debug": "tpu_metrics_debug"}, "`debug: tpu_metrics_debug` needs a TPU"),
    ],
)
def test_requirements(tmp_path, package, options, message):
    if find_spec(package.partition(" ")[0]) is not None:
        pytest.skip(f"{package} is installed")
    [problem] = requirement_problems(config(tmp_path, **options))
    assert message in problem


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spda", "expected one of eager, flash_attention_4"),
        ("flash_attention_2", "needs its package and a GPU that has it"),
        ("kernels-community/flash-attn2", "needs kernels, which is not installed"),
    ],
)
def test_attention(tmp_path, name, message):
    if name != "spda" and (find_spec("kernels") or find_spec("flash_attn")):
        pytest.skip("kernels are installed")
    model = ModelConfig(attn_implementation=name)
    [problem] = requirement_problems(config(tmp_path), model)
    assert f"`attn_implementation: {name}`" in problem
    assert message in problem
    assert requirement_problems(config(tmp_path), ModelConfig(attn_implementation="sdpa")) == []


def test_a_trainer_says_so_before_it_loads_a_model(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"does not read 'foo'"):
        make_trainer(tmp_path, tokenizer, optim="adamw_torch", optim_args="foo=1")
