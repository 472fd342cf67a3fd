"""`edit-trl generate`."""

import json

import pytest

from edit_trl.cli import generate
from edit_trl.common.errors import InputError
from edit_trl.data.dual_cots import load_dual_cots
from edit_trl.data.procedural import ProceduralTeacher, generate_dual_cots
from edit_trl.data.procedural import teacher as procedural


def run(output, *options):
    return generate.main(["--output", str(output), *map(str, options)])


def test_folder(tmp_path, capsys):
    output = tmp_path / "made"
    assert run(output, "--rows", 6, "--families", "navigate", "arithmetic", "--seed", 2) == 0
    rows = list(load_dual_cots(output))
    assert rows == list(generate_dual_cots(ProceduralTeacher(["navigate", "arithmetic"], seed=2), 6))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: 6 rows"
    assert ["navigate", "3"] in [line.split() for line in lines]
    assert ["arithmetic", "3"] in [line.split() for line in lines]
    assert any(line.startswith("example (procedural/navigate/d1/s2/0") for line in lines)
    start, end = rows[0]["chosen_key_spans"][-1]
    chain = rows[0]["chosen"][0]["content"]
    [chosen] = [line for line in lines if line.startswith("  chosen")]
    assert f"[{chain[start:end]}]" in chosen


@pytest.mark.parametrize("name", ["made.jsonl", "made.parquet"])
def test_file(tmp_path, name):
    assert run(tmp_path / name, "--teacher", "procedural", "--rows", 7, "--difficulty", 3) == 0
    assert list(load_dual_cots(tmp_path / name)) == list(generate_dual_cots(ProceduralTeacher(difficulty=3), 7))


def test_conversational(tmp_path, capsys):
    for number, options in enumerate([(), ("--conversational",), ("--conversational", "true")]):
        run(tmp_path / f"{number}.jsonl", "--rows", 1, *options)
        row = json.loads((tmp_path / f"{number}.jsonl").read_text())
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert f"  prompt    {row['prompt'][0]['content']}" in capsys.readouterr().out
    run(tmp_path / "plain.jsonl", "--rows", 1, "--conversational", "false")
    plain = json.loads((tmp_path / "plain.jsonl").read_text())
    assert plain["prompt"] == row["prompt"][0]["content"] + "\n"
    assert plain["chosen"] == row["chosen"][0]["content"]


def test_output_dir_is_the_name_of_the_option_in_every_mode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert generate.main(["--output_dir", "made", "--rows", "2"]) == 0
    assert len(load_dual_cots("made")) == 2
    assert generate.main(["--families", "navigate"]) == 0
    assert len(load_dual_cots("outputs/dual_cots")) == 100
    capsys.readouterr()
    # Options of a teacher need no recipe.
    with pytest.raises(InputError) as error:
        generate.main(["--model", "gpt", "--rows", "2", "--output_dir", "other"])
    assert "`base_urls` is missing" in str(error.value)
    with pytest.raises(InputError, match="`teacher: 'gpt'`: expected one of openai_compatible"):
        generate.main(["--teacher=gpt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "outputs"]


def test_held_out_set_shares_no_problem(tmp_path):
    output = tmp_path / "made"
    run(output, "--rows", 200, "--held_out", 50, "--families", "boolean_expressions")
    train, test = load_dual_cots(output / "train"), load_dual_cots(output / "test")
    assert (len(train), len(test)) == (200, 50)
    assert not {row["id"] for row in train} & {row["id"] for row in test}
    questions = [{row["prompt"][0]["content"] for row in rows} for rows in (train, test)]
    assert not questions[0] & questions[1]
    # Without the held-out set, the rows to train on are the same.
    assert list(train) == list(generate_dual_cots(ProceduralTeacher(["boolean_expressions"]), 200))


def test_existing_output_needs_force(tmp_path):
    output = tmp_path / "made"
    run(output, "--rows", 2)
    with pytest.raises(InputError, match=r"made exists.*--force"):
        run(output, "--rows", 3)
    assert len(load_dual_cots(output)) == 2
    run(output, "--rows", 3, "--force")
    assert len(load_dual_cots(output)) == 3


def test_held_out_sets_can_be_replaced(tmp_path):
    run(tmp_path / "made", "--rows", 2, "--held_out", 2)
    with pytest.raises(InputError, match="--force"):
        run(tmp_path / "made", "--rows", 3, "--held_out", 4)
    run(tmp_path / "made", "--rows", 3, "--held_out", 4, "--force")
    assert len(load_dual_cots(tmp_path / "made" / "train")) == 3
    assert len(load_dual_cots(tmp_path / "made" / "test")) == 4


def test_empty_folder_needs_no_force(tmp_path):
    assert run(tmp_path, "--rows", 1) == 0


def test_force_never_deletes_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        run(tmp_path, "--rows", 1, "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("is_file", [True, False])
def test_one_set_is_not_mixed_with_two(tmp_path, is_file):
    if is_file:
        (tmp_path / "made").write_text("notes")
    else:
        run(tmp_path / "made", "--rows", 1)
    with pytest.raises(InputError, match="holds one set"):
        run(tmp_path / "made", "--rows", 1, "--held_out", 1, "--force")


def test_output_below_a_file(tmp_path):
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(InputError, match="notes is a file, not a folder"):
        run(tmp_path / "notes" / "made", "--rows", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "0"], "--rows must be 1 or more, got 0"),
        (["--rows", "1", "--held_out", "-2"], "--held_out must be 1 or more, got -2"),
        (["--rows", "1", "--difficulty", "7"], "difficulty must be an integer from 1 to 5, got 7"),
        (["--rows", "1", "--seed", "-1"], "seed must be an integer of 0 or more"),
        (["--rows", "1", "--families", "wordsorting"], "did you mean `word_sorting`"),
        (["--rows", "9999", "--families", "boolean_expressions"], "ask for fewer rows"),
    ],
)
def test_bad_options_leave_nothing_behind(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(procedural, "_MAX_DRAWS", 20)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "made", *options)
    assert not list(tmp_path.iterdir())


def test_held_out_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="must be a folder"):
        run(tmp_path / "made.jsonl", "--rows", 1, "--held_out", 1)
    assert run(tmp_path / "made.v2", "--rows", 1, "--held_out", 1) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--row", "1"], "unknown option --row; did you mean `--rows`?"),
        (["--rows", "many"], r"argument --rows: .* \(see `edit-trl generate --help`\)$"),
        (["--conversational", "maybe"], "expected true or false, got 'maybe'"),
    ],
)
def test_options_that_argparse_refuses(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "made", *options)


def test_help_describes_every_option(capsys):
    assert generate.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert generate.main(["--config", "--help"]) == 0
    assert capsys.readouterr().out == text
    for option in ("families", "rows", "held_out", "difficulty", "seed", "conversational", "force", "max_cost"):
        assert f"--{option}" in text
