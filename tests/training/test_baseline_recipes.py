"""recipes/baselines: each file is the system it is named for, and trains."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROWS, conversational
from datasets import Dataset

from edit_trl.cli.main import main, run_command
from edit_trl.cli.train import train_stage
from edit_trl.data.views import WEIGHTED_VIEWS
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import RunArguments, resolve_runs
from edit_trl.training.trainer_choice import options_class

FOLDER = Path(__file__).parents[2] / "recipes" / "baselines"
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}

# (alpha, gamma, beta, lambda) and Z
SFT = ((1.0, 1.0, 0.0, 0.0), "step")
TASKS = ((1.0, 1.0, 0.0, 0.0), "completion")
PAPER = ((1.0, 0.0, 0.025, 0.0), "completion")
REDI = ((1.0, 1.0, 0.8, 0.0), "completion")
OURS = ((2.0, 1.0, 0.0, 0.1), "completion")

# Of each system: its view and objective in the warm-up; its view, objective and key-step method after it.
WARM_UP = {
    "std_cot": ("unrectified", SFT),
    "rwc": ("chosen", SFT),
    "repeat_sampling": ("repeat_sampling", SFT),
    "dual_cot_sft": ("dual_cot_sft", SFT),
    "mt_cot": ("mt_cot", TASKS),
    "sbs": ("sbs", TASKS),
    "scott": ("scott", ((1.0, 0.0, 0.0, 0.0), "key_tokens")),
    "krsl_without_rwc": ("unrectified", SFT),
}
KEY_STEPS = {
    "krsl_without_rwc": ("pairs", PAPER, "edit"),
    "krsl_corrupted_only": ("corrupted", PAPER, "edit"),
    "krsl_rectified_only": ("rectified", PAPER, "edit"),
    "alpha_only": ("pairs", ((1.0, 0.0, 0.0, 0.0), "completion"), "edit"),
    "beta_only": ("pairs", ((0.0, 0.0, 0.025, 0.0), "completion"), "edit"),
    "edit_paper": ("pairs", PAPER, "edit"),
    "edit": ("pairs", OURS, "words"),
    "random_mask": ("pairs", OURS, "random"),
    "mistake_logical": ("pairs", OURS, "words"),
    "redi": ("pairs", REDI, "words"),
    "redi_key_steps": ("pairs", REDI, "words"),
    "dpop": ("pairs", ((0.0, 0.0, 0.0, 1.0), "completion"), "words"),
    "step_dpo": ("pairs", ((0.0, 0.0, 0.0, 1.0), "completion"), "step"),
    "dft": ("chosen", SFT, "words"),
    "critique": ("critique", SFT, "words"),
    "lema": ("lema", SFT, "words"),
    "check": ("chosen, check", SFT, "words"),
    "wrong_chains": ("rejected", SFT, "words"),
}
# Of each system that TRL trains: the trainer and the options that make it.
PREFERENCE = {
    "dpo": ("dpo", {"loss_type": ["sigmoid"], "loss_weights": None, "beta": 0.1}),
    "dpo_nll": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0], "beta": 0.1}),
    "ipo": ("dpo", {"loss_type": ["ipo"], "beta": 0.1}),
    "apo_zero": ("dpo", {"loss_type": ["apo_zero"], "loss_weights": None, "beta": 0.1}),
    "orpo": ("orpo", {"beta": 0.1}),
    "simpo": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}),
}


@cache
def runs(name: str) -> dict[str, RunArguments]:
    return {run.stage: run for run in resolve_runs(read_recipe(RECIPES[name]), {})}


def objective(run: RunArguments):
    names = ("chosen_key_weight", "chosen_context_weight", "rejected_key_weight", "preference_weight")
    return tuple(getattr(run.training, name) for name in names), run.training.normalization


def test_every_system_is_here():
    assert set(RECIPES) == {*WARM_UP, *KEY_STEPS, *PREFERENCE}


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_stage_is_sft_on_the_systems_view(name):
    run = runs(name)["warm_up"]
    view, loss = WARM_UP.get(name, ("chosen", SFT))
    assert (run.data.view, objective(run)) == (view, loss)
    assert (run.training.key_step_method == "spans") == (view in WEIGHTED_VIEWS)
    assert run.data.dataset_train_split == "warm_up"


@pytest.mark.parametrize("name", KEY_STEPS)
def test_the_second_stage_is_the_systems_own(name):
    run = runs(name)["key_steps"]
    view, loss, method = KEY_STEPS[name]
    assert (", ".join(run.data.view_names), objective(run), run.training.key_step_method) == (view, loss, method)
    assert run.data.views == ({"chosen": 1, "check": 0.5} if name == "check" else None)
    assert run.data.dataset_train_split == "dual"
    if loss[0][2]:
        scope = "completion" if name == "redi" else "all"
        assert (run.training.rejected_key_scope, run.training.rejected_penalty) == (scope, "likelihood")
    assert run.training.chosen_loss == ("dft" if name == "dft" else "nll")
    assert run.training.preference_loss == ("dpop" if name == "dpop" else "sigmoid")
    assert run.data.mistake == (["logical"] if name == "mistake_logical" else None)


@pytest.mark.parametrize("name", PREFERENCE)
def test_trl_trains_the_second_stage(name):
    run = runs(name)["preference"]
    trainer, options = PREFERENCE[name]
    assert (run.data.trainer, run.data.view) == (trainer, "pairs")
    assert isinstance(run.training, options_class(trainer))
    assert {option: getattr(run.training, option) for option in options} == options
    assert run.data.dataset_train_split == "dual"


def test_the_control_differs_from_edit_in_the_places_alone():
    written = {name: yaml.safe_load(RECIPES[name].read_text()) for name in ("edit", "random_mask")}
    control = written["random_mask"]["stages"][1]
    assert (control.pop("key_step_method"), control.pop("key_step_seed")) == ("random", 0)
    assert written["random_mask"].pop("output_dir") != written["edit"].pop("output_dir")
    assert written["random_mask"] == written["edit"]


def test_all_systems_share_what_they_do_not_differ_in():
    shared = [yaml.safe_load(path.read_text()) for path in RECIPES.values()]
    outputs = {values.pop("output_dir") for values in shared}
    assert outputs == {f"outputs/baselines/{name}" for name in RECIPES}
    stages = [stage for values in shared for stage in values.pop("stages")]
    assert all(values == shared[0] for values in shared)
    assert {stage["learning_rate"] for stage in stages if stage["name"] == "warm_up"} == {5.0e-4}
    # Penalties and preferences of whole chains take the rate of TRL's preference trainers.
    whole = {"redi", "redi_key_steps", "dpop", "step_dpo"}
    rates = {name: runs(name)["key_steps"].training.learning_rate for name in KEY_STEPS}
    assert rates == {name: 1.0e-5 if name in whole else 7.5e-5 for name in KEY_STEPS}
    assert {stage["learning_rate"] for stage in stages if stage["name"] == "preference"} == {1.0e-5}


@pytest.fixture
def generated(tmp_path) -> Path:
    """A folder as `edit-trl generate` writes it."""
    folder = tmp_path / "dual_cots"
    folder.mkdir()
    sources = ("corrupted", "rectified", "rectified_minimal", "corrupted")
    rows = [conversational(row) | {"source": s} for row, s in zip(ROWS, sources, strict=True)]
    Dataset.from_list([row | {"mistake": ["logical"]} for row in rows]).to_parquet(folder / "dual.parquet")
    correct = [
        row | {"rejected": [row["rejected"]], "source": row["source"].replace("corrupted", "annotated")} for row in rows
    ]
    Dataset.from_list(correct).to_parquet(folder / "warm_up.parquet")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_on_a_generated_folder(name, generated, tmp_path, saved_student, capsys):
    options = {"dataset_name": generated, "model_name_or_path": saved_student, "output_dir": tmp_path / "out"}
    options |= {"max_steps": 1, "gradient_accumulation_steps": 1, "use_cpu": "true", "bf16": "false"}
    options |= {"dtype": "float32", "gradient_checkpointing": "false", "save_strategy": "no"}
    options |= {"logging_steps": 1}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["validate", "--config", str(RECIPES[name]), *words]) == 0, capsys.readouterr().err
    for stage in runs(name):
        code = run_command(train_stage, ["--config", str(RECIPES[name]), "--stage", stage, *words])
        assert code == 0, capsys.readouterr().err
        state = json.loads((tmp_path / "out" / stage / "trainer_state.json").read_text())
        assert state["log_history"][0]["grad_norm"] > 0
