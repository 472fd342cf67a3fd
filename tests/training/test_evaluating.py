"""An evaluation leaves gradients, weights and logs as they would be without it."""

import pytest
import torch
from conftest import ROWS, byte_level_tokenizer, tiny_llama
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from test_invariants import config
from trainers import make_trainer
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from edit_trl import DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.evaluation.suite.callback import SuiteCallback
from edit_trl.training.baselines import preference_trainer
from edit_trl.training.quantization import is_packed, keep_unpacked
from edit_trl.training.trainer_choice import options_class

# Weights of 4 bits on a CPU with AVX512-BF16


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Wide enough for bitsandbytes to repack its weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    folder = tmp_path_factory.mktemp("student")
    LlamaForCausalLM(LlamaConfig(vocab_size=400, max_position_embeddings=512, **sizes, **ids)).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return str(folder)


FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}


def quantized(student, folder, callbacks=None, **options) -> DualCoTTrainer:
    """All rows in one batch, and a learning rate of 0: each step has the same gradient."""
    return DualCoTTrainer(
        student,
        args=config(folder, learning_rate=0.0, max_grad_norm=1.0, max_steps=3, disable_tqdm=True, **options),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        callbacks=callbacks,
        quantization_config=BitsAndBytesConfig(**FOUR_BITS),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def norms(trainer) -> list[float]:
    trainer.train()
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "steps", "eval_steps": 1},
        {"eval_strategy": "steps", "eval_steps": 9, "eval_on_start": True},
        {"hardest_forks": 1.0},
        {"layout": "padded", "eval_strategy": "steps", "eval_steps": 1},
    ],
)
def test_gradients_of_four_bits_are_those_without_an_evaluation(student, tmp_path, options):
    layout = {"layout": options.get("layout", "auto")}
    expected = norms(quantized(student, tmp_path, **layout))
    trainer = quantized(student, tmp_path, **options)
    assert norms(trainer) == expected
    assert len(expected) == 3
    assert expected[0] == expected[2] > 0.05
    assert not is_packed(trainer.model)


@pytest.mark.parametrize("reference", ["adapter_off", "precomputed"])
def test_a_reference_of_four_bits_leaves_the_gradients(student, tmp_path, reference):
    """A new adapter changes nothing yet, so both references are the student."""
    trainer = quantized(student, tmp_path, reference=reference, preference_weight=0.5)
    both = [norms(trainer), norms(quantized(student, tmp_path, reference="precomputed", preference_weight=0.5))]
    assert both[0] == pytest.approx(both[1], rel=1e-3)
    assert both[0][0] == both[0][2]
    assert not is_packed(trainer.model)


def test_a_suite_and_answers_leave_the_gradients_of_four_bits(student, tmp_path):
    suite = SuiteCallback(ROWS, steps=1, accuracy_rows=1, max_new_tokens=4)
    trainer = quantized(student, tmp_path, callbacks=[suite])
    suite.trainer = trainer
    assert norms(trainer) == norms(quantized(student, tmp_path))
    assert any("eval_suite/key_preference" in entry for entry in trainer.state.log_history)
    trainer.predict(trainer.eval_dataset)
    assert not is_packed(trainer.model)


def test_weights_that_were_packed_are_refused(student, tmp_path):
    from bitsandbytes.functional import has_avx512bf16

    four_bits = BitsAndBytesConfig(**FOUR_BITS)
    kept, packed = (LlamaForCausalLM.from_pretrained(student, quantization_config=four_bits) for _ in range(2))
    keep_unpacked(kept)
    with torch.no_grad():
        for model in (kept, packed):
            model.eval()(torch.tensor([[5, 6, 7]]))
    assert not is_packed(kept)
    if not has_avx512bf16():  # this processor packs nothing: mark a weight as bitsandbytes would
        packed.model.layers[0].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    assert is_packed(packed)
    with pytest.raises(InputError, match=r"repacked the 4-bit weights of `model`.*load it again"):
        make_trainer(tmp_path, byte_level_tokenizer(), packed, peft_config=LoraConfig(target_modules="all-linear"))


# Evaluation in half precision


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_weights_are_as_trained_after_a_cast(tmp_path, tokenizer, option):
    trainer = make_trainer(tmp_path, tokenizer, eval_rows=ROWS, max_steps=2, layout="tree", **{option: True})
    seen = []
    embeddings = trainer.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))
    before = trainer.evaluate()["eval_loss"]  # the first batch, which checks the layouts, is in half precision
    trainer.train()
    trained = tensors(trainer.model)
    parameters = list(map(id, trainer.model.parameters()))
    exact = make_trainer(tmp_path, tokenizer, trainer.model, eval_rows=ROWS).evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(exact, rel=1e-2)
    trainer.predict(trainer.eval_dataset)
    half = torch.bfloat16 if option.startswith("bf16") else torch.float16
    assert {dtype for training, dtype in seen if training} == {torch.float32}
    assert half in {dtype for training, dtype in seen if not training}
    assert list(map(id, trainer.model.parameters())) == parameters
    after = tensors(trainer.model)
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in trained.items()
    )
    trainer.save_model()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(saved[name], trained[name]) for name in saved)
    trainer.train()  # goes on with the same parameters
    assert trainer.state.log_history[-1]["train_loss"] < before


def test_a_baseline_is_saved_as_trained(tmp_path, saved_student):
    args = options_class("dpo")(
        str(tmp_path / "dpo"), use_cpu=True, bf16=False, bf16_full_eval=True, max_steps=1, report_to="none",
        save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    rows = Dataset.from_list(ROWS)
    trainer = preference_trainer("dpo", str(saved_student), None, args, rows, rows)
    trainer.train()
    trained = tensors(trainer.model)
    trainer.evaluate()
    after = tensors(trainer.model)
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in trained.items()
    )


# Several evaluation sets


SETS = {"train": ROWS[:2], "hard": [row | {"chosen": f"zq xj {n} {row['chosen']}"} for n, row in enumerate(ROWS[2:])]}


def with_sets(tmp_path, tokenizer, **options) -> DualCoTTrainer:
    return DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path, disable_tqdm=True, **options),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset={name: Dataset.from_list(rows) for name, rows in SETS.items()},
        processing_class=tokenizer,
    )


def test_metrics_are_those_of_their_set(tmp_path, tokenizer):
    trainer = with_sets(tmp_path, tokenizer, eval_strategy="steps", eval_steps=1, eval_on_start=True, max_steps=3)
    trainer.train()
    returned = trainer.evaluate()
    for name, rows in SETS.items():
        logs = [e for e in trainer.state.log_history if f"eval_{name}_loss" in e]
        logps = [e[f"eval_{name}_logps/chosen"] for e in logs]
        drifts = [e[f"eval_{name}_drift/chosen"] for e in logs]
        assert drifts[0] == 0
        assert drifts == pytest.approx([logp - logps[0] for logp in logps])
        alone = make_trainer(tmp_path, tokenizer, trainer.model, eval_rows=rows).evaluate()
        assert returned[f"eval_{name}_logps/chosen"] == pytest.approx(alone["eval_logps/chosen"], rel=1e-5)
    assert not any(key.startswith("eval_logps") for entry in trainer.state.log_history for key in entry)


def test_a_fall_is_said_once_per_set(tmp_path, tokenizer, monkeypatch):
    from edit_trl.training import run_log

    told = []
    monkeypatch.setattr(run_log.logger, "warning", told.append)
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "max_steps": 12}
    raised = {"chosen_key_weight": 0.0, "chosen_context_weight": 0.0, "preference_weight": 2.0}
    raised |= {"rejected_key_weight": 1.0, "rejected_penalty": "likelihood", "rejected_key_scope": "all"}
    with_sets(tmp_path, tokenizer, learning_rate=3e-2, displacement_warning=0.05, **options, **raised).train()
    fallen = [text for text in told if "likelihood displacement" in text]
    assert len(fallen) == 3
    assert {name for name in SETS for text in fallen if f"(`eval_{name}_drift/chosen`)" in text} == set(SETS)
    told.clear()
    with_sets(tmp_path, tokenizer, learning_rate=0.0, displacement_warning=0.05, **options).train()
    assert told == []


def test_a_set_named_train_has_a_report_of_its_own(tmp_path, tokenizer):
    reports = with_sets(tmp_path, tokenizer).preparation_reports
    assert {name: report.rows for name, report in reports.items()} == {"train": 4, "eval_train": 2, "eval_hard": 2}


def test_a_prediction_is_no_part_of_the_next_evaluation(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, eval_rows=ROWS[:2])
    expected = trainer.evaluate()["eval_logps/chosen"]
    other = make_trainer(tmp_path, tokenizer, eval_rows=ROWS[2:])
    trainer.predict(other.eval_dataset)
    assert trainer.evaluate()["eval_logps/chosen"] == pytest.approx(expected, rel=1e-6)
    prefixed = trainer.evaluate(metric_key_prefix="test")
    assert prefixed["test_logps/chosen"] == pytest.approx(expected, rel=1e-6)
    assert "eval_logps/chosen" not in prefixed
