"""Folders of models, tokenizers and adapters that are broken, and names of models that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustness_cases.case import Case
from robustness_cases.material import ROWS, lines

Edit = Callable[[Path], Any]


def cut(name: str) -> Edit:
    """Leaves half of a file."""

    def edit(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return edit


def gone(*names: str) -> Edit:
    """Removes files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def text(name: str, content: str) -> Edit:
    """Writes a file anew."""
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def values(name: str, /, **changes: Any) -> Edit:
    """Changes values of a JSON file."""

    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(found | changes), encoding="utf-8")

    return edit


def _without_a_layer(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _nan_weights(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


CONVERSATIONS = lines(
    [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in ROWS
    ]
)
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
# What is broken in a copy of the student, and what the message must name beside the folder.
STUDENTS: dict[str, tuple[Edit, str]] = {
    "cut weights": (cut(WEIGHTS), "safetensors|incomplete|header|weights"),
    "empty weights": (text(WEIGHTS, ""), "safetensors|empty|header|weights"),
    "weights that are text": (text(WEIGHTS, "hello " * 100), "safetensors|header|weights"),
    "no weights": (gone(WEIGHTS), "safetensors|weights"),
    "weights that are no pickle": (_pickled, r"safetensors|pytorch_model|weights"),
    "more layers than weights": (values(CONFIG, num_hidden_layers=4), r"layers\.[23]|missing"),
    "a layer without its weights": (_without_a_layer, r"layers\.1|missing"),
    "other shapes": (values(CONFIG, hidden_size=64), "shape|size|64"),
    "another vocabulary": (values(CONFIG, vocab_size=500), "shape|size|500|embed"),
    "no config": (gone(CONFIG), "config"),
    "an empty config": (text(CONFIG, ""), "config"),
    "a cut config": (cut(CONFIG), "config"),
    "a config that is a list": (text(CONFIG, "[]"), "config"),
    "a kind that nobody knows": (values(CONFIG, model_type="nothing"), "nothing|model_type"),
    "no kind": (text(CONFIG, "{}"), "model_type|config"),
    "an encoder": (values(CONFIG, model_type="bert", architectures=["BertModel"]), "bert|shape|missing"),
    "heads that do not divide": (values(CONFIG, num_attention_heads=3, head_dim=None), "heads|shape|size|divi"),
    "a negative size": (values(CONFIG, hidden_size=-1), "hidden_size|-1|negative"),
    "a size that is text": (values(CONFIG, hidden_size="big"), "hidden_size|big"),
    "code of its own": (
        values(CONFIG, model_type="mine", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}),
        "trust_remote_code|mine",
    ),
    "no tokenizer": (gone(TOKENIZER, "tokenizer_config.json"), "tokenizer"),
    "a cut tokenizer": (cut(TOKENIZER), "tokenizer"),
    "a tokenizer that is a list": (text(TOKENIZER, "[]"), "tokenizer"),
    "a tokenizer's config that is cut": (cut("tokenizer_config.json"), "tokenizer"),
    "a template that is no template": (
        text("chat_template.jinja", "{% for m in messages %}{{ m.content }}"),
        "template",
    ),
    "a template that refuses": (text("chat_template.jinja", "{{ raise_exception('not\x1b[31m this') }}"), "template"),
    "a template of an unknown filter": (text("chat_template.jinja", "{{ messages | nofilter }}"), "template"),
    "a template that divides by zero": (text("chat_template.jinja", "{{ 1 / 0 }}"), "template"),
    "a template that reaches for Python": (
        text("chat_template.jinja", "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__.os }}"),
        "template",
    ),
    "a template of nothing": (text("chat_template.jinja", ""), "template|prompt"),
    "NaN weights": (_nan_weights, "finite|nan|norm"),
}
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS: dict[str, tuple[Edit, str]] = {
    "cut weights": (cut(ADAPTER), "safetensors|incomplete|header|weights"),
    "empty weights": (text(ADAPTER, ""), "safetensors|empty|header|weights"),
    "no weights": (gone(ADAPTER), "adapter_model|weights"),
    "a config that is no JSON": (text(ADAPTER_CONFIG, "{nope"), "adapter_config"),
    "an empty config": (text(ADAPTER_CONFIG, ""), "adapter_config"),
    "a config that is a list": (text(ADAPTER_CONFIG, "[]"), "adapter_config"),
    "a config without a base": (values(ADAPTER_CONFIG, base_model_name_or_path=None), "base"),
    "itself as the base": (values(ADAPTER_CONFIG, base_model_name_or_path="broken"), "itself|own|base|adapter"),
    "a base that is gone": (values(ADAPTER_CONFIG, base_model_name_or_path="gone"), "gone"),
    "a base that is a number": (values(ADAPTER_CONFIG, base_model_name_or_path=5), "base"),
    "a kind that nobody knows": (values(ADAPTER_CONFIG, peft_type="MAGIC"), "MAGIC|peft_type"),
    "another rank": (values(ADAPTER_CONFIG, r=8), "shape|size|rank"),
    "a rank of zero": (values(ADAPTER_CONFIG, r=0), r"\br\b|rank|0"),
    "targets that the base lacks": (values(ADAPTER_CONFIG, target_modules=["w_x"]), "w_x|target"),
    "an unknown option": (
        values(ADAPTER_CONFIG, magic_of_tomorrow=1, target_modules=5),
        "target_modules|magic|adapter_config",
    ),
}
NAMES = {
    "a Hub id that is none": ("a/b/c", "a/b/c"),
    "an id with a space": ("some one/model", "some one/model"),
    "an id with dots": ("../../x", r"\.\./\.\./x"),
    "an id that nobody has here": ("nobody/nothing", "nobody/nothing"),
    "a file": ("rows.jsonl", r"rows\.jsonl"),
    "a name too long": ("n" * 300, "nnnn"),
    "a folder of rows": ("empty", "empty"),
    "a run of evaluate": ("run_a", "run_a"),
    "a URL": ("http://127.0.0.1:1/model", "127"),
    "nothing": ("", "model|run|missing|empty"),
}


def cases() -> Iterator[Case]:
    commands = ("evaluate", "train", "suite", "chat")
    for number, (name, (edit, said)) in enumerate(STUDENTS.items()):
        for command in (commands[number % 4], commands[(number + 1) % 4]):
            if name == "NaN weights" and command in ("evaluate", "chat"):
                continue  # the likeliest of no numbers is a token: told only where there are scores
            # Rows of plain text need no template.
            files = {"rows.jsonl": CONVERSATIONS} if "template" in name else {}
            yield _case(f"student with {name}", command, "student", edit, said, files)
    commands = ("merge", "evaluate", "chat", "train", "suite")
    for number, (name, (edit, said)) in enumerate(ADAPTERS.items()):
        for command in (commands[number % 5], commands[(number + 2) % 5]):
            yield _case(f"adapter with {name}", command, "adapter", edit, said)
    for name, (model, said) in NAMES.items():
        for command in ("evaluate", "train", "suite", "chat", "merge"):
            yield Case("models", name, words_for(command, model), said, files={"empty/.keep": ""}, typed="Hello\n")
    for name, (model, said) in {
        "a model without an adapter": ("student", "adapter|whole model"),
        "an unfinished run": ("run_a", "run_a"),
    }.items():
        yield Case("models", name, ("merge", model, "--output", "merged"), said)
    for name, (edit, said) in STUDENTS.items():
        if "tokenizer" in name:
            yield Case(
                "models",
                f"--tokenizer with {name}",
                ("inspect", "rows.jsonl", "--tokenizer", "broken"),
                ("broken", said),
                prepare=_broken("student", edit),
            )


def words_for(command: str, model: str) -> tuple[str, ...]:
    """The command line that uses a model."""
    return {
        "evaluate": ("evaluate", "--config", "evaluate.yaml", "--model", model),
        "suite": ("suite", "--config", "suite.yaml", "--model", model),
        "train": ("train", "--config", "train.yaml", "--model_name_or_path", model),
        "chat": ("chat", model, "--max_new_tokens", "4"),
        "merge": ("merge", model, "--output", "merged"),
    }[command]


def _broken(source: str, edit: Edit) -> Edit:
    def prepare(folder: Path) -> None:
        shutil.copytree(folder / source, folder / "broken")
        edit(folder / "broken")

    return prepare


def _case(name: str, command: str, source: str, edit: Edit, said: str, files: dict[str, str] | None = None) -> Case:
    words, named = words_for(command, "broken"), "broken|gone" if "gone" in name else "broken"
    prepare = _broken(source, edit)
    return Case("models", name, words, (named, said), files=files or {}, prepare=prepare, loads=True, typed="Hello\n")
