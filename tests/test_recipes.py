"""Every recipe parses through the real parser and names only keys that exist."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from edit_trl.recipe import read_recipe, resolve_runs

RECIPES = Path(__file__).parents[1] / "recipes"
ACCELERATE = sorted((RECIPES / "accelerate").glob("*.yaml"))
QUICKSTART = sorted((RECIPES / "quickstart").glob("*.yaml"))
MODELS = sorted(set(RECIPES.rglob("*.yaml")) - set(ACCELERATE) - set(QUICKSTART))
PAPER = RECIPES / "Llama-2-7b" / "edit" / "config_paper.yaml"

every_recipe = pytest.mark.parametrize(
    "path", [*MODELS, *QUICKSTART], ids=lambda p: str(p.relative_to(RECIPES))
)
every_model_recipe = pytest.mark.parametrize("path", MODELS, ids=lambda p: str(p.relative_to(RECIPES)))


def runs_of(path: Path):
    # The recipes ask for bf16; a machine without a GPU takes it on the CPU.
    return resolve_runs(read_recipe(path), {"use_cpu": True})


def test_how_many_there_are():
    assert len(MODELS) == 13 * 3 + 1
    assert len(QUICKSTART) == 1
    assert [path.stem for path in ACCELERATE] == ["cpu", "ddp", "fsdp2", "single_gpu", "zero2", "zero3"]
    # Nothing in recipes/ is left out by the patterns above.
    files = {path for path in RECIPES.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    others = files - {*MODELS, *QUICKSTART, *ACCELERATE}
    assert {path.name for path in others} == {"README.md", "quickstart.py"}


@every_recipe
def test_parses_into_both_stages(path):
    warm_up, key_steps = runs_of(path)
    assert (warm_up.stage, key_steps.stage) == ("warm_up", "key_steps")
    assert warm_up.training.output_dir != key_steps.training.output_dir


@every_recipe
def test_warm_up_is_sft(path):
    training = runs_of(path)[0].training
    assert (training.chosen_key_weight, training.chosen_context_weight) == (1.0, 1.0)
    assert (training.rejected_key_weight, training.preference_weight) == (0.0, 0.0)
    assert training.normalization == "step"


@every_recipe
def test_key_steps_go_slower_than_the_warm_up(path):
    warm_up, key_steps = (run.training.learning_rate for run in runs_of(path))
    assert 0.01 < key_steps / warm_up < 0.2


@every_recipe
def test_yaml_reads_numbers_as_numbers(path):
    """PyYAML takes `1e-4` for text; the parser mends it, a recipe should not need it."""
    raw = yaml.safe_load(path.read_text())
    for values in (raw, *raw["stages"]):
        for name in ("learning_rate", "lora_dropout", "weight_decay", "warmup_steps", "preference_weight"):
            assert isinstance(values.get(name, 0.0), (int, float)), name


@every_recipe
def test_never_lora_on_the_head(path):
    for run in runs_of(path):
        assert "lm_head" not in (run.model.lora_target_modules or ())


@every_model_recipe
def test_variants_are_what_their_names_say(path):
    variant = path.stem.removeprefix("config_")
    for run in runs_of(path):
        model, training = run.model, run.training
        assert model.use_peft == (variant != "full")
        assert model.load_in_4bit == (variant == "qlora")
        if variant == "qlora":
            assert (model.bnb_4bit_quant_type, model.use_bnb_nested_quant) == ("nf4", True)
            assert model.dtype == "bfloat16"  # TRL computes in the dtype of the model
            assert training.optim == "paged_adamw_8bit"
            assert training.gradient_checkpointing
        step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        assert step == (256 if variant == "paper" else 32)
        assert model.model_name_or_path.split("/")[-1].startswith(path.parent.parent.name)


def test_output_folders_differ():
    folders = [run.training.output_dir for path in [*MODELS, *QUICKSTART] for run in runs_of(path)]
    assert len(set(folders)) == len(folders)


def test_the_papers_setting():
    warm_up, key_steps = runs_of(PAPER)
    for run in (warm_up, key_steps):
        model, training = run.model, run.training
        assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (64, 32, 0.05)
        assert model.lora_target_modules == ["q_proj", "v_proj"]
        assert (training.max_length, training.weight_decay, training.lr_decay_per_epoch) == (1024, 0.0, 0.95)
    assert (warm_up.training.learning_rate, warm_up.training.num_train_epochs) == (2e-4, 15)
    training = key_steps.training
    assert (training.learning_rate, training.num_train_epochs) == (5e-6, 10)
    assert (training.chosen_key_weight, training.rejected_key_weight) == (1.0, 0.025)
    assert (training.chosen_context_weight, training.preference_weight) == (0.0, 0.0)
    assert (training.rejected_penalty, training.rejected_key_scope) == ("likelihood", "all")
    assert (training.key_step_method, training.normalization) == ("edit", "completion")


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda p: p.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    expected = {"cpu": "NO", "single_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert config.distributed_type == expected.get(path.stem, "DEEPSPEED")
    assert config.use_cpu == (path.stem == "cpu")


def test_readme_names_every_folder():
    text = (RECIPES / "README.md").read_text()
    for folder in (path for path in RECIPES.iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"`{folder.name}" in text, folder.name
