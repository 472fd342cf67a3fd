"""TRL's trainers on dual CoTs: the pairs, the reference, what is saved, and what is refused."""

import json
import warnings

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from trl import DPOConfig

from edit_trl.cli.main import main, run_command
from edit_trl.cli.train import train_stage
from edit_trl.common.errors import InputError
from edit_trl.training.baselines import drop_reference, preference_pairs, preference_trainer
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import parse_options, resolve_runs
from edit_trl.training.resuming.stopping import StopSignals, TrainingStopped
from edit_trl.training.trainer_choice import options_class

RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
output_dir: {output}
use_peft: {peft}
lora_r: 4
lora_target_modules: all-linear
per_device_train_batch_size: 2
max_steps: 2
learning_rate: 1.0e-2
lr_scheduler_type: constant
gradient_checkpointing: false
use_cpu: true
bf16: false
dtype: float32
report_to: none
logging_steps: 1
save_steps: 1
stages:
  - name: warm_up
    view: chosen
    preference_weight: 0.0
    save_strategy: "no"
  - name: preference
    trainer: {trainer}
"""


@pytest.fixture
def recipe(tmp_path, saved_student):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS), encoding="utf-8")

    def write(trainer: str = "dpo", peft: bool = True, more: str = ""):
        path = tmp_path / "recipe.yaml"
        text = RECIPE.format(
            student=saved_student, data=data, output=tmp_path / "out", trainer=trainer, peft="true" if peft else "false"
        )
        path.write_text(text + more)
        return path

    return write


def stage(recipe, name: str, *options: str) -> int:
    return run_command(train_stage, ["--config", str(recipe), "--stage", name, *options])


def refused(recipe, *options: str) -> str:
    read = read_recipe(recipe)
    with pytest.raises(InputError) as error:
        resolve_runs(read, parse_options(options, read))
    return str(error.value)


@pytest.mark.parametrize("form", ["plain", "conversational"])
def test_pairs_have_trls_columns_alone(tokenizer, form):
    rows = [
        {**ROWS[0], "rejected": [ROWS[0]["rejected"], "2 + 2 = 4. Therefore, the answer is 4."]},
        {**ROWS[1], "rejected": []},
        {**ROWS[2], "rejected": [ROWS[2]["rejected"]]},
    ]
    if form == "conversational":
        said = [conversational(row) for row in rows]
        rows = [
            {**row, "rejected": [[{"role": "assistant", "content": text}] for text in plain["rejected"]]}
            for row, plain in zip(said, rows, strict=True)
        ]
    pairs = preference_pairs(Dataset.from_list(rows), tokenizer, None)
    assert pairs.column_names == ["prompt", "chosen", "rejected"]
    assert [pair["rejected"] for pair in pairs] == [*rows[0]["rejected"], *rows[2]["rejected"]]
    assert pairs[1]["chosen"] == rows[0]["chosen"]


def test_pairs_that_are_too_long_are_dropped_as_ours_are(tokenizer):
    rows = Dataset.from_list([*ROWS, {**ROWS[1], "chosen": ROWS[1]["chosen"] * 20, "id": "long"}])
    assert len(preference_pairs(rows, tokenizer, 128)) == len(ROWS)


def test_correct_chains_alone_are_no_pairs(tokenizer):
    rows = Dataset.from_list([{**row, "rejected": []} for row in ROWS])
    with pytest.raises(InputError, match="there is no pair, only correct chains alone"):
        preference_pairs(rows, tokenizer, None)


def test_the_experimental_trainers_say_nothing_of_being_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options_class("orpo").__name__ == "ORPOConfig"
        assert options_class("cpo").__name__ == "CPOConfig"


def trainer_of(tmp_path, saved_student, model=None, **options):
    args = DPOConfig(
        str(tmp_path / "run"),
        bf16=False,
        use_cpu=True,
        report_to="none",
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        save_steps=1,
        logging_steps=1,
        **options,
    )
    return preference_trainer("dpo", str(saved_student), model, args, Dataset.from_list(ROWS))


def test_the_reference_is_the_student_before_training(tmp_path, saved_student):
    """The first loss of DPO is log 2 where student and reference are one, an adapter or whole weights."""
    torch.manual_seed(0)
    warmed_up = get_peft_model(tiny_llama(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    for model in (None, warmed_up):
        trainer = trainer_of(tmp_path, saved_student, model)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[0] == pytest.approx(0.693147, abs=1e-4)


def test_the_reference_adapter_is_not_saved(tmp_path, saved_student):
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules="all-linear"))
    trainer = trainer_of(tmp_path, saved_student, model)
    trainer.train()
    drop_reference(trainer)
    trainer.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "ref").exists()
    PeftModel.from_pretrained(tiny_llama(), tmp_path / "run")


def test_a_signal_saves_and_stops(tmp_path, saved_student):
    signals = StopSignals()
    args = DPOConfig(
        str(tmp_path / "run"),
        bf16=False,
        use_cpu=True,
        report_to="none",
        max_steps=5,
        gradient_checkpointing=False,
        save_strategy="no",
    )
    trainer = preference_trainer("dpo", str(saved_student), None, args, Dataset.from_list(ROWS), stop_signals=signals)
    signals.received = "SIGTERM"
    with pytest.raises(TrainingStopped, match="stopped by SIGTERM after step 1 of 5; checkpoint-1 is in"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()


@pytest.mark.parametrize(("trainer", "peft"), [("dpo", True), ("dpo", False), ("orpo", True), ("cpo", False)])
def test_a_stage_of_trls_goes_on_from_the_warm_up(recipe, tmp_path, trainer, peft, capsys):
    path = recipe(trainer, peft)
    assert stage(path, "warm_up") == 0, capsys.readouterr().err
    assert stage(path, "preference") == 0, capsys.readouterr().err
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    first, second = (load_file(tmp_path / "out" / folder / name) for folder in ("warm_up", "preference"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    folder = tmp_path / "out" / "preference"
    assert json.loads((folder / "run.json").read_text())["finished"]
    assert (folder / "README.md").is_file()
    assert not (folder / "ref").exists()
    # Again: nothing to do.
    assert stage(path, "preference") == 0
    assert "is finished" in capsys.readouterr().out


def test_a_stage_is_taken_up_from_its_last_checkpoint(recipe, tmp_path, capsys):
    path = recipe()
    assert stage(path, "warm_up") == 0
    assert stage(path, "preference") == 0
    run = tmp_path / "out" / "preference" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"finished": None}))
    (tmp_path / "out" / "preference" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    capsys.readouterr()
    assert stage(path, "preference") == 0, capsys.readouterr().err
    assert f"Resuming from {tmp_path / 'out' / 'preference' / 'checkpoint-1'}" in capsys.readouterr().out


def test_what_is_saved_can_be_merged_pushed_and_measured(recipe, tmp_path, capsys):
    path = recipe()
    assert stage(path, "warm_up") == 0
    assert stage(path, "preference") == 0
    run = str(tmp_path / "out" / "preference")
    data = str(tmp_path / "rows.jsonl")
    assert main(["merge", run, "--output", str(tmp_path / "merged")]) == 0, capsys.readouterr().err
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    suite = ["suite", "--model", run, "--dataset_name", data, "--output_dir", str(tmp_path / "suite")]
    assert main(suite) == 0, capsys.readouterr().err
    assert main(["push", run, "--repo_id", "me/dpo", "--dry_run", "--base_model", "me/tiny"]) == 0, (
        capsys.readouterr().err
    )


def test_options_of_the_command_line_go_to_the_stages_that_have_them(recipe):
    read = read_recipe(recipe())
    options = parse_options(
        ["--beta", "0.3", "--loss_type", "sigmoid", "sft", "--normalization", "step", "--seed", "3"], read
    )
    warm_up, preference = resolve_runs(read, options)
    assert (warm_up.training.normalization, warm_up.training.loss_type) == ("step", "nll")
    assert (preference.training.beta, preference.training.loss_type) == (0.3, ["sigmoid", "sft"])
    assert (warm_up.training.seed, preference.training.seed) == (3, 3)
    assert warm_up.note == "stage warm_up runs without --loss_type, --beta: no option of its trainer, dual_cot"
    assert preference.note == "stage preference runs without --normalization: no option of its trainer, dpo"
    assert [run.note for run in resolve_runs(read, {"seed": 3})] == [None, None]


def test_what_a_stage_runs_without_is_said(recipe, capsys):
    path = recipe()
    assert stage(path, "warm_up", "--beta", "0.3") == 0
    assert "stage warm_up runs without --beta: no option of its trainer, dual_cot" in capsys.readouterr().err
    assert stage(path, "preference", "--beta", "0.3") == 0
    assert "runs without" not in capsys.readouterr().err


def test_options_of_another_trainer_are_refused_and_named(recipe):
    assert "stage preference: unknown key `preference_weight`: it is an option of the trainer dual_cot" in (
        refused(recipe(more="    preference_weight: 0.1\n"))
    )
    assert "stage preference: unknown key `betta`; did you mean `beta`?" in refused(recipe(more="    betta: 0.1\n"))
    assert "unknown key `simpo_gamma`: it is an option of the trainer cpo, not of dpo" in refused(
        recipe(more="    simpo_gamma: 1.0\n")
    )
    read = read_recipe(recipe(trainer="dual_cot"))
    with pytest.raises(InputError, match="unknown option --simpo_gamma: it is an option of the trainer cpo"):
        parse_options(["--simpo_gamma", "1.0"], read)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("    trainer: dpoo\n", "did you mean 'dpo'?"),
        ("    view: chosen\n", "`trainer: dpo` learns from pairs, and `view: chosen` has chains alone"),
        ("    view: rectifed\n", "did you mean 'rectified'?"),
        ("    suite_eval_steps: 1\n", "`suite_eval_steps` is for `trainer: dual_cot`, got 'dpo'"),
        ("    rows: 0\n", "`rows` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_said(recipe, more, said):
    path = recipe()
    text = path.read_text()
    if "trainer:" in more:
        text = text.replace("    trainer: dpo\n", "")
    path.write_text(text + more)
    assert said in refused(path)


def test_pairs_are_not_asked_of_chains_alone(recipe):
    path = recipe()
    path.write_text(path.read_text().replace("    preference_weight: 0.0\n", ""))
    assert "`view: chosen` has chains alone, and `preference_weight` is about pairs" in refused(path)


def test_memory_of_trls_trainers_is_said_not_to_be_estimated(recipe, capsys):
    assert main(["train", "--config", str(recipe()), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "stage preference: the memory of TRL's trainer `dpo` is not estimated" in out
    assert "stage warm_up:" in out
