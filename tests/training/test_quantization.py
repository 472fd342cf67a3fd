"""Quantized students: what the options imply, what is needed, and a real 4-bit run on the CPU."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from safetensors.torch import load_file
from transformers import GPTNeoXJapaneseConfig
from trl import ModelConfig

import edit_trl.training.quantization as quantization
from edit_trl.cli.main import run_command
from edit_trl.cli.train import train_stage
from edit_trl.common.errors import InputError
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.lora_targets import lora_config, make_model
from edit_trl.training.recipe.outline import Recipe
from edit_trl.training.recipe.resolving import resolve_runs

MINIMAL = {"model_name_or_path": "m", "dataset_name": "d.jsonl", "output_dir": "o", "use_cpu": True}
QLORA = MINIMAL | {"use_peft": True, "load_in_4bit": True}


def resolve(**options):
    return resolve_runs(Recipe(None, MINIMAL | options), {})[0]


def test_four_bits_imply_qlora():
    run = resolve(use_peft=True, load_in_4bit=True)
    model, training = run.model, run.training
    assert (model.bnb_4bit_quant_type, model.use_bnb_nested_quant, model.dtype) == ("nf4", True, "bfloat16")
    assert model.lora_target_modules == "all-linear"
    assert (training.optim, training.gradient_checkpointing) == ("adamw_8bit", True)
    config = quantization.quantization_config(model, training)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.bnb_4bit_quant_storage == torch.uint8
    # What is implied is no option of the run: another machine may imply another dtype.
    assert "dtype" not in run.values


def test_options_that_are_given_win():
    given = {
        "bnb_4bit_quant_type": "fp4",
        "use_bnb_nested_quant": False,
        "dtype": "float32",
        "lora_target_modules": ["q_proj", "v_proj"],
        "optim": "adamw_torch",
        "gradient_checkpointing": False,
    }
    run = resolve(use_peft=True, load_in_4bit=True, **given)
    for name, value in given.items():
        holder = run.training if hasattr(run.training, name) else run.model
        assert getattr(holder, name) == value, name
    assert quantization.quantization_config(run.model, run.training).bnb_4bit_compute_dtype == torch.float32


def test_dtype_auto_computes_in_bf16():
    run = resolve(use_peft=True, load_in_4bit=True, dtype="auto")
    assert quantization.quantization_config(run.model, run.training).bnb_4bit_compute_dtype == torch.bfloat16


def test_eight_bits_imply_the_same_but_nf4():
    run = resolve(use_peft=True, load_in_8bit=True)
    assert (run.model.dtype, run.model.lora_target_modules) == ("bfloat16", "all-linear")
    assert not run.model.use_bnb_nested_quant
    assert quantization.quantization_config(run.model, run.training).load_in_8bit


@pytest.mark.parametrize("options", [{}, {"use_peft": True}])
def test_nothing_changes_without_quantization(options):
    assert quantization.implied_options(MINIMAL | options) == {}
    run = resolve(**options)
    assert (run.model.dtype, run.model.lora_target_modules) == ("float32", None)
    assert run.training.optim == DualCoTConfig("o", use_cpu=True).optim
    assert quantization.quantization_config(run.model, run.training) is None


def test_sharded_runs_store_in_the_compute_dtype(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch sets it
    run = resolve(use_peft=True, load_in_4bit=True)
    assert quantization.quantization_config(run.model, run.training).bnb_4bit_quant_storage == torch.bfloat16
    run = resolve(use_peft=True, load_in_4bit=True, bnb_4bit_quant_storage="float32")
    assert quantization.quantization_config(run.model, run.training).bnb_4bit_quant_storage == torch.float32


# What is needed


def problems(version: str | None, monkeypatch, **options) -> str:
    """What is said where this version of bitsandbytes, or none, is installed."""
    found = quantization.Version(version) if version else None
    run = resolve(**options)
    monkeypatch.setattr(quantization, "_installed", lambda: found)
    with pytest.raises(InputError) as caught:
        quantization.check_bitsandbytes(run.model, run.training)
    return str(caught.value)


def test_too_old_for_the_device(monkeypatch):
    text = problems("0.43.0", monkeypatch, use_peft=True, load_in_4bit=True, optim="adamw_torch")
    assert "`load_in_4bit: true` on a CPU needs bitsandbytes 0.48 or newer, but 0.43.0" in text
    text = problems("0.49.1", monkeypatch, optim="paged_adamw_8bit")
    assert "`optim: paged_adamw_8bit` on a CPU needs bitsandbytes 0.50 or newer, but 0.49.1" in text
    assert "pip install -U" in text


def test_missing(monkeypatch):
    text = problems(None, monkeypatch, use_peft=True, load_in_8bit=True, optim="lion_8bit")
    assert "`load_in_8bit: true` and `optim: lion_8bit` needs bitsandbytes, which is not installed" in text


def test_older_ones_train_with_another_optimizer(monkeypatch):
    monkeypatch.setattr(quantization, "_installed", lambda: quantization.Version("0.49.0"))
    run = resolve(use_peft=True, load_in_4bit=True)
    assert run.training.optim == "adamw_torch_fused"
    quantization.check_bitsandbytes(run.model, run.training)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_8bit", "sgd"])
def test_other_optimizers_need_nothing(monkeypatch, optim):
    monkeypatch.setattr(quantization, "_installed", lambda: None)
    run = resolve(optim=optim)
    quantization.check_bitsandbytes(run.model, run.training)


BLOCKED = """
import sys
sys.modules["bitsandbytes"] = None  # what Python does for a module that cannot be imported
from edit_trl.cli.main import run_command
from edit_trl.cli.train import train_stage
sys.exit(run_command(train_stage, sys.argv[1:]))
"""


def test_missing_is_said_before_anything_is_loaded(recipe, tmp_path):
    # The dataset does not exist either: bitsandbytes is looked for first.
    options = ["--config", str(recipe), "--dataset_name", str(tmp_path / "nothing.jsonl")]
    run = subprocess.run([sys.executable, "-c", BLOCKED, *options], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "needs bitsandbytes, which is not installed here" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


# The real thing


RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
output_dir: {output}
use_peft: true
load_in_4bit: true
lora_r: 4
per_device_train_batch_size: 4
max_steps: 12
learning_rate: 2.0e-2
lr_scheduler_type: constant
use_cpu: true
report_to: none
logging_steps: 1
save_strategy: "no"
preference_weight: 0.0
normalization: step
"""


@pytest.fixture
def recipe(tmp_path, saved_student):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(student=saved_student, data=data, output=tmp_path / "out"))
    return path


def test_trains_a_four_bit_student(recipe, tmp_path, monkeypatch):
    """`edit-trl train` on the CPU: NF4 with nested statistics, bf16 adapters, 8-bit AdamW, a falling loss."""
    import edit_trl.training.trainer

    made = []
    real = edit_trl.training.trainer.DualCoTTrainer.train
    monkeypatch.setattr(
        edit_trl.training.trainer.DualCoTTrainer,
        "train",
        lambda self, *args, **options: (made.append(self), real(self, *args, **options))[1],
    )
    assert run_command(train_stage, ["--config", str(recipe)]) == 0
    (trainer,) = made
    from bitsandbytes.nn import Linear4bit
    from bitsandbytes.optim import AdamW

    base = [m for m in trainer.model.modules() if isinstance(m, Linear4bit)]
    assert len(base) == 2 * 7  # every linear layer of the two, and not the head
    for module in base:
        assert (module.weight.quant_state.quant_type, module.weight.quant_state.nested) == ("nf4", True)
        assert module.compute_dtype == torch.bfloat16
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7
    assert all("lora" in name and p.dtype == torch.bfloat16 for name, p in trained.items())
    optimizer = trainer.optimizer.optimizer
    assert (type(optimizer), optimizer.args.optim_bits) == (AdamW, 8)
    assert trainer.model.is_gradient_checkpointing
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert not any("lm_head" in name for name in adapter)
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_fp16_training_has_float32_adapters(saved_student):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(target_modules="all-linear")).bfloat16()
    quantization.settle_adapter_dtype(model, fp16=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}  # not quantized
    model.base_model.model.is_loaded_in_4bit = True
    quantization.settle_adapter_dtype(model, fp16=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    quantization.settle_adapter_dtype(model, fp16=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_head_of_another_name_stays_out(tmp_path):
    """This one calls its head `embed_out`; it is neither quantized nor adapted."""
    from peft import get_peft_model
    from trl.trainer.utils import create_model_from_path

    small = GPTNeoXJapaneseConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_multiple_size=2,
        num_hidden_layers=1,
        num_attention_heads=4,
        architectures=["GPTNeoXJapaneseForCausalLM"],
    )
    make_model(small).save_pretrained(tmp_path)
    run = resolve(use_peft=True, load_in_4bit=True)
    config = quantization.quantization_config(run.model, run.training)
    student = create_model_from_path(str(tmp_path), dtype="bfloat16", quantization_config=config)
    model = get_peft_model(student, lora_config(run.model, str(tmp_path)))
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(adapted) == 4
    assert not any("embed_out" in name for name in adapted)
    explicit = ModelConfig(use_peft=True, lora_target_modules=["query_key_value", "embed_out"])
    with pytest.raises(InputError, match="`embed_out`, the LM head of GPTNeoXJapaneseForCausalLM"):
        lora_config(explicit, str(tmp_path))
