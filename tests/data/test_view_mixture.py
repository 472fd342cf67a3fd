"""Mixtures of views by weight: which rows are drawn, in which form, and what is refused."""

import math

import pytest
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from trainers import make_trainer

from edit_trl.common.errors import InputError
from edit_trl.data.row import chain_text
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.data.views import select_rows
from edit_trl.training.recipe.outline import Recipe
from edit_trl.training.recipe.resolving import resolve_runs

SPANS = {"chosen_key_spans": [[0, 1]], "rejected_key_spans": [[0, 1]]}
PAIRS = [row | {"id": f"r{number}"} for number, row in enumerate(ROWS)]


def mix(views, pairs=PAIRS, **options) -> list[dict]:
    mixed = select_rows(Dataset.from_list(pairs), views=views, **options)
    validate_dual_cots(mixed)
    return mixed.to_list()


@pytest.mark.parametrize("make", [dict, conversational], ids=["plain", "conversational"])
def test_a_weight_draws_or_repeats_rows(make, caplog):
    rows = mix({"chosen": 1, "check": 0.5}, list(map(make, PAIRS)))
    ids = [row["id"] for row in rows]
    assert ids[:4] == ["r0", "r1", "r2", "r3"]
    # Half of the eight rows of `check`: both sides of two pairs, so half of the answers are yes.
    assert [chain_text(row["chosen"]) for row in rows[4:]] == ["Yes", "No"] * 2
    assert len({id_.split("/")[0] for id_ in ids[4:]}) == 2
    assert all(row["rejected"] == [] for row in rows)
    assert "rows by view: 4 of chosen (weight 1), 4 of check (weight 0.5)" in caplog.text
    repeated = [row["id"] for row in mix({"chosen": 2.5})]
    assert repeated[:8] == ["r0", "r1", "r2", "r3", *(f"r{n}/again 1" for n in range(4))]
    assert len(repeated) == len({*repeated}) == 10


def test_the_draw_depends_on_the_seed_alone():
    drawn = {seed: [row["id"] for row in mix({"chosen": 0.5}, seed=seed)] for seed in range(8)}
    assert drawn[0] == [row["id"] for row in mix({"chosen": 0.5}, seed=0)]
    assert len({tuple(ids) for ids in drawn.values()}) > 1


@pytest.mark.parametrize("spans", [{}, SPANS])
def test_pairs_and_chains_alone_have_one_form(spans):
    rows = mix({"pairs": 1, "check": 1}, [row | spans for row in PAIRS])
    assert [row["id"] for row in rows[:5]] == ["r0", "r1", "r2", "r3", "r0/check 1 chosen/check"]
    assert rows[0]["rejected"] == [ROWS[0]["rejected"]]
    assert rows[4]["rejected"] == []
    if spans:
        assert rows[0]["chosen_key_spans"] == [[[0, 1]]]
        assert rows[4]["chosen_key_spans"] is None
    several = PAIRS[0] | {"rejected": [ROWS[0]["rejected"], "No."]}
    rows = mix({"chosen": 1, "pairs": 1}, [several, {**PAIRS[1], "rejected": [ROWS[1]["rejected"]]}])
    assert [len(row["rejected"]) for row in rows] == [0, 0, 2, 1]


def test_rows_is_the_size_of_the_mixture():
    assert len(mix({"chosen": 1, "check": 1}, rows=5)) == 5


def test_a_mixture_of_pairs_and_checks_is_trained(tmp_path, tokenizer):
    rows = mix({"pairs": 1, "check": 0.5})
    trainer = make_trainer(tmp_path, tokenizer, model=tiny_llama(), rows=rows, max_steps=2)
    assert len(trainer.train_dataset) == 4 + 4
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({}, "`views` is empty"),
        ({"chekc": 1}, "unknown view 'chekc'; did you mean `check`?"),
        ({"check": 0}, "the weight of 'check' must be a number above 0, got 0"),
        ({"check": -1}, "got -1"),
        ({"check": math.nan}, "got nan"),
        ({"check": True}, "got True"),
        ({"check": "much"}, "got 'much'"),
        ({"pairs": 1, "scott": 1}, "'scott' weights parts of single chains, which pairs ('pairs') have no place for"),
        ({"check": 0.01}, "the weight 0.01 leaves none of the 8 rows of 'check'"),
        ({"rectified": 1}, "the view 'rectified' leaves none of 4 rows"),
    ],
)
def test_what_cannot_be_mixed_is_refused(views, message):
    with pytest.raises(InputError) as caught:
        select_rows(Dataset.from_list(PAIRS), views=views, source="rows.jsonl")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": "[check]"}, "`views` must be weights by view"),
        ({"views": "{check: }"}, "the weight of 'check' must be a number above 0, got None"),
        ({"views": {"check": 1, "pairs": 1}, "view": "check"}, "`view` and `views` both say which rows"),
        ({"views": {"check": 1}}, "`view: check` has chains alone, and `preference_weight` is about pairs"),
        ({"views": {"pairs": 1, "check": 1}, "trainer": "dpo"}, "`trainer: dpo` learns from pairs, and `view: check`"),
    ],
)
def test_a_recipe_is_refused_before_anything_is_loaded(options, message):
    recipe = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "use_cpu": True} | options
    with pytest.raises(InputError) as caught:
        resolve_runs(Recipe(None, recipe), {})
    assert message in str(caught.value)


def test_a_stage_and_the_command_line_choose_anew():
    recipe = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "use_cpu": True, "view": "chosen"}
    recipe |= {"preference_weight": 0.0}
    mixed = {"views": {"chosen": 1, "check": 0.5}}
    stages = [{"name": "first"}, {"name": "second", **mixed}, {"name": "third", **mixed, "views": {"check": 1}}]
    runs = resolve_runs(Recipe(None, recipe, tuple((stage.pop("name"), stage) for stage in stages)), {})
    assert [run.data.view_names for run in runs] == [["chosen"], ["chosen", "check"], ["check"]]
    (run,) = resolve_runs(Recipe(None, recipe), {"views": "{check: 2}"})
    assert run.data.views == {"check": 2}
    (run,) = resolve_runs(Recipe(None, {**recipe, **mixed} | {"view": None}), {"view": "check"})
    assert run.data.view_names == ["check"]


def test_a_view_beside_a_mixture_is_refused():
    with pytest.raises(InputError, match=r"`view` \('check'\) and `views` both say which rows"):
        select_rows(Dataset.from_list(PAIRS), "check", views={"chosen": 1})
