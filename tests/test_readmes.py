"""Every README: its links lead somewhere, and its commands and snippets are right.

Commands are checked as far as they go without a network, a GPU or an endpoint. Every option belongs to its command,
every recipe and file exists or is made by another command, and the options of recipes are validated. Commands that
take seconds with practice problems and a tiny student are run, in the order of the pages.
"""

import ast
import contextlib
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from conftest import ROWS, byte_level_tokenizer, conversational, tiny_llama

import edit_trl
from edit_trl import ProceduralTeacher, generate_dual_cots
from edit_trl.cli.main import COMMANDS, main, run_command
from edit_trl.cli.train import train_stage
from edit_trl.common.options import read_options
from edit_trl.common.shipped import find_recipe, recipe_names

ROOT = Path(__file__).parents[1]
TOP = ROOT / "README.md"
# In an order in which each page finds what the pages before it have made.
PAGES = [
    TOP,
    ROOT / "recipes/README.md",
    *(ROOT / "recipes" / name / "README.md" for name in ("baselines", "generate", "evaluate", "accelerate")),
    ROOT / "benchmarks/README.md",
]

PAIRS = ("dual_cots.jsonl", "held_out.jsonl")
QUESTIONS = ("questions.jsonl",)
TASK = "my_task.yaml"
YOURS = {*PAIRS, *QUESTIONS, TASK}
"""Files of their own that readers are told to have."""

PLACEHOLDER = re.compile(r"[A-Z_]+")
DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet", ".yaml", ".html", ".xml"}
WRITES = {"output_dir", "output", "html", "junit", "json", "markdown"}
MODELS = {"model", "student", "model_name_or_path"}
DEFAULT_OUTPUT = {
    "generate": "outputs/dual_cots",
    "evaluate": "outputs/evaluate",
    "suite": "outputs/suite",
    "judge": "outputs/judge",
    "quickstart": "outputs/quickstart",
    "report": "report.html",
}


@dataclass(frozen=True)
class Command:
    """A command as a page shows it, without `edit-trl`."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).parent}: {shlex.join(self.words)}"

    @property
    def name(self) -> str:
        return self.words[0]

    def valued(self) -> Iterator[tuple[str, str]]:
        """The words with the option that each follows; "" before the first."""
        option = ""
        for word in self.words[1:]:
            if word.startswith("--"):
                option, equals, word = word[2:].partition("=")
                option = option.replace("-", "_")
                if not equals:
                    continue
            yield option, word

    def options(self) -> set[str]:
        return {word.partition("=")[0] for word in self.words if word.startswith("--")}

    def value(self, option: str) -> str | None:
        return next((word for name, word in self.valued() if name == option), None)

    def makes(self) -> set[str]:
        """The files and folders that the command writes."""
        if self.words[:2] == ("recipes", "copy"):
            return {self.words[3] if len(self.words) > 3 else Path(self.words[2]).name + ".yaml"}
        made = {word for option, word in self.valued() if option in WRITES}
        config = self.value("config")
        if made or self.name == "validate":
            return made
        if config in recipe_names():
            recipe = yaml.safe_load(Path(find_recipe(config)).read_text(encoding="utf-8"))
            made = {recipe["output_dir"]} if "output_dir" in recipe else made
        return made or {DEFAULT_OUTPUT[self.name]} & {*DEFAULT_OUTPUT.values()} if self.name in DEFAULT_OUTPUT else made

    def reads(self) -> set[str]:
        """The local files and folders that the command is given."""
        if self.name == "recipes":
            return set()
        words = {word for option, word in self.valued() if option not in WRITES}
        return {
            word
            for word in words
            if word.startswith(("outputs/", "data/")) or (Path(word).suffix in DATA_SUFFIXES and "{" not in word)
        }


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`|^ {4}.*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and text of each fenced block; indented ones have the language ""."""
    found: list[tuple[str, str]] = []
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    found += fence.findall(text)
    for block in re.findall(r"(?:(?<=\n\n)|\A)((?: {4}.*\n)(?:(?: {4}.*)?\n)*)", fence.sub("", text)):
        found.append(("", re.sub(r"^ {4}", "", block, flags=re.M)))
    return found


def lines(page: Path, program: str) -> list[list[str]]:
    """The words of each line of a block that starts with a program; a backslash continues a line."""
    found = []
    for language, text in blocks(page):
        if language in ("", "bash", "sh", "shell", "console"):
            joined = re.sub(r"\\\n\s*", " ", text)
            shown = [line.removeprefix("$ ") for line in joined.splitlines()]
            found += [shlex.split(line, comments=True) for line in shown if line.startswith(f"{program} ")]
    return found


def commands(page: Path) -> list[Command]:
    return [Command(page, tuple(words[1:])) for words in lines(page, "edit-trl")]


def inline_commands(page: Path) -> list[Command]:
    """The commands within sentences."""
    shown = re.findall(r"`edit-trl ([^`\n]+)`", page.read_text(encoding="utf-8"))
    return [Command(page, tuple(shlex.split(words))) for words in shown]


ALL = [command for page in PAGES for command in commands(page)]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT).parent))
each_command = pytest.mark.parametrize("command", ALL, ids=str)


def test_pages_are_all_there():
    found = {path for path in ROOT.rglob("README.md") if not {".venv", "tests", "outputs"} & {*path.parts}}
    assert found >= set(PAGES)
    assert {path for path in found if path.is_relative_to(ROOT / "recipes")} <= set(PAGES)


def test_the_first_page_is_short():
    assert len(TOP.read_text(encoding="utf-8").split()) <= 900


def test_blocks_of_a_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "A line\n\n    edit-trl train --config a \\\n        --b 'c d'   # why\n    pip install x\n\n"
        "- item\n    edit-trl none\n\n```bash\n$ edit-trl push x\n```\n```yaml\nedit-trl none\n```\n"
        "See `edit-trl chat x`.\n"
    )
    words = [command.words for command in commands(page)]
    assert sorted(words) == [("push", "x"), ("train", "--config", "a", "--b", "c d")]
    assert [command.words for command in inline_commands(page)] == [("chat", "x")]


# Links


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)).lower().replace(" ", "-") for title in titles
    }


IN_REPOSITORY = re.compile(
    r"https://(?:github\.com/[^/]+/[^/]+/(?:blob|tree|raw)|raw\.githubusercontent\.com/[^/]+/[^/]+)/main/"
)


@each_page
def test_links_lead_somewhere(page):
    text = without_code(page)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    broken = []
    for target in targets:
        place, _, anchor = target.partition("#")
        if IN_REPOSITORY.match(place):
            file = ROOT / IN_REPOSITORY.sub("", place)
        elif place.startswith(("https://", "http://")):
            continue
        elif page == TOP and place:
            broken.append(f"{target}: relative, so it breaks on a package index")
            continue
        else:
            file = page.parent / place if place else page
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in slugs(file):
            broken.append(f"{target}: no such heading")
    assert broken == []


# Snippets


@each_page
def test_snippets_are_python_and_yaml(page):
    for language, text in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and node.module == "edit_trl":
                    assert {name.name for name in node.names} <= {*edit_trl.__all__}
        elif language in ("yaml", "json"):
            assert yaml.safe_load(text)


@each_page
def test_scripts_and_extras_exist(page):
    for words in lines(page, "python"):
        script = ROOT / words[1]
        source = script.read_text(encoding="utf-8")
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == [], script
        assert [
            word for word in words if word.startswith(("benchmarks/", "recipes/")) and not (ROOT / word).exists()
        ] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"pip install '?(?:edit_trl|\.)\[([\w,]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


FOLDERS = {"baselines": "baselines", "evaluate": "evaluate", "generate": "generate", "rounds": "generate"}
"""The page of each folder of recipes."""


@each_page
def test_recipes_in_sentences_exist(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if name not in recipe_names() and not (ROOT / "recipes" / name).is_dir()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_recipe_is_on_its_page(folder):
    page = (ROOT / "recipes" / FOLDERS[folder] / "README.md").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "recipes" / folder).glob("*.yaml")} - {"bbh_tasks"}  # a part of `bbh`
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"{folder}/{name}" not in page] == []


# Commands


@cache
def known_options(name: str) -> set[str]:
    """The options that the help of a command lists."""
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        if name == "validate":  # and those of any recipe
            others = [known_options(other) for other in ("train", "generate", "evaluate", "suite", "judge")]
            return {"--config", "--dataset"}.union(*others)
        with contextlib.suppress(SystemExit):  # argparse ends the program after its help
            main([name, "--help-all" if name == "train" else "--help"])
        return {*re.findall(r"--[\w-]+", sys.stdout.getvalue())} | {"--config", "--help"}
    finally:
        sys.stdout = stdout


@cache
def hub_models() -> set[str]:
    """The models that recipes name by their id."""
    names = (find_recipe(name) for name in recipe_names())
    recipes = [yaml.safe_load(Path(name).read_text(encoding="utf-8")) for name in names]
    return {recipe["model_name_or_path"] for recipe in recipes if "model_name_or_path" in recipe}


def is_placeholder(word: str) -> bool:
    return PLACEHOLDER.fullmatch(word) is not None


@pytest.mark.parametrize("command", [*ALL, *(c for page in PAGES for c in inline_commands(page))], ids=str)
def test_commands_and_options_exist(command):
    if is_placeholder(command.name) or command.name.startswith("--"):
        return
    assert command.name in COMMANDS
    known = {option.replace("-", "_") for option in known_options(command.name)}
    if command.name == "train":
        known.add("__dataset")
    assert [option for option in command.options() if option.replace("-", "_") not in known] == []
    made = {path for other in commands(command.page) for path in other.makes()}
    config = command.value("config")
    if config and not is_placeholder(config) and config not in made:
        assert config in recipe_names(), "write the name of a recipe, which works without a clone"
    accelerate = command.value("accelerate_config")
    assert accelerate is None or f"accelerate/{accelerate}" in recipe_names()
    if command.name == "recipes" and len(command.words) > 1:
        part = command.words[2 if command.words[1] in ("show", "copy") else 1]
        assert is_placeholder(part) or any(name.startswith(part) for name in recipe_names())
    models = [word for option, word in command.valued() if option in MODELS and "/" in word]
    assert [word for word in models if not word.startswith("outputs/") and word not in hub_models()] == []


@each_command
def test_files_exist_or_are_made_by_a_command(command):
    """By an earlier command of the page, or by one of another page."""
    here = commands(command.page)
    earlier = here[: here.index(command)] + [other for other in ALL if other.page != command.page]
    made = {*YOURS}.union(*(other.makes() for other in earlier))
    unknown = [
        path
        for path in command.reads()
        if not any(
            path == known or path.startswith(f"{known}/") or f"{known}/".startswith(path.split("*")[0])
            for known in made
        )
    ]
    assert unknown == []


@pytest.fixture
def reader(tmp_path, monkeypatch) -> None:
    """A working directory with pairs, questions, a task, and the folder of a quickstart with a tiny student."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for name in PAIRS:
        rows = [{**conversational(row), "mistake": ["logical"]} for row in ROWS]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in QUESTIONS:
        rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / TASK).write_text(f"version: 1\ndataset_name: {QUESTIONS[0]}\n")
    students = [f"quickstart/{name}" for name in ("student", "warm_up", "key_steps")]
    for seed, name in enumerate([*students, "baselines/wrong_chains/key_steps"]):
        tiny_llama(seed=seed).save_pretrained(tmp_path / "outputs" / name)
        byte_level_tokenizer().save_pretrained(tmp_path / "outputs" / name)
    # In place of a student's own pairs, which take minutes: others whose key steps are known too.
    generate_dual_cots(ProceduralTeacher(), 4, conversational=True).save_to_disk(tmp_path / "outputs/pivots")


# What a command is given besides its own options, so that it takes a second or two.
SMALL = {
    "train": "--model_name_or_path outputs/quickstart/student --max_steps 1 --max_length 512 --use_cpu true "
    "--dtype float32 --bf16 false --per_device_train_batch_size 2 --gradient_accumulation_steps 1 "
    "--gradient_checkpointing false",
    "generate": "--rows 6",
    "evaluate": "--limit 1 --max_new_tokens 4",
    "suite": "--limit 2 --max_new_tokens 4",
}
# The student that is trained, once, since other commands measure it.
TRAINED = "SmolLM2-135M-Instruct/edit/config_lora"
OF_LAUNCHING = {"--dry_run", "--accelerate_config", "--num_processes", "--stage"}
"""Options of `train` that are none of a recipe, so that `validate` does not know them."""


def without(words: list[str], options: set[str]) -> list[str]:
    """The words without these options and their values."""
    kept, is_left_out = [], False
    for word in words:
        if word.startswith("--"):
            is_left_out = word.partition("=")[0] in options
        if not is_left_out:
            kept.append(word)
    return kept


def small(command: Command) -> list[str]:
    """The words of a command with a tiny student and few rows."""
    added = shlex.split(SMALL.get(command.name, ""))
    own_problems = command.name == "generate" and not command.value("config")
    if own_problems or command.words[:2] == ("recipes", "copy"):
        added.append("--force")  # a page before it may have made the same file
    words = without([*command.words], {word for word in added if word.startswith("--")})
    return [*("outputs/quickstart/student" if word in hub_models() else word for word in words), *added]


def is_run(command: Command) -> bool:
    """Whether a command needs neither a network nor an endpoint, a GPU, a terminal or minutes."""
    config = command.value("config") or ""
    if command.name == "generate":
        asks_a_model = config not in ("", "generate/procedural") or command.options() & {
            "--pairs",
            "--model",
            "--base_urls",
        }
        return not asks_a_model
    if command.name in ("evaluate", "suite"):
        return config in ("", "evaluate/procedural", "evaluate/suite_procedural", "evaluate/suite_own") and not (
            command.options() & {"--engine", "--base_urls", "--harness"}
        )
    if command.name == "train":
        is_new = not any(Path(path).exists() for path in command.makes())
        return config == TRAINED and is_new and not command.options() & OF_LAUNCHING
    return command.name in ("validate", "inspect", "compare", "report", "merge", "history", "recipes") or (
        command.name == "push" and "--dry_run" in command.words
    )


def run(command: Command) -> int:
    words = small(command)
    if command.name != "train":
        return main(words)
    path = find_recipe(command.value("config") or "")
    words = ["--config", path, *without(words[1:], {"--config"})]
    stages = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["stages"]
    return max(run_command(train_stage, [*words, "--stage", stage["name"]]) for stage in stages)


def data_is_elsewhere(error: str) -> bool:
    """Whether all that is wrong is that a dataset of the Hub cannot be reached."""
    problems = [line for line in error.splitlines() if line.strip() and not line.endswith(":")]
    return bool(problems) and all(re.search(r"offline|HF_HUB_OFFLINE|Hub|network", line, re.I) for line in problems)


def test_commands_work(reader, capsys):
    """Each is run, or its options are validated. They are one test, since they find what those before have made."""
    problems = [f"{command}\n{problem}" for command in ALL if (problem := problem_of(command, capsys))]
    assert not problems, "\n\n".join(problems)


def problem_of(command: Command, capsys) -> str:
    """What is wrong with a command, as it says itself; "" if nothing is, or if it has a placeholder."""
    if any(is_placeholder(word) for _, word in command.valued()):
        return ""
    ran = is_run(command)
    if not ran and command.name not in ("train", "generate", "evaluate", "suite", "judge"):
        return ""
    code = run(command) if ran else validated(command)
    error = capsys.readouterr().err
    return "" if code == 0 or (not ran and data_is_elsewhere(error)) else f"exit code {code}\n{error}"


def validated(command: Command) -> int:
    """The exit code of `edit-trl validate` with the options of the command; without a recipe, of its own checks."""
    words = without([*command.words[1:]], OF_LAUNCHING)
    if command.value("config"):
        return main(["validate", *words])

    def check(_words: list[str]) -> int:
        if command.name == "generate":
            from edit_trl.teachers.generate_config import FLAGS, OPTIONS, read_generate_config
            from edit_trl.teachers.run import GenerationPlan

            assert str(GenerationPlan(read_generate_config(*read_options(words, OPTIONS, FLAGS))))
        else:
            options = import_module(f"edit_trl.cli.{command.name}").recipe_options()
            assert options.check(*options.build(*read_options(words, options.names)))
        return 0

    return run_command(check, words)
