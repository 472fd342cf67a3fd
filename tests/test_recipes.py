"""Every file in recipes/ is read by the code that will run it."""

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import RunArguments, resolve_runs

ROOT = Path(__file__).parents[1] / "recipes"
MODEL_RECIPES = sorted(ROOT.rglob("edit/config_*.yaml"))
QUICKSTART = sorted((ROOT / "quickstart").glob("*.yaml"))
ACCELERATE = sorted((ROOT / "accelerate").glob("*.yaml"))
SLURM = ROOT / "accelerate" / "slurm_multinode.sbatch"
RECIPES = [*MODEL_RECIPES, *QUICKSTART]
PAPER = ROOT / "Llama-2-7b" / "edit" / "config_paper.yaml"
THINKING = ROOT / "Qwen3-0.6B" / "edit" / "config_thinking.yaml"

MODELS = {
    *("SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct", "SmolLM2-1.7B-Instruct"),
    *("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B"),
    *("Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct"),
    *("gemma-3-1b-it", "gemma-3-4b-it", "Mistral-7B-Instruct-v0.3"),
}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=label)


@cache
def runs(path: Path) -> dict[str, RunArguments]:
    return {run.stage: run for run in resolve_runs(read_recipe(path), {})}


def variant(name: str) -> list[Path]:
    return [path for path in MODEL_RECIPES if path.stem == f"config_{name}"]


def test_every_recipe_is_found():
    assert len(MODEL_RECIPES) == 41
    assert len(QUICKSTART) >= 1
    assert len(ACCELERATE) == 6
    # Nothing in recipes/ escapes the tests below.
    files = {path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    # tests/teachers/test_generate_config.py, tests/evaluation/test_suite_config.py,
    # tests/cli/test_cli_judge.py, tests/cli/test_cli_evaluate.py, tests/training/test_baseline_recipes.py,
    # tests/cli/test_rounds.py, tests/test_notebook.py
    elsewhere = {"generate", "evaluate", "baselines", "rounds", "notebooks"}
    files -= {path for path in files if path.relative_to(ROOT).parts[0] in elsewhere}
    others = {"README.md", SLURM.name}
    assert {path.name for path in files - {*RECIPES, *ACCELERATE}} == others


def test_every_model_has_every_variant():
    found = {(path.parts[-3], path.stem) for path in MODEL_RECIPES if path not in (PAPER, THINKING)}
    assert found == {(model, f"config_{name}") for model in MODELS for name in ("full", "lora", "qlora")}
    assert {PAPER, THINKING} <= {*MODEL_RECIPES}


@each(RECIPES)
def test_both_stages_resolve(path):
    stages = runs(path)
    assert list(stages) == ["warm_up", "key_steps"]
    for name, run in stages.items():
        assert Path(run.training.output_dir).name == name
        assert run.data.dataset_name


@each(RECIPES)
def test_warm_up_is_sft_on_the_correct_chains(path):
    warm_up = runs(path)["warm_up"].training
    assert (warm_up.chosen_key_weight, warm_up.chosen_context_weight) == (1.0, 1.0)
    assert (warm_up.rejected_key_weight, warm_up.preference_weight) == (0.0, 0.0)
    assert warm_up.normalization == "step"
    assert warm_up.reference == "none"


@each([path for path in RECIPES if path != PAPER])
def test_key_steps_is_gentle(path):
    key_steps = runs(path)["key_steps"].training
    assert (key_steps.chosen_key_weight, key_steps.chosen_context_weight) == (2.0, 1.0)
    assert (key_steps.rejected_key_weight, key_steps.preference_weight) == (0.0, 0.1)
    assert key_steps.preference_scope == "fork"
    assert key_steps.normalization == "completion"


@each(RECIPES)
def test_key_steps_learns_more_slowly(path):
    stages = runs(path)
    ratio = stages["key_steps"].training.learning_rate / stages["warm_up"].training.learning_rate
    # The quickstart's second stage has pairs of its own to learn.
    assert 0.01 < ratio < (0.6 if path.parent.name == "quickstart" else 0.2)


@each(RECIPES)
def test_numbers_are_numbers_to_yaml(path):
    """PyYAML reads `1e-4` as text, which other readers of the file would trip over."""

    def texts(value) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)

    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [text for text in texts(values) if re.fullmatch(r"[-+]?[\d._]+(e[-+]?\d+)?", text, re.I)] == []


@each(MODEL_RECIPES)
def test_is_named_for_its_model_and_shared_settings(path):
    name, form = path.parts[-3], path.stem.removeprefix("config_")
    for run in runs(path).values():
        hub_name = run.model.model_name_or_path.split("/")[1]
        assert hub_name == ("Llama-2-7b-hf" if path == PAPER else name)
        assert Path(run.training.output_dir).parent == Path("outputs", f"{name}-EDIT-{form}")
        assert run.data.dataset_name == ("outputs/thinking" if path == THINKING else "data/dual_cots.jsonl")
        assert "bf16" not in run.values  # taken where the machine has it, so that any machine validates
        assert run.training.gradient_checkpointing is True
        assert run.training.max_length == (4096 if path == THINKING else 1024)
        assert run.training.chat_template_kwargs == ({"enable_thinking": True} if path == THINKING else None)
        assert run.training.eval_strategy == "no"
        assert run.training.push_to_hub is False


@each([path for path in MODEL_RECIPES if path != PAPER])
def test_optimizer_step_is_of_32_pairs(path):
    comment = r"(\d+) x (\d+) makes an optimizer step of 32 on (\w+) GPU"
    says = re.search(comment, path.read_text(encoding="utf-8"))
    batch, accumulation, gpus = (1 if word == "one" else int(word) for word in says.groups())
    assert batch * accumulation * gpus == 32
    for run in runs(path).values():
        assert run.training.per_device_train_batch_size == batch
        assert run.training.gradient_accumulation_steps == accumulation


def test_no_two_recipes_share_an_output_folder():
    folders = [run.training.output_dir for path in RECIPES for run in runs(path).values()]
    assert len(set(folders)) == len(folders) == 2 * len(RECIPES)


@each(variant("full"))
def test_full_trains_float32_weights(path):
    for run in runs(path).values():
        assert (run.model.use_peft, run.model.load_in_4bit, run.model.dtype) == (False, False, "float32")


@each(variant("lora"))
def test_lora(path):
    for run in runs(path).values():
        assert (run.model.use_peft, run.model.load_in_4bit, run.model.dtype) == (True, False, "bfloat16")


@each(variant("qlora"))
def test_qlora(path):
    for run in runs(path).values():
        assert (run.model.use_peft, run.model.load_in_4bit) == (True, True)
        assert (run.model.bnb_4bit_quant_type, run.model.use_bnb_nested_quant) == ("nf4", True)
        assert run.model.dtype == "bfloat16"  # TRL computes in it
        assert run.training.optim == "paged_adamw_8bit"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    needed = {"use_peft", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype"}
    assert needed | {"gradient_checkpointing", "optim"} <= written.keys()


@each(RECIPES)
def test_adapters_stay_off_the_head_and_the_vision_tower(path):
    targets = runs(path)["warm_up"].model.lora_target_modules
    if not runs(path)["warm_up"].model.use_peft:
        assert targets is None
    elif path == PAPER:
        assert targets == ["q_proj", "v_proj"]
    elif "gemma-3-4b-it" in path.parts:
        assert re.fullmatch(targets, "model.language_model.layers.0.self_attn.q_proj")
        assert re.fullmatch(targets, "model.language_model.layers.0.mlp.down_proj")
        assert not re.fullmatch(targets, "model.vision_tower.encoder.layers.0.self_attn.q_proj")
        assert not re.fullmatch(targets, "lm_head")
    else:
        assert targets == "all-linear"  # PEFT leaves the head out


def test_paper_recipe_has_the_papers_values():
    warm_up, key_steps = runs(PAPER).values()
    for run, rate, epochs in ((warm_up, 2.0e-4, 15), (key_steps, 5.0e-6, 10)):
        model, training = run.model, run.training
        assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (64, 32, 0.05)
        assert (training.learning_rate, training.num_train_epochs) == (rate, epochs)
        assert (training.lr_scheduler_type, training.lr_decay_per_epoch) == ("constant", 0.95)
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 256
        assert (training.max_length, training.weight_decay, training.warmup_steps) == (1024, 0.0, 0)
    training = key_steps.training
    assert training.key_step_method == "edit"
    assert (training.chosen_key_weight, training.chosen_context_weight) == (1.0, 0.0)
    assert (training.rejected_key_weight, training.rejected_key_scope) == (0.025, "all")
    assert (training.rejected_penalty, training.normalization) == ("likelihood", "completion")
    assert training.preference_weight == 0.0


def test_paper_recipe_opens_with_its_warning():
    first = PAPER.read_text(encoding="utf-8").split("model_name_or_path")[0]
    for phrase in ("When it hurts", "no lower bound", "one standard error", "continued SFT"):
        assert phrase in first


@pytest.mark.parametrize(
    ("name", "distributed_type", "processes"),
    [
        ("single_gpu", DistributedType.NO, 1),
        ("cpu", DistributedType.NO, 1),
        ("ddp", DistributedType.MULTI_GPU, 2),
        ("fsdp2", DistributedType.FSDP, 2),
        ("zero2", DistributedType.DEEPSPEED, 2),
        ("zero3", DistributedType.DEEPSPEED, 2),
    ],
)
def test_accelerate_loads_its_configurations(name, distributed_type, processes):
    config: ClusterConfig = load_config_from_file(os.fspath(ROOT / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes) == (distributed_type, processes)
    assert config.mixed_precision == "no"  # the recipe decides
    assert config.use_cpu is (name == "cpu")
    assert config.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A node that has Slurm's commands and accelerate: each writes down how it was called."""
    commands = {
        "scontrol": 'case "$1" in show) echo node1; echo node2;; *) echo "$@" >> "$CALLS";; esac',
        "srun": 'shift; SLURM_NODEID=0 exec "$@"',
        "accelerate": 'echo "accelerate $@" >> "$CALLS"; exit "${CODE:-0}"',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(*options: str, code: int = 0) -> tuple[int, list[str]]:
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)}
        environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
        done = subprocess.run(["bash", SLURM, *options], env=environment | {"CODE": str(code)}, check=False)
        return done.returncode, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_slurm_script_requeues_when_the_launcher_got_the_signal(slurm, tmp_path):
    """As torchrun does: the processes save, but the launcher's own code says nothing of it."""
    (tmp_path / "accelerate").write_text(
        '#!/bin/bash\necho "accelerate" >> "$CALLS"\ntrap "sleep 0.2; exit 1" TERM\n'
        "kill -TERM $PPID $$\nsleep 5 & wait\n"
    )
    code, calls = slurm("recipe.yaml")
    assert (code, calls) == (0, ["accelerate", "requeue 7"])


def test_slurm_script_is_bash():
    subprocess.run(["bash", "-n", SLURM], check=True)
    text = SLURM.read_text(encoding="utf-8")
    assert "#SBATCH --nodes=2" in text
    assert "#SBATCH --signal=TERM@120" in text  # to the steps, so that the trainer gets it


def test_slurm_script_launches_every_stage(slurm):
    """The real script, between stand-ins for Slurm's commands; accelerate's own parser reads the rest."""
    code, calls = slurm("recipe.yaml", "--learning_rate", "1e-4")
    assert code == 0
    assert len(calls) == 2
    for call, stage in zip(calls, ("warm_up", "key_steps"), strict=True):
        words = call.split()[2:]
        args = launch_command_parser().parse_args(words)
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 8, 0)
        assert (args.main_process_ip, args.main_process_port) == ("node1", 20007)
        assert args.config_file == "recipes/accelerate/fsdp2.yaml"
        assert (args.module, args.training_script) == (True, "edit_trl.cli.train")
        given = ["--config", "recipe.yaml", "--stage", stage, "--learning_rate", "1e-4"]
        assert args.training_script_args == given


def test_slurm_script_requeues_what_was_told_to_stop(slurm):
    code, calls = slurm("recipe.yaml", code=75)
    assert (code, len(calls), calls[-1]) == (0, 2, "requeue 7")


def test_slurm_script_ends_with_the_code_of_a_failure(slurm):
    code, calls = slurm("recipe.yaml", code=3)
    assert (code, len(calls)) == (3, 1)
    assert slurm()[0] == 2


def test_readme_lists_every_folder():
    pages = [ROOT / "README.md", ROOT / "accelerate" / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    rows = [line for line in text.splitlines() if line[:1] == "|"]
    listed = set(re.findall(r"`([\w.-]+)`", "\n".join(rows)))
    assert {path.parts[-3] for path in MODEL_RECIPES} <= listed
    assert {path.stem for path in ACCELERATE} <= listed
    assert "`quickstart/`" in "\n".join(rows)
