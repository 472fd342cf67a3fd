"""Mixtures of datasets: TRL's shares, what the datasets share, held-out rows, and what is refused."""

import json

import pytest
from conftest import conversational
from datasets import Dataset, DatasetDict
from transformers.utils.logging import get_logger
from trl import DatasetMixtureConfig, get_dataset

from edit_trl.common.errors import InputError
from edit_trl.data import mixture as mixture_module
from edit_trl.data.dual_cots import DatasetSource
from edit_trl.data.mixture import Mixture, read_datasets
from edit_trl.data.row_checks import validate_dual_cots


def sums(count: int, start: int = 0, **columns) -> list[dict]:
    return [
        {
            "prompt": f"{n} + 1 = ?\n",
            "chosen": f"It is {n + 1}. The answer is {n + 1}.",
            "rejected": f"It is {n}. The answer is {n}.",
            **columns,
        }
        for n in range(start, start + count)
    ]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of rows and returns its source; the folder is the working directory."""
    monkeypatch.chdir(tmp_path)

    def to(name: str, rows: list[dict], **options) -> DatasetSource:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DatasetSource(name, split="train", **options)

    return to


def problems_of(*args) -> list[str]:
    with pytest.raises(InputError) as caught:
        Mixture(*args).load()
    return caught.value.problems


@pytest.mark.parametrize(
    "fractions", [(1, 1, 1), (0.5, 0.25, 0.25), (0.1, 0.2, 0.7), (3, 1, 4), (1, 1e-1, 1e-1), None], ids=str
)
def test_shares_are_those_of_trl(write, fractions):
    names, sizes = ("a.jsonl", "b.jsonl", "c.jsonl"), (30, 7, 20)
    sources = [write(name, sums(size, 100 * n)) for n, (name, size) in enumerate(zip(names, sizes, strict=True))]
    entries = [{"path": "json", "data_files": name} for name in names]
    for entry, fraction in zip(entries, fractions or [None] * 3, strict=True):
        entry["fraction"] = fraction
    theirs = get_dataset(DatasetMixtureConfig(datasets=entries))["train"]
    assert Mixture(tuple(sources), fractions).load().to_list() == theirs.to_list()


def test_optional_columns_that_one_lacks_are_none_and_others_are_left_out(write, monkeypatch):
    told = []
    monkeypatch.setattr(get_logger(mixture_module.__name__), "warning_once", told.append)
    first = write("a.jsonl", sums(1, answer="1", rating=5, mistake=[]))
    second = write("b.jsonl", sums(1, 9, task="sums", rating="high", mistakes=["sign"]))
    rows = Mixture((first, second)).load()
    validate_dual_cots(rows)
    assert rows.to_list() == [
        sums(1)[0] | {"answer": "1", "task": None, "mistake": []},
        sums(1, 9)[0] | {"answer": None, "task": "sums", "mistake": None},
    ]
    assert told == [
        "a.jsonl: columns not used: rating",
        "b.jsonl: columns not used: rating, mistakes (did you mean `mistake`?)",
    ]


def test_messages_with_more_fields_and_spans_of_other_widths(write, tmp_path):
    spans = {"chosen_key_spans": [[0, 2]], "rejected_key_spans": [[0, 2]]}
    thinking = [conversational(row) for row in sums(2, **spans)]
    for row in thinking:
        row["chosen"][0]["reasoning_content"] = "Let me add."
    table = Dataset.from_list([conversational(row) for row in sums(2, 5)])
    table.save_to_disk(tmp_path / "saved")
    rows = Mixture((write("a.jsonl", thinking), DatasetSource("saved"))).load()
    validate_dual_cots(rows)
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in thinking] + table["chosen"][:]
    assert [row["chosen_key_spans"] for row in rows] == [[[0, 2]]] * 2 + [None] * 2


def test_tools_of_each_dataset_stay_as_they_are(write):
    def row(place: int, **columns) -> dict:
        return conversational(sums(1, place)[0]) | columns

    one, two = ([{"name": name, "parameters": {name: {"type": "number"}}}] for name in ("add", "subtract"))
    first = write("a.jsonl", [row(0, tools=one, chat_template_kwargs={"enable_thinking": False})])
    second = write("b.jsonl", [row(1, tools=two, chat_template_kwargs={"effort": 2}), row(2)])
    third = write("c.jsonl", [row(3, tools=json.dumps(two))])
    rows = Mixture((first, second, third, write("d.jsonl", [row(4)]))).load()
    validate_dual_cots(rows)
    assert [row["tools"] for row in rows] == [one, two, None, two, None]
    kwargs = [{"enable_thinking": False}, {"effort": 2}, None, None, None]
    assert [row["chat_template_kwargs"] for row in rows] == kwargs


def test_one_and_several_wrong_chains(write):
    spans = {"chosen_key_spans": [[0, 2]], "rejected_key_spans": [[0, 2]]}
    several = [row | {"rejected": [row["rejected"], "No."]} for row in sums(1, 5)]
    rows = Mixture((write("a.jsonl", sums(2, **spans)), write("b.jsonl", several))).load()
    validate_dual_cots(rows)
    assert [len(row["rejected"]) for row in rows] == [1, 1, 2]
    assert [row["chosen_key_spans"] for row in rows] == [[[[0, 2]]], [[[0, 2]]], None]


@pytest.mark.parametrize("form", [dict, conversational])
def test_correct_chains_alone_beside_pairs(write, form):
    alone = [form(row) | {"rejected": []} for row in sums(2, 5)]
    rows = Mixture((write("a.jsonl", alone), write("b.jsonl", [form(row) for row in sums(2)]))).load()
    validate_dual_cots(rows)
    assert [len(row["rejected"]) for row in rows] == [0, 0, 1, 1]
    several = [form(row) | {"rejected": [form(row)["rejected"]] * 2} for row in sums(1, 8)]
    rows = Mixture((write("a.jsonl", alone), write("b.jsonl", several))).load()
    assert [len(row["rejected"]) for row in rows] == [0, 0, 2]


def test_spans_of_a_chain_alone_beside_several_wrong_chains(write):
    alone = [conversational(row) | {"rejected": []} for row in sums(1, 5, chosen_key_spans=[[0, 2]])]
    single = [conversational(row) for row in sums(1, 1, chosen_key_spans=[[0, 2]])]
    several = [row | {"rejected": [row["rejected"]] * 2} for row in map(conversational, sums(1, 8))]
    [problem] = problems_of((write("a.jsonl", [*single, *alone]), write("b.jsonl", several)))
    assert problem.startswith("a.jsonl, chosen_key_spans: spans of correct chains alone cannot be mixed")


def test_ids_stay_unless_two_datasets_share_one(write):
    def ids(*sources):
        return Mixture(sources).load()["id"][:]

    first, second = write("a.jsonl", sums(1, id="7")), write("b.jsonl", [*sums(1, 5, id="8"), *sums(1, 6, id=None)])
    assert ids(first, second) == ["7", "8", None]
    third = write("c.jsonl", [*sums(1, 5, id="7"), *sums(1, 6, id="1/7")])
    assert ids(first, second, third) == ["1/7", "2/8", None, "3/7", "3/1/7"]
    validate_dual_cots(Mixture((first, first)).load())


def test_columns_and_mapping_are_those_of_each_dataset(write):
    theirs = [{"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"], "answer": 3} for r in sums(2)]
    mapping = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    options = {"column_mapping": mapping, "columns": [*mapping]}  # without the answer, which is no text
    rows = Mixture((write("a.jsonl", theirs, **options), write("b.jsonl", sums(1, 5, answer="6")))).load()
    assert rows.to_list() == [row | {"answer": None} for row in sums(2)] + sums(1, 5, answer="6")
    Dataset.from_list(theirs).to_parquet("a.parquet")
    saved = DatasetSource("a.parquet", split="train", **options)
    assert Mixture((saved,)).load().to_list() == sums(2)
    [problem] = problems_of((write("a.jsonl", theirs, columns=["promt", "bad"]),))
    assert problem == "a.jsonl: no column 'promt' (columns: question, good, bad, answer)"
    [problem] = problems_of((write("a.jsonl", sums(1), columns=["prompt", "chosen"]),))
    assert problem.startswith("a.jsonl: no column rejected (columns: prompt, chosen)")


def test_splits_of_folders_and_files_of_a_builder(write, tmp_path):
    DatasetDict({"train": Dataset.from_list(sums(2)), "hard": Dataset.from_list(sums(3, 5))}).save_to_disk("saved")
    write("a.jsonl", sums(1, 9))
    of_builder = DatasetSource("json", data_files="a.jsonl")
    rows = Mixture((DatasetSource("saved", split="hard"), of_builder)).load()
    assert rows["prompt"][:] == [row["prompt"] for row in [*sums(3, 5), *sums(1, 9)]]
    [problem] = problems_of((DatasetSource("saved", data_files="state.json"),))
    assert "only applies to a dataset on the Hub; give the path of the file itself" in problem


def test_implicit_prompts_beside_explicit_ones(write):
    whole = [
        {name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in map(conversational, sums(1))
    ]
    rows = Mixture((write("a.jsonl", whole), write("b.jsonl", [conversational(row) for row in sums(1, 5)]))).load()
    expected = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in map(conversational, sums(1))]
    assert rows.to_list()[:1] == expected


# Held-out rows


@pytest.mark.parametrize(("size", "count"), [(0.25, 5), (0.01, 1), (7, 7)])
def test_held_out_rows_are_the_others(write, size, count):
    sources = write("a.jsonl", sums(15)), write("b.jsonl", sums(5, 50))
    train, test = (set(Mixture(sources, None, size, part).load()["prompt"]) for part in ("train", "test"))
    assert (len(train), len(test)) == (20 - count, count)
    assert not train & test
    reordered = Mixture(sources[::-1], None, size, "test").load()
    assert set(reordered["prompt"]) == test


def test_rows_with_one_prompt_stay_together(write):
    pairs = [row | {"rejected": f"No {n}."} for row in sums(10) for n in range(3)]
    sources = (write("a.jsonl", pairs),)
    train, test = (set(Mixture(sources, None, 8, part).load()["prompt"]) for part in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)  # 6 rows: 9 would be more than 8


@pytest.mark.parametrize(("size", "left"), [(30, "train on"), (2, "evaluate on")])
def test_a_part_without_rows(write, size, left):
    pairs = [row | {"rejected": f"No {n}."} for row in sums(10) for n in range(3)]
    [problem] = problems_of((write("a.jsonl", pairs),), None, size)
    assert problem.startswith(f"`test_split_size: {size}` leaves no row of 30 to {left}")


# Refused


def test_problems_of_all_datasets_at_once(write):
    lacking = [{"prompt": "a", "chosen": "b"}]
    found = problems_of((write("a.jsonl", lacking), write("b.jsonl", sums(1)), DatasetSource("none.jsonl")))
    assert [problem.split(" (")[0] for problem in found] == [
        "a.jsonl: no column rejected",
        "no such file or folder: 'none.jsonl'",
    ]


def test_plain_and_conversational(write):
    found = problems_of((write("a.jsonl", sums(1)), write("b.jsonl", [conversational(row) for row in sums(1)])))
    assert [problem.split(";")[0] for problem in found] == ["b.jsonl, prompt: is conversational, but a.jsonl is plain"]


def test_columns_of_two_types(write):
    alone = [row | {"rejected": []} for row in sums(1, 5, chosen_key_spans=[[0, 2]])]
    several = [row | {"rejected": [row["rejected"]], "chosen_key_spans": [[[0, 2]]]} for row in sums(1)]
    [problem] = problems_of((write("a.jsonl", sums(1)), write("b.jsonl", several), write("c.jsonl", alone)))
    assert problem.startswith("c.jsonl, chosen_key_spans: holds list<")
    assert "but b.jsonl has list<" in problem


def test_a_share_that_leaves_nothing(write):
    [problem] = problems_of((write("a.jsonl", sums(1)), write("b.jsonl", sums(9))), (9.0, 0.01))
    assert problem.startswith("b.jsonl: `fraction: 0.01` leaves none of its rows in a mixture of 1; raise it")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rows.jsonl", "`datasets` must be a list of datasets, each with a `path`"),
        ([], "`datasets` must be a list of datasets"),
        ({"path": "a"}, "`datasets` must be a list of datasets"),
        (["a.jsonl"], "`datasets` must be a list of datasets"),
        ([{"name": "a"}], "`datasets[0]`: `path` is missing: a file, a folder or a Hub id"),
        ([{"path": ["a"]}], "`datasets[0]`: `path: ['a']`: expected a text, got list"),
        ([{"path": "a", "fractoin": 1}], "`datasets[0]`: unknown key `fractoin`; did you mean `fraction`?"),
        ([{"path": "a", "fraction": 0}], "`datasets[0]`: `fraction` must be positive, got 0.0"),
        ([{"path": "a"}, {"path": "b", "fraction": -1}], "`datasets[1]`: `fraction` must be positive, got -1.0"),
        ([{"path": "a"}, {"path": "b", "fraction": 1}], "`datasets`: set `fraction` for all of them or for none"),
        ([{"path": "a", "fraction": "much"}], "`datasets[0]`: `fraction: 'much'`: expected a number"),
        ([{"path": "a", "columns": {"a": "b"}}], "`datasets[0]`: `columns: {'a': 'b'}`: expected a list"),
        ([{"path": "a", "column_mapping": "a"}], "`datasets[0]`: `column_mapping: 'a'`: expected a mapping"),
        ([{"path": "a", "streaming": True}], "`datasets[0]`: unknown key `streaming`"),
        ("[{path: a", "datasets, line 1"),
    ],
)
def test_what_is_no_list_of_datasets(value, message):
    with pytest.raises(InputError) as caught:
        read_datasets(value)
    assert message in str(caught.value)


def test_a_list_as_json_or_yaml():
    expected = [{"path": "a.jsonl", "name": "007", "fraction": 1.0, "columns": ["prompt"]}]
    assert read_datasets('[{"path": "a.jsonl", "name": "007", "fraction": 1, "columns": ["prompt"]}]') == expected
    assert read_datasets("[{path: a.jsonl, name: 007, fraction: 1, columns: prompt}]") == expected
    assert read_datasets(expected) == expected
