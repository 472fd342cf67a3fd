"""Every sentence of .github/SECURITY.md."""

import ast
import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import byte_level_tokenizer, tiny_llama
from datasets import DatasetDict
from train_recipe_runs import stage

import edit_trl
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.common.run_file import stage_options
from edit_trl.hub.repository import model_files
from edit_trl.models.chat.local import TransformersTeacher
from edit_trl.models.loading import ModelSource
from edit_trl.training.recipe.resolving import argument_classes

ROOT = Path(edit_trl.__file__).parent.parent
SOURCES = sorted(path for folder in ("edit_trl", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "subprocess.getoutput"),
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# Loaders of things that are no weights.
NO_WEIGHTS = ("Tokenizer", "Config", "Processor")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def offences(tree: ast.AST) -> list[str]:
    """What SECURITY.md says there is none of."""
    found = []
    for name, call in calls(tree):
        if name in CALLS:
            found.append(name)
        if keyword(call, "shell") not in (None, "False"):
            found.append(f"{name}(shell=...)")
        for option in ("trust_remote_code", "allow_pickle"):
            if keyword(call, option) == "True":
                found.append(f"{name}({option}=True)")
        if keyword(call, "weights_only") == "False":
            found.append(f"{name}(weights_only=False)")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in MODULES]
    return found


def loads_of_weights(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [
        (name, call)
        for name, call in calls(tree)
        if name.endswith(".from_pretrained") and not name.split(".")[-2].endswith(NO_WEIGHTS)
    ]


def test_the_readers_see_what_they_look_for():
    bad = (
        "import pickle\nfrom joblib import load\neval('1')\ntorch.load(f)\nyaml.load(f)\nrun(c, shell=True)\n"
        "f(trust_remote_code=True)\nnp.load(f, allow_pickle=True)\nx.load(f, weights_only=False)\n"
        "AutoModel.from_pretrained(x)\nAutoTokenizer.from_pretrained(x)\n"
    )
    assert len(offences(ast.parse(bad))) == 9
    assert [name for name, _ in loads_of_weights(ast.parse(bad))] == ["AutoModel.from_pretrained"]
    assert offences(ast.parse("model.eval()\nyaml.safe_load(f)\nrun(c, shell=False)\n")) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_no_eval_no_shell(path):
    assert offences(tree_of(path)) == []


def test_all_sources_were_looked_at():
    assert len(SOURCES) > 80
    assert {path.name for path in SOURCES} >= {"trainer.py", "push.py", "quickstart.py", "train_speed.py"}


def test_weights_are_safetensors_wherever_they_are_loaded():
    found = 0
    for path in SOURCES:
        for name, call in loads_of_weights(tree_of(path)):
            found += 1
            if name == "PeftModel.from_pretrained":  # has no such option: `put_on` looks first
                assert path.name == "adapters.py", path
            elif name == "auto.from_pretrained":  # of a tokenizer or a processor
                assert path.name == "loading.py", path
            elif keyword(call, "gguf_file") is None:  # neither is that format a pickle
                assert keyword(call, "use_safetensors") == "True", f"{path}: {ast.unparse(call)}"
    assert found >= 4  # the loader of models is not among them, for it is handed the function; it is tried below


# 1. Safetensors only


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def trap(tmp_path):
    """A model of pickles alone; loading them would spring the trap."""
    folder, sprung = tmp_path / "pickles", tmp_path / "sprung"
    tiny_llama().save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Trap(sprung)}, folder / "pytorch_model.bin")
    yield folder
    assert not sprung.exists()


def test_training_refuses_pickles(trap, recipe, tmp_path, capfd):
    assert stage(recipe, "warm_up", "--model_name_or_path", str(trap)) == 2
    assert "pickled weights are not loaded" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_trainer_refuses_pickles(trap, tmp_path, dual_cots):
    config = edit_trl.DualCoTConfig(str(tmp_path / "run"), use_cpu=True, report_to="none")
    with pytest.raises(InputError, match="safetensors"):
        edit_trl.DualCoTTrainer(str(trap), args=config, train_dataset=dual_cots)


def test_evaluation_chat_and_merge_refuse_pickles(trap, capsys):
    with pytest.raises(InputError, match="safetensors"):
        ModelSource(str(trap)).load()
    assert main(["chat", str(trap)]) == 2
    assert "safetensors" in capsys.readouterr().err


def test_a_local_teacher_refuses_pickles(trap):
    with pytest.raises(InputError, match="safetensors"):
        TransformersTeacher(str(trap))._load()


def test_what_training_saves_is_safetensors(recipe, tmp_path):
    assert stage(recipe, "warm_up", "--use_peft", "false") == 0
    out = tmp_path / "out" / "warm_up"
    assert (out / "model.safetensors").is_file()
    # transformers pickles its arguments; they stay here.
    assert {path.name for path in out.glob("*.bin")} <= {"training_args.bin"}
    assert not [
        name for name in model_files(out) if not name.endswith((".json", ".jinja", ".safetensors", ".md", ".svg"))
    ]


# 2. Remote code


def test_remote_code_is_off_in_every_recipe_and_command():
    fields = [
        f for cls in argument_classes("dual_cot") for f in dataclasses.fields(cls) if f.name == "trust_remote_code"
    ]
    assert fields
    assert not any(field.default for field in fields)
    for path in [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.yml")]:
        assert "trust_remote_code: true" not in path.read_text(encoding="utf-8").lower(), path
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = node.args.args + node.args.kwonlyargs
            defaults = node.args.defaults + node.args.kw_defaults
            given = dict(zip(reversed([a.arg for a in arguments]), reversed(defaults), strict=False))
            default = given.get("trust_remote_code")
            assert default is None or ast.unparse(default) == "False", path


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    byte_level_tokenizer().save_pretrained(folder)
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        ModelSource(str(folder)).load()
    assert not ran.exists()


# 6. Paths


def test_a_split_cannot_lead_out_of_its_folder(tmp_path, capsys, dual_cots):
    folder = tmp_path / "rows"
    DatasetDict({"train": dual_cots}).save_to_disk(folder)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../../escaped"]}))
    assert main(["push", str(folder), "--repo_id", "ada/rows", "--dry_run"]) == 2
    assert "a split named '../../escaped' cannot be pushed" in capsys.readouterr().err


def test_a_stage_cannot_lead_out_of_its_run(tmp_path):
    for name in ("secret", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"options": {"seed": 1}}))
    (tmp_path / "out" / "key_steps").mkdir(parents=True)
    assert stage_options(tmp_path / "run", ["secret", "run"])
    assert stage_options(tmp_path / "out" / "key_steps", ["../secret", "key_steps"]) == []


def test_links_out_of_a_folder_are_not_pushed(tmp_path):
    (tmp_path / "secret").write_text("mine")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link out of its folder"):
        model_files(folder)
    (folder / "README.md").unlink()
    (folder / "a").write_text("---\n")
    (folder / "README.md").symlink_to(folder / "a")
    assert set(model_files(folder)) == {"README.md"}


# 9. No environment


def test_no_environment_in_a_run_folder(recipe, tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-the-environment")
    assert stage(recipe, "warm_up", "--save_strategy", "steps", "--save_steps", "1") == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    for path in files:
        assert b"a-secret-of-the-environment" not in path.read_bytes(), path
    card = (tmp_path / "out" / "warm_up" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert os.uname().nodename not in card


def test_security_md_has_ten_sentences():
    text = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    assert [line.split(".")[0] for line in text.splitlines()[2:]] == [str(n) for n in range(1, 11)]
