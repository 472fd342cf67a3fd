"""`env` in a recipe: what is set, when, and what is refused."""

import json
import subprocess
import sys

import pytest
from conftest import ROWS

from edit_trl.cli.main import main
from edit_trl.common.environment import read_recipe_words
from edit_trl.common.errors import InputError

pytestmark = pytest.mark.usefixtures("environment")


def write(tmp_path, text: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_values_are_the_texts_that_are_written(tmp_path, environment):
    environment["EDIT_TRL_A"] = "of the shell"
    env = {"A": "1", "B": "false", "C": "'a b'", "D": "1e-4", "E": "''"}
    text = "seed: 3\nenv:\n" + "".join(f"  EDIT_TRL_{name}: {value}\n" for name, value in env.items())
    assert read_recipe_words(write(tmp_path, text)) == {"seed": "3"}
    values = {name[-1]: value for name, value in environment.items() if name.startswith("EDIT_TRL_")}
    assert values == {"A": "1", "B": "false", "C": "a b", "D": "1e-4", "E": ""}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("[a]", "`env: ['a']`: expected a mapping, got list"),
        ("3", "`env: '3'`: expected a mapping"),
        ("", "`env: None`: must not be empty, expected a mapping"),
        ("{A: {B: 1}}", "`env.A: {'B': 1}`: expected a text, got dict"),
        ("{A: [1]}", "`env.A: [1]`: expected a text, got list"),
        ("{A: null}", "`env.A: None`: must not be empty, expected a text"),
        ("{A=B: 1}", "`env`: 'A=B' is no name of a variable"),
        ("{LOCAL_RANK: 1}", "`env`: LOCAL_RANK is set by the launcher; remove it"),
    ],
)
def test_what_is_no_environment(tmp_path, environment, env, message):
    before = dict(environment)
    with pytest.raises(InputError) as caught:
        read_recipe_words(write(tmp_path, f"env: {env}\n"))
    [problem] = caught.value.problems
    assert problem == f"{tmp_path / 'recipe.yaml'}: {message}"
    assert environment == before


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password", "CLIENT_SECRET", "HTTPS_PROXY"]
)
def test_a_secret_is_refused_and_not_shown(tmp_path, environment, name):
    value = "http://me:hidden@proxy" if "PROXY" in name else "hidden"
    with pytest.raises(InputError, match=f"{name} looks like a secret.*export it in the shell") as caught:
        read_recipe_words(write(tmp_path, f"env: {{{name}: '{value}', OMP_NUM_THREADS: 1}}\n"))
    assert "hidden" not in str(caught.value)


def test_names_that_only_begin_like_secrets(tmp_path, environment):
    read_recipe_words(write(tmp_path, "env: {TOKENIZERS_PARALLELISM: false, HF_TOKEN_PATH: /a}\n"))
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_it_is_for_all_stages_and_recipes_alone(tmp_path, capfd):
    base = "model_name_or_path: m\ndataset_name: d.jsonl\nuse_cpu: true\n"
    recipe = write(tmp_path, base + "stages: [{name: a, env: {A: 1}}]\n")
    assert main(["validate", "--config", str(recipe)]) == 2
    assert "unknown key `env`; write it at the top of a recipe" in capfd.readouterr().err
    assert main(["validate", "--config", str(write(tmp_path, base)), "--env", "{A: 1}"]) == 2
    assert "unknown option --env; write it at the top of a recipe" in capfd.readouterr().err


LATER = """
import sys
from edit_trl.cli.main import main
print("code", main(sys.argv[1:]))
import datasets.config, torch
print("threads", torch.get_num_threads(), "cache", datasets.config.HF_DATASETS_CACHE)
"""


@pytest.mark.parametrize("command", ["train", "validate", "generate", "evaluate", "suite", "judge"])
def test_libraries_of_every_command_see_it(tmp_path, environment, command):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = {
        "train": "model_name_or_path: none/such\ndataset_name: rows.jsonl\nuse_cpu: true\nbf16: false\n",
        "generate": "teacher: procedural\nfamilies: [arithmetic]\noutput_dir: out\n",
        "evaluate": "model: /none\nfamilies: []\n",
        "suite": "model: /none\ndataset_name: rows.jsonl\n",
        "judge": "runs: [a, b]\nmodel: m\n",
    }
    recipe = write(tmp_path, f"env:\n  OMP_NUM_THREADS: 1\n  HF_DATASETS_CACHE: {tmp_path}/cache\n")
    recipe.write_text(recipe.read_text() + options.get(command, options["train"]))
    words = ["--num_processes", "0"] if command == "train" else []
    environment["OMP_NUM_THREADS"] = "2"
    script = [sys.executable, "-c", LATER, command, "--config", str(recipe), *words]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert f"threads 1 cache {tmp_path}/cache" in done.stdout, done.stderr
    assert "unknown key `env`" not in done.stderr
