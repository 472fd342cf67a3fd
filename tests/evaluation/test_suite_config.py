"""The options of `edit-trl suite`, its recipes, and pairs made of a run."""

from pathlib import Path

import pytest
from suite_rows import RIGHT, WRONG, evaluated, sample

from edit_trl.common.errors import InputError
from edit_trl.common.options import build_options
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.schema import RunRecord
from edit_trl.evaluation.suite.config import SuiteArguments
from edit_trl.evaluation.suite.run_pairs import pairs_of_run
from edit_trl.models.chat.options import EndpointArguments

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "evaluate").glob("suite_*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read(path):
    arguments, endpoint = build_options(str(path), {}, (SuiteArguments, EndpointArguments))
    assert arguments.model
    data = {"suite_own": "dual_cots-dual", "suite_procedural": "procedural"}[path.stem]
    assert arguments.folder == Path(f"outputs/suite/SmolLM2-135M-Instruct-{data}")
    assert not endpoint.base_urls


def test_there_are_two_recipes():
    assert [path.stem for path in RECIPES] == ["suite_own", "suite_procedural"]


BAD = {
    "nothing": ({}, "`model` is missing"),
    "no pairs": ({"model": "m"}, "no pairs"),
    "two sources": ({"model": "m", "rows": 3, "from_run": "x"}, "`rows` and `from_run` are different sources"),
    "families alone": (
        {"model": "m", "dataset_name": "x", "families": ["dates"]},
        "`families` and `difficulty` need `rows`",
    ),
    "no rows": ({"model": "m", "rows": 0}, "`rows` must be at least 1"),
    "batch": ({"model": "m", "rows": 3, "batch_size": 0}, "`batch_size` must be at least 1"),
    "tokens": ({"model": "m", "rows": 3, "max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
    "limit": ({"model": "m", "rows": 3, "limit": -1}, "`limit` must be at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name):
    values, says = BAD[name]
    with pytest.raises(InputError, match=says):
        SuiteArguments(**values)


def test_everything_wrong_with_a_recipe_is_said_at_once(tmp_path):
    recipe = tmp_path / "suite.yaml"
    recipe.write_text("modle: x\nrows: many\nkey_step_method: wrods\nbatch_size: 0\n")
    with pytest.raises(InputError) as error:
        build_options(str(recipe), {}, (SuiteArguments, EndpointArguments))
    for says in ("did you mean `model`", "`rows: 'many'`", "'words'", "`batch_size`"):
        assert says in str(error.value)


def test_names_and_what_decides_the_numbers():
    arguments = SuiteArguments(model="outputs/a/student", rows=3, greedy=False)
    assert arguments.run_name == "student"
    assert arguments.folder == Path("outputs/suite/a-student-procedural")
    assert arguments.settings["max_new_tokens"] == arguments.max_greedy_tokens == 0
    named = SuiteArguments(model="m", rows=3, name="mine", output_dir="here")
    assert (named.run_name, named.folder, named.max_greedy_tokens) == ("mine", Path("here"), 256)


FAR = sample("Four. The answer is 4.", "correct")

FAR_WRONG = sample("No idea at all, so the answer is 7.", "wrong")


def test_the_most_similar_chains_are_paired(tmp_path):
    samples = {
        "a": [FAR, FAR_WRONG, WRONG, RIGHT, RIGHT],
        "b": [RIGHT, RIGHT],  # nothing wrong
        "c": [WRONG, sample("2 and 2", "unparsed"), sample("The answer is 4", "correct", cut_off=True)],
    }
    run = evaluated(tmp_path / "run", samples)
    [row] = pairs_of_run(run)
    assert (row["chosen"], row["rejected"]) == (RIGHT["response"], WRONG["response"])
    assert (row["task"], row["id"], row["answer"], row["source"]) == ("sums", "sums/a", "4", "sampled")
    two = pairs_of_run(run, pairs_per_question=5)
    assert [(pair["id"], pair["chosen"], pair["rejected"]) for pair in two] == [
        ("sums/a", RIGHT["response"], WRONG["response"]),
        ("sums/a/2", FAR["response"], FAR_WRONG["response"]),
    ]


def test_chains_take_the_form_of_their_prompt(tmp_path):
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    [row] = pairs_of_run(evaluated(tmp_path / "run", {"a": [RIGHT, WRONG]}, messages))
    assert row["chosen"] == [{"role": "assistant", "content": RIGHT["response"]}]
    [row] = pairs_of_run(evaluated(tmp_path / "plain", {"a": [RIGHT, WRONG]}, "Q: 2 + 2?\nA:"))
    assert row["rejected"] == f" {WRONG['response']}"


def test_runs_that_make_no_pairs_are_said(tmp_path):
    with pytest.raises(InputError, match="has one sample per question"):
        pairs_of_run(evaluated(tmp_path / "one", {"a": [RIGHT], "b": [WRONG]}))
    with pytest.raises(InputError, match="no question of the 1 has both"):
        pairs_of_run(evaluated(tmp_path / "right", {"a": [RIGHT, RIGHT]}))
    record = RunRecord("suite", "m", "m", "0", settings={}, tasks={}, data_hash="0")
    folder = RunFolder(tmp_path / "suite", record)
    folder.start()
    with pytest.raises(InputError, match="is a run of `edit-trl suite`"):
        pairs_of_run(folder.finish([], {}, {}, {}))
