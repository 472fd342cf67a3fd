import pytest
import yaml

from edit_trl.common.errors import InputError
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import parse_options, resolve_runs

BASE = """
model_name_or_path: some/model
dataset_name: data.jsonl
output_dir: out
use_cpu: true
bf16: false
report_to: none
"""
STAGES = """
stages:
  - name: warm_up
    learning_rate: 2.0e-4
    preference_weight: 0.0
  - name: key_steps
    learning_rate: 3.0e-5
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path)

    return write


def resolve(recipe, *argv: str):
    return resolve_runs(recipe, parse_options(argv))


def problems(recipe, *argv: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        resolve(recipe, *argv)
    return caught.value.problems


def test_one_run(recipe):
    (run,) = resolve(recipe(BASE + "learning_rate: 1.0e-5\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\n"))
    assert run.stage is None
    assert run.training.learning_rate == 1e-5
    assert run.training.output_dir == "out"
    assert run.model.lora_target_modules == ["q_proj", "v_proj"]
    assert run.data.dataset_name == "data.jsonl"


def test_stages_override_and_options_win(recipe):
    warm_up, key_steps = resolve(recipe(BASE + "learning_rate: 1.0e-3\n" + STAGES), "--max_steps", "5")
    assert (warm_up.stage, warm_up.training.output_dir) == ("warm_up", "out/warm_up")
    assert warm_up.training.learning_rate == 2e-4
    assert warm_up.training.preference_weight == 0.0
    assert key_steps.training.learning_rate == 3e-5
    assert key_steps.training.preference_weight == 0.1
    assert warm_up.training.max_steps == key_steps.training.max_steps == 5
    for run in resolve(recipe(BASE + STAGES), "--learning_rate", "1e-5", "--output_dir", "elsewhere"):
        assert run.training.learning_rate == 1e-5
        assert run.training.output_dir == f"elsewhere/{run.stage}"


def test_without_a_recipe():
    options = ("--model_name_or_path", "m", "--dataset", "d.jsonl", "--output_dir", "o", "--use_cpu")
    (run,) = resolve(read_recipe(None), *options)
    assert run.data.dataset_name == "d.jsonl"


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # PyYAML reads this as text
        ("learning_rate: 1", "learning_rate", 1.0),
        ("per_device_train_batch_size: '4'", "per_device_train_batch_size", 4),
        ("gradient_checkpointing: 'false'", "gradient_checkpointing", False),
        ("max_length: null", "max_length", None),
        (
            "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}",
            "lr_scheduler_kwargs",
            {"num_cycles": 2},
        ),
        ("report_to: [none]", "report_to", []),
        ("eval_strategy: no", "eval_strategy", "no"),  # YAML reads false
        ("save_strategy: no", "save_strategy", "no"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", None),  # what is done anyway
    ],
)
def test_values_as_yaml_gives_them(recipe, line, name, expected):
    (run,) = resolve(recipe(BASE.replace("report_to: none\n", "") + line))
    assert getattr(run.training, name) == expected


def test_column_mapping(recipe):
    (run,) = resolve(recipe(BASE + "column_mapping: {correct: chosen}\n"))
    assert run.data.column_mapping == {"correct": "chosen"}
    (run,) = resolve(recipe(BASE), "--column_mapping", '{"correct": "chosen"}')
    assert run.data.column_mapping == {"correct": "chosen"}
    assert "expected a mapping" in problems(recipe(BASE), "--column_mapping", "correct=chosen")[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learnig_rate: 1.0", "unknown key `learnig_rate`; did you mean `learning_rate`?"),
        ("rejected_key_wieght: 1.0", "did you mean `rejected_key_weight`?"),
        ("zzz: 1", "unknown key `zzz`"),
        ("learning_rate: fast", "`learning_rate: 'fast'`: expected a number"),
        ("max_steps: 2.5", "`max_steps: '2.5'`: expected a whole number"),
        ("use_peft: [1]", "`use_peft: [1]`: expected true or false, got list"),
        ("learning_rate:", "`learning_rate: None`: must not be empty, expected a number"),
        ("preference_loss: sigmoit", "did you mean 'sigmoid'?"),
        (
            "key_step_method: word",
            "expected one of edit, words, fork, forks, step, spans, reference, random; did you mean 'words'?",
        ),
        ("chosen_key_weight: -2.0", "`chosen_key_weight` must be a finite number, 0 or more"),
        ("load_in_4bit: true", "`load_in_4bit: true` needs an adapter to train; set `use_peft: true`"),
        ("use_peft: true\nlora_target_modules: [lm_head]", "LoRA on `lm_head` would never be trained"),
        ("reference: adapter_off", "`reference: adapter_off` needs an adapter to switch off"),
        ("warmup_ratio: 0.1", "unknown key `warmup_ratio`; write `warmup_steps`, where a number below 1 is a share"),
        ("torch_dtype: bfloat16", "unknown key `torch_dtype`; write `dtype`"),
        ("dataset_streaming: true", "unknown key `dataset_streaming`; remove it: key steps are found before training"),
        ("ignore_bias_buffers: true", "unknown key `ignore_bias_buffers`; write `ddp_broadcast_buffers: false`"),
        ("fsdp: full_shard", "`fsdp: full_shard` is no option of a recipe; choose how to shard when launching"),
        ("deepspeed: none.json", "`deepspeed: none.json`: there is no such file"),
        ("resume_from_checkpoint: false", "a run is resumed in its folder; choose another `output_dir`"),
        ("include_for_metrics: [loss]", "is about `compute_metrics`, a function that only DualCoTTrainer in Python"),
        ("eval_on_start: true", "`eval_on_start: true` needs an evaluation"),
        ("use_bnb_nested_quant: true", "`use_bnb_nested_quant` need `load_in_4bit: true`"),
        ("gradient_checkpointing: true\nactivation_checkpointing: false", "are two names of one option; remove one"),
        ("dtype: fp16", "`dtype: 'fp16'`: expected one of auto, bfloat16, float16, float32"),
        (
            "dtype: float32\nmodel_init_kwargs: {dtype: bfloat16}",
            "`model_init_kwargs: {dtype: bfloat16}` and `dtype: float32` contradict each other",
        ),
        ("model_init_kwargs: {torch_dtype: bfloat16}", "`model_init_kwargs` cannot set 'torch_dtype': write `dtype`"),
        ("trainer: dpo\nlearning_rate: -1.0", "`learning_rate` must be a finite number, 0 or more, got -1.0"),
        ("trainer: dpo\nhub_strategy: checkpoint", "`hub_strategy: checkpoint` would push checkpoints"),
        ("trainer: cpo\noptim: adamw_torch_fusd", "did you mean 'adamw_torch_fused'?"),
        ("lr_scheduler_type: cosin", "cosin"),
        ("eval_strategy: sometimes", "sometimes"),
    ],
)
def test_bad_values(recipe, line, message):
    found = problems(recipe(BASE + line))
    assert len(found) == 1
    assert message in found[0]


def test_all_problems_of_all_stages_at_once(recipe):
    text = BASE + "learnig_rate: 1.0\n" + STAGES + "    preference_loss: ipo\n"
    found = problems(recipe(text))
    assert found == [
        "unknown key `learnig_rate`; did you mean `learning_rate`?",
        "stage key_steps: `preference_loss: ipo` compares with a reference model, but `reference` is 'none'; "
        "set `reference: adapter_off` (LoRA) or `reference: precomputed`",
    ]


def test_missing_model_and_data(recipe):
    found = problems(recipe("use_cpu: true\n"))
    assert [problem.split(" is missing")[0] for problem in found] == ["`model_name_or_path`", "`dataset_name`"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learnig_rate", "1e-5"], "unknown option --learnig_rate; did you mean `--learning_rate`?"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--learning", "1e-5"], "unknown option --learning"),  # no abbreviations
        (["stray"], "unexpected 'stray'"),
    ],
)
def test_bad_options(argv, message):
    with pytest.raises(InputError) as caught:
        parse_options(argv)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--view", "rectifed"], "did you mean 'rectified'?"),
        (["--key_step_method", "wrods"], "did you mean 'words'?"),
        (["--lr_scheduler_type", "cosin"], "'cosine'"),
        (["--loss_type", "nothing_such"], "nothing_such"),
    ],
)
def test_bad_choices_of_the_command_line_are_named_as_those_of_a_recipe(recipe, argv, message):
    assert message in " ".join(problems(recipe(BASE), *argv))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- a\n- b\n", "must hold options as `key: value`, got list"),
        ("", "is empty; write options as `key: value`"),
        ("stages: warm_up", "`stages` must be a list"),
        ("stages: []", "`stages` must be a list"),
        ("stages: [{learning_rate: 1.0}]", "stage 1 needs a `name`"),
        ("stages: [{name: a/b}]", "stage 1 needs a `name` of letters, digits and underscores, got 'a/b'"),
        ("stages: [{name: a}, {name: a}]", "two stages are named 'a'"),
        ("stages: [{name: a, output_dir: b}]", "stage 'a' sets `output_dir`"),
    ],
)
def test_bad_files(recipe, text, message):
    with pytest.raises(InputError) as caught:
        recipe(text)
    assert message in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="no recipe at"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_options_of_pairs_are_for_stages_with_pairs(tmp_path):
    def values(stages, **options):
        file = tmp_path / "recipe.yaml"
        base = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": str(tmp_path / "out"), "use_cpu": True}
        file.write_text(yaml.safe_dump({**base, "bf16": False, "stages": stages}))
        return [run.values for run in resolve_runs(read_recipe(file), options)]

    sft = {"chosen_key_weight": 1, "preference_weight": 0}
    pairs = {"name": "key_steps"}
    options = {"rows": 5, "mistake": ["logical"], "hardest_forks": 0.5, "chosen_key_weight": 3.0, "learning_rate": 1e-3}
    first, second = values([{"name": "warm_up", **sft}, pairs], **options)
    assert {name: first.get(name) for name in options} == dict.fromkeys(options) | {
        "chosen_key_weight": 1,
        "learning_rate": 1e-3,
    }
    assert {name: second.get(name) for name in options} == options
    # Which stages have pairs is what the recipe says, by their view or by their weights.
    first, second = values([{"name": "warm_up", "views": {"chosen": 1, "check": 1}, **sft}, pairs], rows=5)
    assert ("rows" in first, "rows" in second) == (False, True)
    first, second = values([{"name": "warm_up", "views": "{chosen: 1, pairs: 1}"}, pairs], rows=5)
    assert (first["rows"], second["rows"]) == (5, 5)
    # In a recipe without pairs they are for all stages.
    [only] = values([{"name": "warm_up", **sft}], rows=5)
    assert only["rows"] == 5
