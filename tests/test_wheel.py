"""The built wheel, in an empty folder: the commands of the README work without a clone."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import byte_level_tokenizer, tiny_llama

ROOT = Path(__file__).parents[1]
STUDENT = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What the commands are given, so that they take seconds; a later option wins.
SMALL = {
    "train": "--max_steps 1 --max_length 512 --use_cpu true --bf16 false --per_device_train_batch_size 2 "
    "--gradient_accumulation_steps 1",
    "evaluate": "--limit 1 --max_new_tokens 4",
}
# `quickstart` has a test of its own, and asking a teacher needs a teacher.
NOT_RUN = ("quickstart", "generate --config my_questions.yaml")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which the wheel is unpacked, as pip does it for a package without compiled parts."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = (folder / "dist").glob("edit_trl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A folder with nothing but questions, and a tiny student where its Hub id is looked for first."""
    folder = tmp_path_factory.mktemp("empty")
    tiny_llama().save_pretrained(folder / STUDENT)
    byte_level_tokenizer().save_pretrained(folder / STUDENT)
    (folder / "questions.jsonl").write_text('{"question": "What is 2 + 3?", "answer": "5"}\n')
    return folder


def python(installed: Path, empty: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_wheel_has_the_package_its_types_and_all_recipes(installed):
    shipped = {path.relative_to(installed / "edit_trl/recipes") for path in (installed / "edit_trl/recipes").rglob("*")}
    tracked = subprocess.run(["git", "ls-files", "recipes"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a clone")
    assert {Path(name).relative_to("recipes") for name in tracked} <= shipped
    assert (installed / "edit_trl/py.typed").is_file()
    assert not (installed / "tests").exists()


def test_the_commands_of_the_readme(installed, empty):
    """In their order, each in a process of its own."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    assert len(snippet.splitlines()) <= 12
    where = python(installed, empty, "-c", "import edit_trl; print(edit_trl.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    python(installed, empty, "-c", snippet.replace("max_steps=20", "max_steps=1, use_cpu=True, max_length=512"))
    assert (empty / "my-student/model.safetensors").is_file()

    commands = re.findall(r"^    edit-trl (.*)$", readme.replace("\\\n", " "), re.M)
    assert len(commands) >= 10
    for command in commands:
        if not command.startswith(NOT_RUN):
            words = shlex.split(command, comments=True)
            python(installed, empty, "-m", "edit_trl.cli.main", *words, *shlex.split(SMALL.get(words[0], "")))
    assert (empty / "report.html").is_file()


def test_accelerate_configurations_are_found(installed, empty):
    words = ["train", "--config", "SmolLM2-135M-Instruct/edit/config_lora", "--accelerate_config", "dpd"]
    command = [sys.executable, "-m", "edit_trl.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "the names are: cpu, ddp, fsdp2, single_gpu, zero2, zero3" in done.stderr
