import json

import pyarrow as pa
import pytest
from conftest import ROWS, conversational
from datasets import Dataset

from edit_trl.common.errors import InputError
from edit_trl.data import columns
from edit_trl.data.columns import dataset_of
from edit_trl.data.dual_cots import load_dual_cots


@pytest.fixture(params=[1, 2, 1000])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(columns, "_BLOCK", request.param)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LATE = {
    "a column that begins late": [{}, {}, {"note": "x"}],
    "a column of two types of number": [{"n": 1}, {"n": 2}, {"n": 0.5}],
    "objects with other keys": [{"o": {"a": 1}}, {"o": {"a": 1, "b": "x"}}, {"o": None}],
    "lists that are empty at first": [{"mistake": []}, {"mistake": None}, {"mistake": ["x"]}],
    "several wrong chains": [
        {"rejected": []},
        {"rejected": ["a", "b"], "rejected_key_spans": [[[0, 1]], []]},
        {"rejected": ["c"], "rejected_key_spans": [[[0, 1]]]},
    ],
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("others", LATE.values(), ids=LATE.keys())
def test_types_are_those_of_the_whole_column(tmp_path, others):
    rows = [row | other for row, other in zip(ROWS, others, strict=False)]
    loaded = load_dual_cots(write(tmp_path / "rows.jsonl", rows))
    for name in ("note", "n", "o", "mistake", "rejected_key_spans"):
        if name in loaded.column_names:
            expected = pa.array([row.get(name) for row in rows])
            assert loaded.data.table.schema.field(name).type == expected.type
            assert loaded.with_format("arrow")[:][name].to_pylist() == expected.to_pylist()
    assert loaded["prompt"][:] == [row["prompt"] for row in rows]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("extra", [{}, {"name": "assistant"}])
def test_messages_are_stored_as_datasets_stores_them(tmp_path, extra):
    rows = [conversational(row) for row in ROWS[:3]]
    rows[2]["chosen"] = [rows[2]["chosen"][0] | extra]
    loaded = load_dual_cots(write(tmp_path / "rows.jsonl", rows))
    expected = Dataset.from_dict({"chosen": [row["chosen"] for row in rows]}, on_mixed_types="use_json")
    assert loaded.features["chosen"] == expected.features["chosen"]
    assert loaded["chosen"][:] == expected["chosen"][:]


@pytest.mark.usefixtures("small_blocks")
def test_a_value_of_another_type_is_named_by_its_row(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS[0] | {"n": 1}, ROWS[1] | {"n": 2}, ROWS[2] | {"n": "three"}])
    with pytest.raises(InputError, match=r"rows.jsonl, row 3: column 'n' cannot be stored, .*three"):
        load_dual_cots(path)


def test_a_fingerprint_is_that_of_the_content():
    table = pa.table({"a": ["x", "y", "z"], "b": [1, 2, 3]})
    again = pa.table({"a": ["w", "x", "y", "z"], "b": [0, 1, 2, 3]}).slice(1)
    assert dataset_of(table)._fingerprint == dataset_of(again)._fingerprint
    others = [table.rename_columns(["a", "c"]), table.slice(1), pa.table({"a": ["x", "y", "z"], "b": [1, 2, 4]})]
    assert dataset_of(table)._fingerprint not in {dataset_of(other)._fingerprint for other in others}
