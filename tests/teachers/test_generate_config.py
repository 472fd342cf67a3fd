"""Recipes of `edit-trl generate`, those that are shipped and bad ones."""

import json
from pathlib import Path

import pytest
import yaml

from edit_trl.common.errors import InputError
from edit_trl.common.options import option_help
from edit_trl.data.exemplars import load_exemplars
from edit_trl.models.chat.batch_endpoint import BatchEndpoint
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.teachers.generate_config import CLASSES, read_generate_config
from edit_trl.teachers.run import GenerationPlan
from edit_trl.training.recipe.outline import read_recipe

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = [path for path in sorted((ROOT / "generate").glob("*.yaml")) if path.stem != "bbh_tasks"]
EXEMPLARS = sorted((ROOT / "generate" / "exemplars").glob("*.yaml"))
BASE = {"teacher": "procedural", "families": ["arithmetic"], "rows": 5}


def write(folder: Path, **values) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
    return path


def test_every_file_is_one_of_these():
    assert [path.stem for path in RECIPES] == [
        "agieval",
        "arc",
        "batch",
        "bbh",
        "critique",
        "gsm8k",
        "label_steps",
        "own_questions",
        "pivots",
        "procedural",
        "thinking",
    ]
    files = {path for path in (ROOT / "generate").rglob("*") if path.is_file()}
    others = {ROOT / "generate" / name for name in ("bbh_tasks.yaml", "README.md")}
    assert files == {*RECIPES, *EXEMPLARS, *others}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_hold(path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    config = read_generate_config(path, {})
    assert config.templates().texts
    teacher = config.make_teacher()
    if config.arguments.pairs:
        assert (teacher, config.arguments.teacher) == (None, "none")
        assert len(config.questions(None)) == config.arguments.rows
    else:
        assert teacher.model == (config.arguments.model or "procedural")
    config.exemplars()
    assert config.arguments.output_dir.startswith("outputs/")


@pytest.mark.parametrize("path", EXEMPLARS, ids=lambda path: path.stem)
def test_shipped_exemplars_hold(path):
    exemplars = load_exemplars(path)
    assert len(exemplars) >= 3
    assert all(exemplar.wrong_chain for exemplar in exemplars)


def test_bbh_names_27_tasks_with_descriptions():
    config = read_generate_config(ROOT / "generate" / "bbh.yaml", {})
    tasks = config.arguments.dataset_config
    descriptions = yaml.safe_load(Path(config.arguments.task_descriptions).read_text())
    assert len(set(tasks)) == 27
    assert set(tasks) == set(descriptions)
    assert {exemplar.task for exemplar in config.exemplars()} <= set(tasks)


def test_values_reach_their_parts(tmp_path):
    path = write(tmp_path, **BASE, samples=3, max_key_fraction=0.5, max_concurrency=7, rectify="minimal")
    config = read_generate_config(path, {"samples": "2", "temperature": "1e-1", "conversational": "false"})
    assert (config.options.samples, config.options.temperature, config.options.rectify) == (2, 0.1, "minimal")
    assert config.options.bounds.max_key_fraction == 0.5
    assert config.limits.max_concurrency == 7
    assert config.arguments.conversational is False


def test_files_are_looked_for_beside_the_recipe(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}))
    (tmp_path / "t.txt").write_text("Say {question}")
    path = write(
        tmp_path,
        model="m",
        base_urls=["http://127.0.0.1:1/v1"],
        dataset_name="q.jsonl",
        templates={"annotate": "t.txt"},
    )
    prepared = GenerationPlan(read_generate_config(path, {}))
    assert [question.question for question in prepared.questions] == ["What is 1 + 1?"]
    assert prepared.templates.texts["annotate"] == "Say {question}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample": 3}, "unknown key `sample`; did you mean `samples`?"),
        ({"samples": 0}, "`samples` must be at least 1, got 0"),
        ({"rectify": "minmal"}, "did you mean 'minimal'?"),
        ({"teacher": "opnai"}, "`teacher: 'opnai'`: expected one of openai_compatible, batch, transformers_local"),
        ({"rows": "many"}, "`rows: 'many'`: expected a whole number"),
        ({"max_key_fraction": 2.0}, "0 <= `min_key_fraction` < `max_key_fraction` <= 1 must hold"),
        ({"max_cost": 1.0}, "`max_cost` needs a price"),
        ({"dataset_name": "q.jsonl"}, "`teacher: procedural` asks its own problems"),
        ({"teacher": "openai_compatible"}, "`model` is missing: the teacher, as the endpoint names it"),
        ({"teacher": "openai_compatible", "model": "m"}, "`base_urls` is missing"),
        ({"teacher": "transformers_local", "model": "m"}, "`dataset_name` is missing"),
        ({"rounds": 2}, "`rounds` trains a student between generations: set `student` and `train_recipe`"),
        ({"student_base_urls": ["http://x/v1"]}, "`student_base_urls` needs `student`"),
        ({"labeller": "m"}, "`labeller` is a model at the teacher's endpoints"),
        ({"limit": 0}, "`limit` must be positive, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"batching": "contiuous"}, "did you mean 'continuous'"),
        ({"batching": "vllm"}, "pip install vllm"),
        ({"batching": "padded"}, "`batching` is for models that are loaded; an endpoint batches by itself"),
        ({"batching": "continuous", "send_seed": True}, "`batching: continuous` takes no seeds"),
    ],
)
def test_bad_recipes(tmp_path, values, message):
    path = write(tmp_path, **(BASE | values))
    with pytest.raises(InputError) as caught:
        read_generate_config(path, {})
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)


def test_all_problems_at_once(tmp_path):
    path = write(tmp_path, teacher="openai_compatible", samples=0, max_concurrency=0, nothing=1)
    with pytest.raises(InputError) as caught:
        read_generate_config(path, {})
    assert len(caught.value.problems) == 6


def test_what_a_recipe_names_is_checked_all_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "q.jsonl").write_text('{"question": "What?", "answer": 4}')
    (tmp_path / "e.yaml").write_text("- {question: q, chain: 'The answer is 5.', answer: '4'}")
    path = write(
        tmp_path,
        model="m",
        base_urls=["https://example.org/v1"],
        dataset_name="q.jsonl",
        exemplars="e.yaml",
        templates={"judge": "none.txt"},
    )
    with pytest.raises(InputError) as caught:
        GenerationPlan(read_generate_config(path, {}))
    problems = "\n".join(caught.value.problems)
    for words in ("no API key", "write numbers as text", "has the answer '5'", "cannot read the template"):
        assert words in problems


def test_the_recipes_of_other_commands_are_told_apart():
    with pytest.raises(InputError, match="this is a recipe of `edit-trl train`"):
        read_generate_config(ROOT / "quickstart" / "config.yaml", {})
    with pytest.raises(InputError, match="this is a recipe of `edit-trl generate`"):
        read_recipe(ROOT / "generate" / "procedural.yaml")


@pytest.mark.parametrize("text", ["[", "- a", "3"])
def test_files_that_are_no_recipes(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        read_generate_config(path, {})


def test_every_option_says_what_it_is_for():
    helped = option_help(CLASSES)
    for cls in CLASSES:
        for name in cls.__dataclass_fields__:
            assert name == "bounds" or len(helped[name]) > 10, name


def test_students_and_labellers_are_made(tmp_path, saved_student):
    endpoint = {"model": "m", "base_urls": ["http://127.0.0.1:1/v1"], "dataset_name": "q.jsonl"}
    path = write(tmp_path, **endpoint, labeller="big", label="fine", student=str(saved_student))
    config = read_generate_config(path, {})
    assert config.make_labeller().model == "big"
    assert config.make_student().address.startswith("weights ")
    served = read_generate_config(path, {"student_base_urls": ["http://127.0.0.1:2/v1"]})
    assert served.make_student().address == "http://127.0.0.1:2/v1"
    assert read_generate_config(path, {"label": "none"}).make_labeller() is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer_after": "####"}, "`answer_after`: for questions of `dataset_name`, but they are procedural problems"),
        ({"task": "a", "dataset_split": "b"}, "`dataset_split`, `task`: for questions of `dataset_name`"),
        ({"rollouts": 4}, "`rollouts` is for `pairs: pivots`"),
        ({"wrong_share": 1.5}, "`wrong_share` must be from 0 to 1, got 1.5"),
        ({"difficulty": 0}, "`difficulty` must be from 1 to 5, got 0"),
        ({"poll_interval": 5, "batch_discount": 0.5}, "`batch_discount`, `poll_interval` are for `teacher: batch`"),
        ({"seed": -1}, "`seed` must be from 0 to 9007199254740991, got -1"),
    ],
)
def test_options_without_effect_or_out_of_range(tmp_path, values, message):
    with pytest.raises(InputError) as caught:
        read_generate_config(write(tmp_path, **BASE, **values), {})
    assert message in str(caught.value)


BATCH = {"teacher": "batch", "model": "m", "base_urls": ["http://127.0.0.1:1/v1"], "dataset_name": "q.jsonl"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"max_concurrency": 4, "tokens_per_minute": 9},
            "`max_concurrency`, `tokens_per_minute`: for requests that are",
        ),
        ({"base_urls": ["http://a/v1", "http://b/v1"]}, "`teacher: batch` takes one URL"),
        ({"engine": "ray"}, "`engine: ray` does nothing for `teacher: batch`"),
        ({"batch_discount": 1.0}, "`batch_discount` must be at least 0 and below 1, got 1.0"),
        ({"poll_interval": 0}, "`poll_interval` must be positive, got 0"),
        ({"base_urls": None}, "`base_urls` is missing"),
        ({"rows": 5}, "`rows`: for procedural problems"),
    ],
)
def test_options_that_a_batch_cannot_have(tmp_path, values, message):
    with pytest.raises(InputError) as caught:
        read_generate_config(write(tmp_path, **BATCH | values), {})
    assert message in str(caught.value)


def test_a_batch_has_its_price_and_leaves_other_models_their_pace(tmp_path):
    path = write(tmp_path, **BATCH, prompt_price=2.0, labeller="big", label="fine", student="s", max_concurrency=4)
    config = read_generate_config(path, {"student_base_urls": ["http://127.0.0.1:2/v1"], "batch_discount": "0.25"})
    assert (config.teacher_limits.prompt_price, config.limits.prompt_price) == (1.5, 2.0)
    makers = (config.make_teacher, config.make_labeller, config.make_student)
    assert [type(make()) for make in makers] == [BatchEndpoint, BatchEndpoint, OpenAICompatibleTeacher]
    assert config.make_labeller().model == "big"


def test_an_option_of_another_type_is_not_called_missing(tmp_path):
    path = write(tmp_path, model=["m"], base_urls=["http://127.0.0.1:9/v1"], dataset_name="q.jsonl")
    with pytest.raises(InputError) as caught:
        read_generate_config(path, {})
    assert caught.value.problems == ["`model: ['m']`: expected a text, got list"]
