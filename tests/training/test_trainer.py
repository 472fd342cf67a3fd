import json

import numpy as np
import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from peft import LoraConfig, PeftModel
from test_invariants import config
from trainers import LORA, make_trainer
from transformers import BitsAndBytesConfig, TrainerCallback

from edit_trl import DualCoTConfig, DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.training.reference import reference_scores

TRAIN_METRICS = {
    *("loss/chosen", "loss/rejected", "loss/preference"),
    *("logps/chosen", "logps/chosen_key", "logps/chosen_context"),
    *("logps/rejected_key", "logps/rejected_context"),
    *("key_accuracy", "margins/key", "completion_accuracy", "margins/completion", "key_fraction"),
    *("fork/confidence", "fork/solved", "drift/chosen", "num_tokens"),
}


@pytest.mark.parametrize("form", [dict, conversational], ids=["plain", "conversational"])
def test_learns_to_tell_the_chains_apart(tmp_path, tokenizer, form):
    rows = [form(row) for row in ROWS]
    trainer = make_trainer(
        tmp_path,
        tokenizer,
        rows=rows,
        max_steps=60,
        eval_rows=rows,
        eval_strategy="steps",
        eval_steps=60,
        eval_on_start=True,
        preference_weight=1.0,
    )
    trainer.train()
    before, after = (entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert after["eval_loss"] < before["eval_loss"] / 4
    assert after["eval_key_accuracy"] == 1.0
    assert after["eval_fork/confidence"] > 0.9
    assert after["eval_drift/chosen"] > 1.0  # since the first evaluation


def test_logs_every_metric_in_train_and_eval(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=2, eval_rows=ROWS, eval_strategy="steps", eval_steps=1)
    trainer.train()
    train_logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    eval_logs = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(train_logs) == len(eval_logs) == 2
    assert train_logs[0].keys() >= TRAIN_METRICS
    assert eval_logs[0].keys() >= {f"eval_{name}" for name in TRAIN_METRICS - {"num_tokens"}}
    assert train_logs[0]["drift/chosen"] == 0.0
    parts = sum(train_logs[0][f"loss/{part}"] for part in ("chosen", "rejected", "preference"))
    assert train_logs[0]["loss"] == pytest.approx(parts, rel=1e-5)


def test_metrics_by_hand(tmp_path, tokenizer):
    """A model that finds every token equally likely: log p = -log 400 everywhere."""
    model = tiny_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    trainer = make_trainer(tmp_path, tokenizer, model, eval_rows=ROWS, preference_weight=0.2)
    metrics = trainer.evaluate()
    uniform = -np.log(400)
    for name in ("chosen", "chosen_key", "chosen_context", "rejected_key", "rejected_context"):
        assert metrics[f"eval_logps/{name}"] == pytest.approx(uniform, rel=1e-5)
    assert metrics["eval_fork/confidence"] == pytest.approx(1 / 400, rel=1e-5)
    assert metrics["eval_fork/solved"] == 0.0
    assert metrics["eval_margins/key"] == pytest.approx(0, abs=1e-5)
    assert metrics["eval_loss/preference"] == pytest.approx(0.2 * np.log(2), rel=1e-5)
    examples = list(trainer.eval_dataset)
    marked = sum(sum(e["chosen_key_mask"]) + sum(e["rejected_key_mask"]) for e in examples)
    tokens = sum(len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in examples)
    assert metrics["eval_key_fraction"] == pytest.approx(marked / tokens)


def test_eval_metrics_do_not_depend_on_the_batch_size(tmp_path, tokenizer):
    results = []
    for size in (1, 3, 4):
        trainer = make_trainer(tmp_path, tokenizer, eval_rows=ROWS, per_device_eval_batch_size=size)
        metrics = trainer.evaluate()
        results.append({k: v for k, v in metrics.items() if "/" in k or "accuracy" in k})
    assert results[1] == pytest.approx(results[0], rel=1e-5, abs=1e-6)
    assert results[2] == pytest.approx(results[0], rel=1e-5, abs=1e-6)


def test_warm_up_runs_the_wrong_chains_for_the_logs_alone(tmp_path, tokenizer):
    options = {"preference_weight": 0.0, "max_steps": 4, "logging_steps": 2, "num_train_epochs": 4, "layout": "padded"}
    trainer = make_trainer(tmp_path, tokenizer, **options)
    rows_run = []

    def see(_module, _args, kwargs):
        rows_run.append((len(kwargs["input_ids"]), torch.is_grad_enabled()))

    trainer.model.register_forward_pre_hook(see, with_kwargs=True)
    trainer.train()
    # Both chains for the metrics, without gradients; the correct ones for the loss, as in any other step.
    assert rows_run == [(4, True), (8, False), (4, True)] * 2
    assert trainer.state.log_history[0].keys() >= TRAIN_METRICS


def test_model_by_path_with_lora_saved_and_loaded(tmp_path, saved_student, dual_cots):
    args = config(tmp_path, max_steps=2)
    trainer = DualCoTTrainer(str(saved_student), args=args, train_dataset=dual_cots, peft_config=LORA)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run"
    assert (folder / "adapter_model.safetensors").is_file()
    assert (folder / "tokenizer_config.json").is_file()
    base = type(tiny_llama()).from_pretrained(saved_student)
    loaded = PeftModel.from_pretrained(base, folder)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)


def test_adapter_goes_on_training(tmp_path, tokenizer):
    first = make_trainer(tmp_path, tokenizer, peft_config=LORA, max_steps=1)
    first.train()
    first.save_model(tmp_path / "first")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "first", is_trainable=True)
    second = make_trainer(tmp_path, tokenizer, model, max_steps=1)
    names = [name for name, p in second.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    second.train()
    second.save_model(tmp_path / "second")
    config_file = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert config_file["r"] == 4  # one adapter, not one stacked on another


def test_qlora(tmp_path, saved_student, dual_cots):
    trainer = DualCoTTrainer(
        str(saved_student),
        args=config(tmp_path, max_steps=3, optim="adamw_8bit", gradient_checkpointing=True),
        train_dataset=dual_cots,
        peft_config=LORA,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_callbacks_and_compute_metrics(tmp_path, tokenizer):
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    seen = {}

    def compute_metrics(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"share_right": right.mean()}

    trainer = DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path, max_steps=2, per_device_eval_batch_size=3),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[Count()],
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert steps == [1, 2]
    assert seen["predictions"].shape == (4, 2)
    assert seen["labels"].tolist() == [0, 0, 0, 0]
    assert metrics["eval_share_right"] == pytest.approx(metrics["eval_completion_accuracy"])


def test_evaluate_takes_raw_rows_and_dicts(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    assert trainer.evaluate(Dataset.from_list(ROWS[:2]))["eval_key_fraction"] > 0
    trainer = DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset={"easy": Dataset.from_list(ROWS[:2]), "hard": Dataset.from_list(ROWS[2:])},
        processing_class=tokenizer,
    )
    metrics = trainer.evaluate()
    assert {"eval_easy_loss", "eval_hard_loss"} <= metrics.keys()


def test_group_by_length(tmp_path, tokenizer):
    trainer = make_trainer(
        tmp_path, tokenizer, max_steps=1, train_sampling_strategy="group_by_length", per_device_train_batch_size=2
    )
    trainer.train()
    assert trainer.state.global_step == 1


def test_learning_rate_decays_per_epoch(tmp_path, tokenizer):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "num_train_epochs": 3}
    trainer = make_trainer(tmp_path, tokenizer, lr_decay_per_epoch=0.5, **options)
    trainer.train()
    # 4 pairs, 3 a step: two steps an epoch.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3])


# Watching the run


def test_warns_of_likelihood_displacement(tmp_path, tokenizer, log):
    trainer = make_trainer(
        tmp_path,
        tokenizer,
        max_steps=30,
        chosen_key_weight=0.0,
        chosen_context_weight=0.0,
        preference_weight=0.0,
        rejected_key_weight=1.0,
        rejected_key_scope="all",
        rejected_penalty="likelihood",
    )
    trainer.train()
    drifts = [entry["drift/chosen"] for entry in trainer.state.log_history if "drift/chosen" in entry]
    assert drifts[-1] < -0.25
    assert any("likelihood displacement" in message for message in log)


def test_drift_survives_a_resume(tmp_path, tokenizer):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 4}
    whole = make_trainer(tmp_path, tokenizer, max_steps=4, **options)
    whole.train()
    resumed = make_trainer(tmp_path, tokenizer, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    last = [[e for e in t.state.log_history if "drift/chosen" in e][-1] for t in (whole, resumed)]
    assert last[0]["drift/chosen"] != 0
    assert last[1]["drift/chosen"] == pytest.approx(last[0]["drift/chosen"], rel=1e-6)


def test_non_finite_loss_names_the_rows(tmp_path, tokenizer):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    trainer = make_trainer(tmp_path, tokenizer, model, max_steps=1, per_device_train_batch_size=2)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0, rows 1 \(robe\), 2 \(apples\)"):
        trainer.train()


# References and forks


def reference_scores_seen(trainer) -> tuple[torch.Tensor, torch.Tensor]:
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    with torch.no_grad():
        return reference_scores(
            trainer.args.reference,
            trainer.model,
            batch,
            lambda batch: trainer.objective.scores(trainer.score_pairs(trainer.model, batch), batch),
        )


def scores_of(model, tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, model, preference_scope="completion")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        return trainer.objective.scores(trainer.score_pairs(model.eval(), batch), batch)


def test_adapter_off_is_the_base_model(tmp_path, tokenizer):
    options = {"reference": "adapter_off", "preference_scope": "completion"}
    trainer = make_trainer(tmp_path, tokenizer, peft_config=LORA, **options)
    expected = scores_of(tiny_llama(), tmp_path, tokenizer)
    torch.testing.assert_close(reference_scores_seen(trainer), expected)
    trainer.train()  # the adapter is on again, and learns
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_precomputed_is_the_student_before_training(tmp_path, tokenizer):
    options = {"reference": "precomputed", "preference_scope": "completion", "eval_rows": ROWS}
    trainer = make_trainer(tmp_path, tokenizer, max_steps=3, **options)
    expected = scores_of(tiny_llama(), tmp_path, tokenizer)
    torch.testing.assert_close(reference_scores_seen(trainer), expected)
    trainer.train()
    torch.testing.assert_close(reference_scores_seen(trainer), expected)
    assert "reference_chosen_score" in trainer.eval_dataset.column_names
    with pytest.raises(InputError, match="this one came later"):
        trainer.evaluate(Dataset.from_list(ROWS))


def test_no_reference_runs_nothing(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=2, layout="padded")
    forwards = []
    trainer.model.register_forward_hook(lambda *_: forwards.append(1))
    trainer.train()
    assert len(forwards) == 2
    assert "reference_chosen_score" not in trainer.train_dataset.column_names


def test_max_fork_confidence_keeps_the_pairs_that_teach(tmp_path, tokenizer, log):
    model = tiny_llama()
    learnt = make_trainer(tmp_path, tokenizer, model, rows=ROWS[:2], max_steps=80)
    learnt.train()
    trainer = make_trainer(tmp_path, tokenizer, model, max_fork_confidence=0.9)
    assert trainer.train_dataset["row_id"][:] == ["boolean", "steps"]
    assert trainer.preparation_reports["train"].dropped == {"fork confidence over 0.9": 2}
    assert any("probability of the right token at the fork" in message for message in log)
    with pytest.raises(InputError, match="leaves no pair"):
        make_trainer(tmp_path, tokenizer, model, rows=ROWS[:2], max_fork_confidence=0.5)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_hardest_forks_keeps_the_share_with_the_lowest_probabilities(tmp_path, tokenizer, log, layout):
    model = tiny_llama()
    make_trainer(tmp_path, tokenizer, model, rows=ROWS[:2], max_steps=80).train()
    trainer = make_trainer(tmp_path, tokenizer, model, rows=ROWS[::-1], hardest_forks=0.5, layout=layout)
    assert trainer.train_dataset["row_id"][:] == ["steps", "boolean"]  # not those it was trained on
    report = trainer.preparation_reports["train"]
    assert (report.kept, report.dropped) == (2, {"not among the hardest 0.5 of the forks": 2})
    assert any("2 of 4 pairs kept; 2 dropped: not among the hardest 0.5" in message for message in log)
    trainer.train()


def test_hardest_forks_is_a_share_of_what_the_threshold_leaves(tmp_path, tokenizer):
    model = tiny_llama()
    make_trainer(tmp_path, tokenizer, model, rows=ROWS[:2], max_steps=80).train()
    trainer = make_trainer(tmp_path, tokenizer, model, max_fork_confidence=0.9, hardest_forks=0.5)
    report = trainer.preparation_reports["train"]
    assert report.dropped == {"fork confidence over 0.9": 2, "not among the hardest 0.5 of the forks": 1}
    assert (report.kept, len(trainer.train_dataset)) == (1, 1)
    [confidence] = trainer.train_dataset["fork_confidence"][:]
    both = make_trainer(tmp_path, tokenizer, model, max_fork_confidence=0.9).train_dataset
    assert confidence == min(both["fork_confidence"][:])


def test_hardest_forks_with_an_adapter(tmp_path, tokenizer):
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    trainer = make_trainer(tmp_path, tokenizer, peft_config=lora, hardest_forks=0.25, max_steps=1)
    plain = make_trainer(tmp_path, tokenizer, hardest_forks=0.25)  # the new adapter changes nothing
    assert len(trainer.train_dataset) == 1
    assert trainer.train_dataset["row_id"][:] == plain.train_dataset["row_id"][:]
    trainer.train()


def test_forks_marks_fewer_tokens_than_words(tmp_path, tokenizer):
    marked = {}
    for method in ("words", "fork", "forks"):
        rows = make_trainer(tmp_path, tokenizer, key_step_method=method, max_steps=1).train_dataset
        marked[method] = [sum(mask) for mask in rows["rejected_key_mask"]]
    assert all(f <= g <= w for f, g, w in zip(*(marked[m] for m in ("fork", "forks", "words")), strict=True))
    assert sum(marked["fork"]) < sum(marked["forks"]) < sum(marked["words"])


# Bad input


def refuses(tmp_path, tokenizer, match, **arguments):
    """The error comes before a model is loaded: one layer of it is missing, as loading would say."""
    student = tiny_llama()
    student.config.num_hidden_layers += 1
    student.save_pretrained(tmp_path / "student")
    arguments.setdefault("train_dataset", Dataset.from_list(ROWS))
    options = arguments.pop("options", {})
    with pytest.raises(InputError, match=match):
        DualCoTTrainer(str(tmp_path / "student"), config(tmp_path, **options), processing_class=tokenizer, **arguments)
    assert not (tmp_path / "run").exists()  # nothing half-written


def test_bad_rows(tmp_path, tokenizer):
    rows = [ROWS[0], ROWS[1] | {"rejected": ROWS[1]["chosen"]}, ROWS[2] | {"chosen": " "}]
    refuses(tmp_path, tokenizer, "row 2", train_dataset=Dataset.from_list(rows))
    refuses(tmp_path, tokenizer, "row 3", train_dataset=Dataset.from_list(rows))
    refuses(tmp_path, tokenizer, "rejected", train_dataset=Dataset.from_list(ROWS).remove_columns("rejected"))
    refuses(tmp_path, tokenizer, "row 2", eval_dataset=Dataset.from_list(rows))


def test_no_rows(tmp_path, tokenizer):
    refuses(tmp_path, tokenizer, "has no rows", train_dataset=Dataset.from_list([]))
    refuses(tmp_path, tokenizer, "must be a datasets.Dataset, got NoneType", train_dataset=None)
    for wrong in ([{"prompt": "q"}], {"held_out": 5}, "rows.jsonl"):
        refuses(tmp_path, tokenizer, "`eval_dataset` must be a datasets.Dataset, or several", eval_dataset=wrong)
    for wrong in (None, 5, tmp_path):
        with pytest.raises(InputError, match="`model` must be a Hub id, a folder as a text, or a loaded model"):
            DualCoTTrainer(wrong)
    refuses(tmp_path, tokenizer, "got list", train_dataset=ROWS)


def test_lora_on_lm_head(tmp_path, tokenizer):
    lora = LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    refuses(tmp_path, tokenizer, "LoRA on `lm_head`", peft_config=lora)


def test_adapter_off_without_an_adapter(tmp_path, tokenizer):
    refuses(tmp_path, tokenizer, "needs an adapter to switch off", options={"reference": "adapter_off"})


def test_chat_rows_without_a_chat_template(tmp_path, tokenizer):
    tokenizer.chat_template = None
    rows = Dataset.from_list([conversational(row) for row in ROWS])
    refuses(tmp_path, tokenizer, "no chat template", train_dataset=rows)


def test_foreign_args(tmp_path, tokenizer):
    from trl import SFTConfig

    with pytest.raises(InputError, match="must be a DualCoTConfig, got SFTConfig"):
        DualCoTTrainer(
            tiny_llama(),
            SFTConfig(str(tmp_path), bf16=False),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )


def test_default_args(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = DualCoTTrainer(tiny_llama(), train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    assert isinstance(trainer.args, DualCoTConfig)
    assert trainer.args.output_dir == "student-EDIT"


def test_saving_writes_our_card_and_never_a_blank_one(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, peft_config=LORA, max_steps=1, save_strategy="no")
    trainer.save_model(str(tmp_path / "before"))
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for folder in ("before", "run", "elsewhere"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "| `chosen_key_weight` | `2.0` |" in card
        assert "More Information Needed" not in card
        assert (tmp_path / folder / "adapter_model.safetensors").is_file()
    trainer._save_checkpoint(trainer.model, None)
    assert not (tmp_path / "run" / "checkpoint-1" / "README.md").exists()
    assert "| `chosen_key_weight` | `2.0` |" in (tmp_path / "run" / "README.md").read_text()


def test_model_card(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, peft_config=LORA, max_steps=1)
    trainer.train()
    trainer.create_model_card(dataset_name="someone/dual-cots")
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: peft" in card
    assert "- someone/dual-cots" in card
    assert "| train | 4 of 4 pairs kept; key fraction" in card
    assert "| `chosen_key_weight` | `2.0` |" in card
    assert "| `learning_rate` | `0.01` |" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "2405.19737" in card
