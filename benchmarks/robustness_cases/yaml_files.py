"""Recipes and other YAML files that are none, or that hold what no option can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robustness_cases.case import Case, Outcome
from robustness_cases.commands import WITH_RECIPE
from robustness_cases.material import recipe

# Text that is no recipe of any command: what the message must say of it, beside the file's name.
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "a tab as indent": ("seed: 1\nstages:\n\t- name: a\n", "line 3|tab"),
    "an open bracket": ("seed: [1, 2\n", "line|expected"),
    "an open quote": ('seed: "abc\n', "line|quote"),
    "two colons": ("seed: a: b\n", "line 1"),
    "a broken escape": ('seed: "\\q"\n', "line 1|escape"),
    "an alias without an anchor": ("seed: *nowhere\n", "nowhere"),
    "a recursive alias": ("seed: &a [*a]\n", "seed|alias|itself"),
    "an unknown tag": ("seed: !thing 1\n", "!thing"),
    "a tag that would run a program": (
        "seed: !!python/object/apply:os.system ['touch pwned']\n",
        "python/object/apply",
    ),
    "a date that does not exist": ("seed: 2024-13-45\n", "2024-13-45|month|date"),
    "a time that does not exist": ("seed: 2024-01-01 25:61:61\n", "25:61:61|hour|date|time"),
    "digits without end": ("seed: " + "9" * 5000 + "\n", "seed|digits|999"),
    "!!int of a word": ("seed: !!int abc\n", "abc|int"),
    "!!float of a word": ("seed: !!float abc\n", "abc|float"),
    "!!bool of a word": ("seed: !!bool maybe\n", "maybe|bool"),
    "!!timestamp of a word": ("seed: !!timestamp abc\n", "abc|timestamp"),
    "!!binary of no base64": ("seed: !!binary '*'\n", "binary|base64|seed"),
    "!!set": ("seed: !!set {1, 2}\n", "seed|set"),
    "brackets 3000 deep": ("a: " + "[" * 3000 + "]" * 3000 + "\n", "deep|nest|`a`"),
    "mappings 3000 deep": ("a: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n", "deep|nest|`a`"),
    "a key that is a number": ("1: 2\n", r"\b1\b"),
    "a key that is a fraction": ("0.5: 2\n", r"0\.5"),
    "a key that is true": ("on: 2\n", "True|true|on"),
    "a key that is null": ("~: 2\n", "None|null|~|empty"),
    "a key that is a date": ("2024-01-01: 2\n", "2024"),
    "a key that is a list": ("? [a, b]\n: 2\n", "key|line 1|unhashable"),
    "a key that is a mapping": ("? {a: b}\n: 2\n", "key|line 1|unhashable"),
    "a merge of a number": ("<<: 5\n", "merg|line 1"),
    "a key given twice": ("seed: 1\nseed: 2\n", "twice|two|again|once|duplicate|repeated"),
    "an inner key given twice": ("extra: {a: 1, b: 2, a: 3}\n", "twice|two|again|once|duplicate|repeated"),
    "nothing": ("", "key: value|empty|options"),
    "a comment alone": ("# nothing\n", "key: value|empty|options"),
    "null": ("null\n", "key: value|options|NoneType"),
    "a list": ("- seed: 1\n", "list"),
    "a text": ("seed\n", "str|text|key: value"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "document|line"),
    "UTF-16 without its mark": ("seed: 1\n".encode("utf-16-le"), "utf|codec|decode|character"),
    "Latin-1": ("system_prompt: é\n".encode("latin-1"), "UTF-8|utf-8|codec|decode"),
    "a lone surrogate": (b"system_prompt: \xed\xa0\x80\n", "UTF-8|utf-8|codec|decode"),
    "a NUL": ("seed: \0\n", "line|character|#x0000"),
    "a control character": ("seed: \x1b[31m\n", "line|character|#x001b"),
    "a key with a control character": ('"se\\ed": 1\n', "unknown|se"),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(100), "UTF-8|utf-8|codec|character"),
}
FILE, TWICE = r"x\.yaml", "twice|two|again|once|duplicate|repeated"
# Aliases that stand for 10^10 items in ten lines.
LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else ', '.join('x' * 10)}]\n" for n in range(10))
# These are tried with every command that takes a recipe, the others with two commands in turn.
EVERYWHERE = (
    *(
        "a date that does not exist",
        "a key that is a date",
        "a key that is true",
        "a key given twice",
        "UTF-16 without its mark",
    ),
    *("brackets 3000 deep", "digits without end", "a list", "nothing", "a tag that would run a program"),
)


def cases() -> Iterator[Case]:
    for number, (name, (text, said)) in enumerate(BROKEN.items()):
        pair = {WITH_RECIPE[number % 6], WITH_RECIPE[(number * 5 + 2) % 6]}
        for command in WITH_RECIPE if name in EVERYWHERE else sorted(pair):
            yield Case("YAML", name, (command, "--config", "x.yaml"), (FILE, said), files={"x.yaml": text})
    for command in WITH_RECIPE:
        words = (command, "--config", "x.yaml")
        laughs = {"x.yaml": LAUGHS + "seed: *a9\n"}
        yield Case("YAML", "aliases that multiply", words, (FILE, "seed|alias"), files=laughs, seconds=30)
        yield Case("YAML", "no such file", (command, "--config", "gone.yaml"), r"gone\.yaml")
        yield Case("YAML", "a folder", (command, "--config", "student"), "student")
    for command in WITH_RECIPE[::2]:
        yield Case("YAML", "a name too long", (command, "--config", "y" * 300 + ".yaml"), "yyyy")
        yield Case("YAML", "a device", (command, "--config", "/dev/null"), "/dev/null")
        twice = {"x.yaml": recipe(command) + "max_attempts: 3\n" * 2}
        if command in ("train", "evaluate", "suite"):
            twice = {"x.yaml": recipe(command) + "seed: 1\nseed: 2\n"}
        said = (FILE, "seed|max_attempts", TWICE)
        yield Case("YAML", "a good recipe with a key given twice", (command, "--config", "x.yaml"), said, files=twice)
    yield from _beside_a_recipe()
    yield from _without_effect()


def _without_effect() -> Iterator[Case]:
    """Options of questions that a file on this machine cannot honour, and launches that cannot begin."""
    for name, option in {
        "a split of a file": "dataset_split: test",
        "a slice of a file": "dataset_split: train[:3]",
        "a configuration of a file": "dataset_config: main",
        "several configurations of a file": "dataset_config: [a, b]",
    }.items():
        said, task = option.partition(": ")[2].strip("[]").split(",")[0].replace("[", r"\["), f"{option}\n"
        files = {"t.yaml": f"dataset_name: q.jsonl\nanswer_type: number\n{task}"}
        yield Case("YAML", f"a task of {name}", ("evaluate", "--config", "evaluate.yaml"), said, files=files)
        words = ("generate", "--config", "x.yaml")
        yield Case("YAML", name, words, said, files={"x.yaml": recipe("generate") + task})
    machines = {"a.yaml": "distributed_type: MULTI_CPU\nnum_machines: 3\nnum_processes: 3\n"}
    words = ("train", "--config", "train.yaml", "--accelerate_config", "a.yaml")
    yield Case("YAML", "machines without an address", words, r"a\.yaml.*main_process_ip", files=machines)
    header = {"student/README.md": "---\n" + "[" * 100_000 + "\n---\n"}
    words = ("push", "trained", "--repo_id", "someone/student", "--dry_run")
    yield Case("YAML", "a base's card that is deep", words, check=_licence_unknown, files=header)


def _licence_unknown(_folder: Path, outcome: Outcome) -> str | None:
    return None if 'given as "other"' in outcome.out + outcome.err else "nothing is said of the licence"


def _beside_a_recipe() -> Iterator[Case]:
    """Other YAML files that a command or a recipe names."""
    names = (
        "a date that does not exist",
        "a key given twice",
        "brackets 3000 deep",
        "UTF-16 without its mark",
        "a key that is a number",
    )
    for name in names:
        text, said = BROKEN[name]
        said = (FILE, f"{said}|seed|mapping|list|exemplar|description|question")
        words = ("evaluate", "--config", "evaluate.yaml", "--tasks", "x.yaml")
        yield Case("YAML", f"task file: {name}", words, said, files={"x.yaml": text})
        words = ("train", "--config", "train.yaml", "--accelerate_config", "x.yaml")
        if name not in ("a key given twice", "a key that is a number"):  # accelerate reads the file as it likes
            yield Case("YAML", f"accelerate's file: {name}", words, said, files={"x.yaml": text})
        for option in ("exemplars", "task_descriptions"):
            files = {"x.yaml": text, "g.yaml": recipe("generate", **{option: "x.yaml"})}
            # A date that does not exist is text, and a task may be called 1: both can be descriptions.
            text_of_a_task = option == "task_descriptions" and ("date" in name or "number" in name)
            check = (lambda _folder, _outcome: None) if text_of_a_task else None
            yield Case("YAML", f"{option}: {name}", ("generate", "--config", "g.yaml"), said, check, files=files)
