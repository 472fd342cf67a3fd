from dataclasses import dataclass

import pytest

from edit_trl.common.errors import InputError
from edit_trl.common.options import build_options, find_beside, format_help, option_help, read_options


@dataclass(frozen=True)
class Sizes:
    """Sizes.

    Attributes:
        rows: How many rows, in all.
        names: Names of them.
    """

    rows: int = 3
    names: list[str] | None = None

    def __post_init__(self):
        if self.rows < 1:
            raise InputError("`rows` must be at least 1")


@dataclass(frozen=True)
class Rates:
    """Rates.

    Attributes:
        rate: How fast.
        rows: Described above already.
        secret: Not an option.
    """

    rate: float = 0.5
    rows: int = 3
    secret: int = 0


def test_a_command_line_is_read_as_yaml():
    argv = ["--config", "r.yaml", "--names", "a", "b", "--rate=1e-3", "--pivots", "--rows", "null"]
    path, values = read_options(argv, ["names", "rate", "rows", "pivots"], flags=["pivots"])
    assert path == "r.yaml"
    assert values == {"names": ["a", "b"], "rate": "1e-3", "pivots": "true", "rows": None}


def test_every_problem_of_a_command_line_is_reported():
    with pytest.raises(InputError) as raised:
        read_options(["word", "--row", "1", "--rate"], ["rows", "rate"])
    assert raised.value.problems == [
        "unexpected 'word'",
        "unknown option --row; did you mean `--rows`?",
        "--rate needs a value",
    ]


def test_options_override_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rows: 5\nrate: 2\nnames: one\n")
    sizes, rates = build_options(str(recipe), {"rows": "7"}, [Sizes, Rates], hidden=["secret"])
    assert sizes == Sizes(7, ["one"])
    assert rates == Rates(2.0, 7)


def test_every_problem_of_the_options_is_reported(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rows: 0\nrate: fast\nsecret: 1\n")
    with pytest.raises(InputError) as raised:
        build_options(str(recipe), {}, [Sizes, Rates], hidden=["secret"])
    assert raised.value.heading == f"{recipe}:"
    assert raised.value.problems == [
        "`rate: 'fast'`: expected a number",
        "unknown key `secret`",
        "`rows` must be at least 1",
    ]


def test_help_describes_every_option_once():
    assert option_help([Sizes, Rates], hidden=["secret"]) == {
        "rows": "How many rows, in all.",
        "names": "Names of them.",
        "rate": "How fast.",
    }
    text = format_help("edit-trl x", "Does x.", [Sizes, Rates], hidden=["secret"])
    assert text.startswith("usage: edit-trl x\n\nDoes x.\n\n  --rows (default: 3)\n      How many rows, in all.\n")
    assert "  --names\n" in text


def test_a_file_is_looked_for_here_and_then_beside_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "rows.jsonl").touch()
    assert find_beside("rows.jsonl", folder) == str(folder / "rows.jsonl")
    (tmp_path / "rows.jsonl").touch()
    assert find_beside("rows.jsonl", folder) == "rows.jsonl"
    assert find_beside("ada/on-the-hub", folder) == "ada/on-the-hub"
    assert find_beside(None, folder) is None
