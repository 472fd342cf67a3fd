"""The row: what is accepted, what is refused and how, and every format there and back."""

import copy
import csv
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, List, Value, load_from_disk
from huggingface_hub import HfApi

from edit_trl.common.errors import InputError
from edit_trl.data.dual_cots import load_dual_cots, save_dual_cots
from edit_trl.data.row import GENERATED_COLUMNS, REQUIRED_COLUMNS, chain_text, is_conversational, rows_of
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.data.views import select_rows

PLAIN = [
    {
        "prompt": "2 + 3 * 2 = ?\nThink, “step by step”.",
        "chosen": "3 * 2 = 6, 2 + 6 = 8 ✅. Therefore, the answer is 8.",
        "rejected": "3 * 2 = 5, 2 + 5 = 7 ❌. Therefore, the answer is 7.",
        "answer": "8",
        "task": "arithmetic",
        "mistake": ['calculation, "digit"', "誤り"],
        "source": "procedural",
        "id": "007",
        "chosen_key_spans": [[8, 9], [15, 16], [19, 20]],
        "rejected_key_spans": [[8, 9], [15, 16], [19, 20]],
        "note": "kept",
    },
    {
        "prompt": "苹果有几个？",
        "chosen": "三个苹果\r\n加一个。Therefore, the answer is 4.",
        "rejected": "两个苹果\r\n加一个。Therefore, the answer is 3.",
        "answer": None,
        "task": None,
        "mistake": None,
        "source": None,
        "id": None,
        "chosen_key_spans": [],
        "rejected_key_spans": None,
        "note": "too",
    },
]
CONVERSATIONAL = [
    {
        "prompt": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": 'Say "é".'}],
        "chosen": [{"role": "assistant", "content": "é"}],
        "rejected": [{"role": "assistant", "content": "e"}],
        "chosen_key_spans": [[0, 1]],
    }
]


def row(**changes):
    """A valid row with some columns changed."""
    return {"prompt": "1 + 1?", "chosen": "It is 2.", "rejected": "It is 3."} | changes


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def problems_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return caught.value.problems


# --- There and back --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "Qwen3-0.6B-rows"])
@pytest.mark.parametrize("rows", [PLAIN, CONVERSATIONAL], ids=["plain", "conversational"])
def test_round_trip(tmp_path, name, rows):
    path = tmp_path / "new" / name
    save_dual_cots(Dataset.from_list(rows), path)
    assert load_dual_cots(path).to_list() == rows
    assert [entry.name for entry in path.parent.iterdir()] == [name]  # no temporary file is left


SEVERAL = {
    "prompt": "How many?\n",
    "chosen": "1 + 1 = 2. The answer is 2.",
    "rejected": ["1 + 1 = 3. The answer is 3.", "1 * 1 = 1. The answer is 1."],
    "chosen_key_spans": [[[8, 9]], [[2, 3], [8, 9]]],
    "rejected_key_spans": [[[8, 9]], [[2, 3], [8, 9]]],
}


def as_messages(row: dict) -> dict:
    def turn(text: str, role: str = "assistant") -> list[dict]:
        return [{"role": role, "content": text}]

    chains = {"chosen": turn(row["chosen"]), "rejected": [turn(text) for text in row["rejected"]]}
    return row | chains | {"prompt": turn(row["prompt"], "user")}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows"])
@pytest.mark.parametrize("form", [dict, as_messages], ids=["plain", "conversational"])
def test_several_wrong_chains(tmp_path, name, form):
    rows = [form(SEVERAL), form(SEVERAL | {"rejected": SEVERAL["rejected"][::-1]})]
    save_dual_cots(Dataset.from_list(rows), tmp_path / name)
    assert load_dual_cots(tmp_path / name).to_list() == rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows"])
@pytest.mark.parametrize("form", ["plain", "conversational"])
def test_correct_chains_alone_come_back(tmp_path, name, form):
    rows = [
        {"prompt": f"{n}?", "chosen": f"It is {n}.", "rejected": ["No."] if n else [], "id": str(n)} for n in range(2)
    ]
    if form == "conversational":
        for row in rows:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
            row["chosen"] = [{"role": "assistant", "content": row["chosen"]}]
            row["rejected"] = [[{"role": "assistant", "content": chain}] for chain in row["rejected"]]
    save_dual_cots(Dataset.from_list(rows), tmp_path / name)
    assert load_dual_cots(tmp_path / name).to_list() == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": [], "prompt": None}, "row 1, prompt: is missing"),
        ({"rejected": ["One.", " "]}, "row 1, rejected[1]: is empty: ' '"),
        ({"rejected": ["One.", SEVERAL["chosen"]]}, "row 1, rejected[1]: equals chosen"),
        ({"rejected": ["One.", 2]}, "row 1, rejected[1]: must be text or a list of messages, got 2 (int)"),
        ({"rejected": SEVERAL["rejected"][:1]}, "row 1, chosen_key_spans: must hold spans for each of the 1"),
        ({"rejected_key_spans": [[[8, 9]], [[2, 99]]]}, "row 1, rejected_key_spans[1]: [2, 99] is out of"),
        ({"prompt": ""}, "row 1, prompt: is empty"),
    ],
)
def test_bad_rows_with_several_wrong_chains(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(SEVERAL | change))
    with pytest.raises(InputError) as caught:
        load_dual_cots(path)
    assert message in str(caught.value)
    assert str(caught.value).count("row 1, prompt") <= 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows"])
def test_save_replaces_what_was_saved_before(tmp_path, name):
    path = tmp_path / name
    save_dual_cots(Dataset.from_list(PLAIN), path)
    save_dual_cots(Dataset.from_list([row()]), path)
    assert load_dual_cots(path).to_list() == [row()]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_saved_folder_can_replace_itself(tmp_path):
    path = tmp_path / "rows"
    save_dual_cots(Dataset.from_list(PLAIN), path)
    save_dual_cots(load_dual_cots(path).select([0]), path)
    assert load_dual_cots(path).to_list() == PLAIN[:1]


def test_jsonl_is_readable_text(tmp_path):
    save_dual_cots(Dataset.from_list([row(chosen="四")]), tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == (
        '{"prompt": "1 + 1?", "chosen": "四", "rejected": "It is 3."}\n'
    )


@pytest.mark.parametrize("content", [PLAIN, {"data": PLAIN}], ids=["list", "data"])
def test_json(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert load_dual_cots(path).to_list() == PLAIN


def test_known_columns_have_fixed_types(tmp_path):
    rows = [row(chosen_key_spans=[], mistake=None, answer=None)]
    features = load_dual_cots(write_jsonl(tmp_path / "rows.jsonl", rows)).features
    assert features["chosen_key_spans"] == List(List(Value("int64")))
    assert features["mistake"] == List(Value("string"))
    assert features["answer"] == Value("string")


def test_rows_may_lack_optional_columns_and_lines_may_be_blank(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\ufeff{json.dumps(row())}\n\n{json.dumps(row(answer='2'))}\n", encoding="utf-8")
    assert load_dual_cots(path)["answer"][:] == [None, "2"]


def test_csv_keeps_text_as_text(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected", "answer"], ["[1, 2]?", "01", "1", "01"]])
    assert load_dual_cots(path).to_list() == [{"prompt": "[1, 2]?", "chosen": "01", "rejected": "1", "answer": "01"}]


def test_saved_splits(tmp_path):
    path = tmp_path / "saved"
    train, test = Dataset.from_list([row()]), Dataset.from_list([row(prompt="held out")])
    DatasetDict({"train": train, "test": test}).save_to_disk(path)
    assert load_dual_cots(path)["prompt"][:] == ["1 + 1?"]
    assert load_dual_cots(path, split="test")["prompt"][:] == ["held out"]
    [problem] = problems_of(load_dual_cots, path, split="dev")
    assert "no split 'dev'" in problem
    assert "train, test" in problem


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows"])
def test_a_file_has_only_the_train_split(tmp_path, name):
    save_dual_cots(Dataset.from_list([row()]), tmp_path / name)
    assert len(load_dual_cots(tmp_path / name, split="train")) == 1
    [problem] = problems_of(load_dual_cots, tmp_path / name, split="test")
    assert "no split 'test'; choose the split from: train" in problem
    [problem] = problems_of(load_dual_cots, tmp_path / name, split="warm_up")
    assert "`dual` and `warm_up` are in a folder that `edit-trl generate` wrote" in problem


# --- Column mapping --------------------------------------------------------------------------

THEIRS = {"question": "1 + 1?", "correct": "2", "Incorrect": "3", "label": 5}
MAPPING = {"question": "prompt", "correct": "chosen", "Incorrect": "rejected"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_column_mapping(tmp_path, name):
    path = tmp_path / name
    write_jsonl(path, [THEIRS]) if name == "rows.jsonl" else Dataset.from_list([THEIRS]).to_parquet(path)
    assert load_dual_cots(path, column_mapping=MAPPING).to_list() == [
        {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "label": 5}
    ]
    [problem] = problems_of(load_dual_cots, path)
    assert "no column prompt, chosen, rejected (columns: question, correct, Incorrect" in problem
    assert f"--column_mapping '{json.dumps(MAPPING)}'" in problem


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_column_mapping_may_swap(tmp_path, name):
    save_dual_cots(Dataset.from_list([row()]), tmp_path / name)
    loaded = load_dual_cots(tmp_path / name, column_mapping={"chosen": "rejected", "rejected": "chosen"})
    assert loaded.to_list() == [row(chosen="It is 3.", rejected="It is 2.")]


def test_mapped_csv_cells_are_parsed(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected,error\n1 + 1?,2,3,"[""sum""]"\n', encoding="utf-8")
    loaded = load_dual_cots(path, column_mapping={"error": "mistake"})
    assert loaded["mistake"][:] == [["sum"]]


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"qestion": "prompt"}, "no column 'qestion'"),
        ({"qestion": "prompt"}, "did you mean `question`?"),
        ({"chosen": "correct"}, 'it reads theirs -> ours: {"correct": "chosen"}'),
        ({"correct": "chosn"}, "'chosn' is none of prompt, chosen"),
        ({"correct": "chosn"}, "did you mean `chosen`?"),
        ({"correct": "chosen", "question": "chosen"}, "more than one column"),
    ],
)
def test_bad_column_mapping(tmp_path, mapping, expected):
    path = write_jsonl(tmp_path / "rows.jsonl", [THEIRS])
    problems = problems_of(load_dual_cots, path, column_mapping=mapping)
    assert expected in problems[0]
    assert str(path) in problems[0]


def test_column_mapping_that_is_no_mapping(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [THEIRS])
    [problem] = problems_of(load_dual_cots, path, column_mapping="correct")
    assert problem == """column_mapping must be {"theirs": "ours"}, got 'correct'"""


def test_mapping_onto_a_column_that_exists(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [row(correct="2")])
    [problem] = problems_of(load_dual_cots, path, column_mapping={"correct": "chosen"})
    assert "more than one column would be called 'chosen'" in problem


def test_missing_column_without_a_known_name():
    [problem] = problems_of(validate_dual_cots, Dataset.from_list([{"a": "x"}]), "here")
    assert problem.startswith("here: no column prompt, chosen, rejected (columns: a); name the")


# --- Files that cannot be read ---------------------------------------------------------------


def test_broken_json_lines_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b'\n\n{"prompt": "x",}\n{"prompt": "\xff"}\n{"prompt": "a\n')
    problems = problems_of(load_dual_cots, path)
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}, line {number}" for number in (3, 4, 5)]
    assert "Illegal trailing comma" in problems[0] or "property name" in problems[0]
    assert "cannot be read: 'utf-8' codec" in problems[1]
    assert problems[2] == (f"{path}, line 5: not JSON: Unterminated string starting at (column 12)")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'[1, 2]\n{"prompt": "x"}\n', "row 1: must be an object with named columns"),
        ("a.jsonl", b"\n", "there are no rows"),
        ("a.json", b"[]", "there are no rows"),
        ("a.json", b"[", "not JSON: Expecting value"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "one object per line? name it .jsonl"),
        ("a.json", b'{"rows": []}', 'must be a list of rows or {"data": [rows]}'),
        ("a.csv", b"", "there are no rows"),
        ("a.csv", b"prompt,chosen\n", "there are no rows"),
        ("a.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", "row 2: 2 cells, but the header has 3"),
        ("a.csv", b"prompt,chosen,prompt\na,b,c\n", "the header names a column twice"),
        ("a.csv", b'prompt,chosen,rejected\n"a"x,b,c\n', "not CSV: "),
        ("a.csv", b"prompt,chosen,rejected\n\xff,b,c\n", "not CSV: "),
        ("a.parquet", b"no parquet", "not a Parquet file that can be read"),
        ("a.txt", b"text", "cannot read a '.txt' file; use one of .jsonl, .json, .csv, .parquet"),
        (
            "a.jsonl",
            b'{"prompt": "p", "chosen": "a", "rejected": "b", "x": 1}\n'
            b'{"prompt": "p", "chosen": "a", "rejected": "b", "x": "one"}\n',
            "column 'x' cannot be stored",
        ),
        (
            "a.jsonl",
            b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
            "line 1, 'prompt': has '\\ud800', half",
        ),
        ("a.csv", b"prompt,chosen,rejected,mistake\na,b,c,sum\n", "row 1, mistake: must be a list of texts"),
        (
            "a.csv",
            b'prompt,chosen,rejected,chosen_key_spans\na,b,c,"[[0, 9]]"\n',
            "row 1, chosen_key_spans: [0, 9] is out of range: the chain has 1 characters",
        ),
    ],
)
def test_unreadable_file(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    [problem] = problems_of(load_dual_cots, path)
    assert expected in problem
    assert problem.startswith(str(path))


def test_folder_that_is_no_saved_dataset(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [row()])
    [problem] = problems_of(load_dual_cots, tmp_path)
    assert "is not a folder written by datasets.save_to_disk" in problem
    assert "for a split, such as train.jsonl; it holds rows.jsonl" in problem


def test_a_folder_with_a_file_for_each_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [row(), row(prompt="Another?")])
    Dataset.from_list([row(prompt="A test?")]).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "README.md").write_text("ours")
    assert len(load_dual_cots(tmp_path)) == 2
    assert load_dual_cots(tmp_path, split="test")["prompt"] == ["A test?"]
    [problem] = problems_of(load_dual_cots, tmp_path, split="dev")
    assert problem.endswith("no split 'dev'; choose the split from: test, train")
    write_jsonl(tmp_path / "test.json", [row()])
    [problem] = problems_of(load_dual_cots, tmp_path, split="test")
    assert "test.json and test.parquet are both the split 'test'" in problem


def test_a_folder_with_a_folder_for_each_split(tmp_path):
    for name in ("train", "test"):
        Dataset.from_list([row(prompt=f"{name}?")]).save_to_disk(tmp_path / name)
    assert load_dual_cots(tmp_path, split="test")["prompt"] == ["test?"]
    assert load_dual_cots(tmp_path)["prompt"] == ["train?"]


def test_a_dict_of_splits_is_answered_with_a_split(tmp_path):
    splits = DatasetDict({"train": Dataset.from_list([row()]), "test": Dataset.from_list([row()])})
    expected = "got a DatasetDict of 'train', 'test'; choose a split, such as `dataset['train']`"
    for use in (validate_dual_cots, select_rows, lambda rows: list(rows_of(rows))):
        [problem] = problems_of(use, splits)
        assert expected in problem


@pytest.mark.parametrize("name", ["deep.jsonl", "deep.json"])
def test_json_nested_too_deep(tmp_path, name):
    (tmp_path / name).write_text("[" * 100_000)
    [problem] = problems_of(load_dual_cots, tmp_path / name)
    assert problem.startswith(str(tmp_path / name))
    assert "nested too deeply" in problem


def test_damaged_saved_dataset(tmp_path):
    save_dual_cots(Dataset.from_list([row()]), tmp_path / "rows")
    [table] = (tmp_path / "rows").glob("*.arrow")
    table.write_bytes(b"junk")
    [problem] = problems_of(load_dual_cots, tmp_path / "rows")
    assert problem.startswith(f"{tmp_path / 'rows'}: a saved dataset that cannot be read: ")


@pytest.mark.parametrize("source", ["rows.jsonl", "data/rows.csv", "./rows", "/a/b", "a/b/c", "~/x"])
def test_missing_path(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    [problem] = problems_of(load_dual_cots, source)
    assert problem == f"no such file or folder: {source!r} (looked in {tmp_path})"


@pytest.mark.parametrize("option", ["name", "revision"])
def test_hub_options_for_a_local_file(tmp_path, option):
    path = write_jsonl(tmp_path / "rows.jsonl", [row()])
    [problem] = problems_of(load_dual_cots, path, **{option: "main"})
    assert f"{option}='main' only applies to a dataset on the Hub" in problem


def test_hub_dataset_that_cannot_be_loaded(tmp_path):
    """In its own process: the offline switch of `datasets` is read when it is imported."""
    code = (
        "from edit_trl.data.dual_cots import load_dual_cots; from edit_trl.common.errors import InputError\n"
        "try: load_dual_cots('nobody/nothing')\n"
        "except InputError as error: print('InputError:', error)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.startswith("InputError: 'nobody/nothing' is neither a file or folder here")


# --- Rows that are not dual CoTs -------------------------------------------------------------

USER, ASSISTANT = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
WRONG = {"role": "assistant", "content": "3"}
CHAT = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WRONG]}


@pytest.mark.parametrize(
    ("bad", "column", "expected"),
    [
        (row(chosen=" \n"), "chosen", "is empty: ' \\n'"),
        (row(prompt=""), "prompt", "is empty: ''"),
        (row(rejected=None), "rejected", "is missing"),
        (row(rejected=3), "rejected", "must be text or a list of messages, got 3 (int)"),
        (row(rejected="It is 2. "), "rejected", "equals chosen: 'It is 2. '"),
        (row(answer=2), "answer", "must be text, got 2 (int)"),
        (row(task=["t"]), "task", "must be text, got ['t'] (list)"),
        (row(id=1), "id", "must be text, got 1 (int)"),
        (row(source=1.5), "source", "must be text, got 1.5 (float)"),
        (row(mistake="sum"), "mistake", "must be a list of texts"),
        (row(mistake=["sum", None]), "mistake", "must be a list of texts"),
        (row(chosen_key_spans="x"), "chosen_key_spans", "must be a list of [start, end]"),
        (row(chosen_key_spans=[1, 2]), "chosen_key_spans", "two integers [start, end], got 1 (int)"),
        (row(chosen_key_spans=[[1]]), "chosen_key_spans", "two integers [start, end], got [1]"),
        (row(chosen_key_spans=[[0, 1.0]]), "chosen_key_spans", "got [0, 1.0]"),
        (row(chosen_key_spans=[[False, True]]), "chosen_key_spans", "got [False, True]"),
        (row(rejected_key_spans=[[0, 9]]), "rejected_key_spans", "the chain has 8 characters"),
        (row(rejected_key_spans=[[-1, 2]]), "rejected_key_spans", "[-1, 2] is out of range"),
        (row(rejected_key_spans=[[2, 2]]), "rejected_key_spans", "[2, 2] is empty"),
        (row(rejected_key_spans=[[0, 3], [2, 4]]), "rejected_key_spans", "[2, 4] overlaps [0, 3]"),
        (row(rejected_key_spans=[[3, 4], [0, 1]]), "rejected_key_spans", "sort the spans"),
        (CHAT | {"chosen": []}, "chosen", "must begin and end with an assistant message"),
        (CHAT | {"chosen": [USER]}, "chosen", "got roles ['user']"),
        (CHAT | {"chosen": [USER, ASSISTANT]}, "chosen", "what precedes it is the prompt"),
        (CHAT | {"prompt": []}, "prompt", "must end in a user turn or the result of a tool, got the roles []"),
        (CHAT | {"prompt": [USER, ASSISTANT]}, "prompt", "must end in a user turn"),
        (CHAT | {"prompt": [{"role": "human", "content": "x"}]}, "prompt", "got 'human'"),
        (CHAT | {"prompt": [{"role": "user"}]}, "prompt", "a message must be {"),
        (CHAT | {"prompt": [{"role": "user", "content": None}]}, "prompt", "a message must be {"),
        (CHAT | {"prompt": ["hello"]}, "prompt", "a message must be {"),
        (CHAT | {"prompt": [{"role": "user", "content": " "}]}, "prompt", "last message is empty"),
        (CHAT | {"rejected": [ASSISTANT]}, "rejected", "equals chosen: '2'"),
        (CHAT | {"prompt": "1 + 1?"}, "prompt", "prompt is plain, chosen is conversational"),
        (CHAT | {"chosen_key_spans": [[0, 2]]}, "chosen_key_spans", "the chain has 1 characters"),
    ],
)
def test_bad_row(tmp_path, bad, column, expected):
    path = write_jsonl(tmp_path / "rows.jsonl", [bad])
    [problem] = problems_of(load_dual_cots, path)
    assert problem.startswith(f"{path}, row 1, {column}: ")
    assert expected in problem


def test_the_row_is_named_in_a_dataset_too():
    spans = [[[0, 1]], [[0, 99]], None, None]
    rows = [row(chosen_key_spans=span) for span in spans]
    rows[3]["chosen"] = ""
    assert problems_of(validate_dual_cots, Dataset.from_list(rows), "here") == [
        "here, row 2, chosen_key_spans: [0, 99] is out of range: the chain has 8 characters",
        "here, row 4, chosen: is empty: ''",
    ]


def test_rows_beyond_the_first_batch_are_checked_in_any_format():
    rows = [row(id=str(number)) for number in range(2500)]
    rows[2344]["rejected"] = rows[2344]["chosen"]
    rows[2400]["id"] = "3"
    assert problems_of(validate_dual_cots, Dataset.from_list(rows).with_format("numpy")) == [
        "dataset, row 2345, rejected: equals chosen: 'It is 2.'",
        "dataset, row 2401, id: '3' is already the id of row 4",
    ]


def test_all_problems_are_reported_and_the_list_is_cut(tmp_path):
    rows = [row(chosen=" ", answer=1, mistake="x"), row(prompt="")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [problem.split(", ")[1:][:2] for problem in problems_of(load_dual_cots, path)] == [
        ["row 1", "chosen: is empty: ' '"],
        ["row 1", "answer: must be text"],
        ["row 1", "mistake: must be a list of texts"],
        ["row 2", "prompt: is empty: ''"],
    ]
    many = Dataset.from_list([row(prompt="")] * 30)
    problems = problems_of(validate_dual_cots, many, max_problems=4)
    assert len(problems) == 5
    assert problems[-1] == "... and 26 more"


def test_a_missing_column_does_not_hide_the_others():
    problems = problems_of(validate_dual_cots, Dataset.from_list([{"prompt": "", "correct": "2"}]))
    assert len(problems) == 2
    assert problems[0].startswith("dataset: no column chosen, rejected")
    assert problems[1] == "dataset, row 1, prompt: is empty: ''"


def test_plain_and_conversational_rows_do_not_mix(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [row(), CHAT])
    [problem] = problems_of(load_dual_cots, path)
    assert problem.endswith("row 2, prompt: is conversational while the first row is plain")


def test_no_rows():
    empty = Dataset.from_dict({column: [] for column in REQUIRED_COLUMNS})
    assert problems_of(validate_dual_cots, empty, "here") == ["here: there are no rows"]


def test_valid_rows_are_left_as_they_are():
    dataset = Dataset.from_list(PLAIN)
    before = copy.deepcopy(dataset.to_list())
    validate_dual_cots(dataset)
    assert dataset.to_list() == before
    assert set(PLAIN[0]) == {*REQUIRED_COLUMNS, *GENERATED_COLUMNS, "note"}


# --- Saving what cannot be saved -------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows"])
def test_bad_rows_are_not_saved(tmp_path, name):
    bad = Dataset.from_list([row(), row(chosen="")])
    [problem] = problems_of(save_dual_cots, bad, tmp_path / name)
    assert "row 2, chosen: is empty" in problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_failed_save_leaves_the_old_file(tmp_path, name):
    path = tmp_path / name
    save_dual_cots(Dataset.from_list([row()]), path)
    [problem] = problems_of(save_dual_cots, Dataset.from_list([row(image=None), row(image=b"\x00")]), path)
    assert "cannot hold" in problem
    assert "use .parquet or a folder" in problem
    assert load_dual_cots(path).to_list() == [row()]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_save_refuses_paths_it_would_spoil(tmp_path):
    dataset = Dataset.from_list([row()])
    [problem] = problems_of(save_dual_cots, dataset, tmp_path / "rows.txt")
    assert "cannot write a '.txt' file; use one of .jsonl, .csv, .parquet or a folder" in problem

    DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    [problem] = problems_of(save_dual_cots, dataset, tmp_path / "splits")
    assert "holds something else" in problem
    assert load_from_disk(tmp_path / "splits")["train"].to_list() == [row()]

    (tmp_path / "file").write_text("kept")
    [problem] = problems_of(save_dual_cots, dataset, tmp_path / "file" / "rows.jsonl")
    assert "cannot be written" in problem
    assert (tmp_path / "file").read_text() == "kept"

    (tmp_path / "folder.jsonl").mkdir()
    [problem] = problems_of(save_dual_cots, dataset, tmp_path / "folder.jsonl")
    assert problem.endswith("exists and is a folder")


# --- The Hub and the small helpers -----------------------------------------------------------


def test_loads_from_the_hub(serve_hub):
    serve_hub()
    HfApi().create_repo("ada/rows", repo_type="dataset", private=True)
    Dataset.from_list([row()]).push_to_hub("ada/rows")
    assert load_dual_cots("ada/rows").to_list() == [row()]


def test_chain_text_and_is_conversational():
    assert chain_text("It is 2.") == "It is 2."
    assert chain_text([ASSISTANT, USER, WRONG]) == "2\n\n3"
    assert is_conversational(CHAT)
    assert not is_conversational(row())
    with pytest.raises(InputError, match="without an assistant message"):
        chain_text([USER])


def test_a_generated_folder_has_the_splits_dual_and_warm_up(tmp_path):
    rows = [{"prompt": f"What is {n} + 1?\n", "chosen": f"{n + 1}.", "rejected": "0."} for n in range(1, 4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "dual.parquet")
    Dataset.from_list(rows[:1]).to_parquet(tmp_path / "warm_up.parquet")
    assert [len(load_dual_cots(tmp_path, split=split)) for split in (None, "dual", "warm_up")] == [3, 3, 1]
    with pytest.raises(InputError, match="choose the split from: train, dual, warm_up"):
        load_dual_cots(tmp_path, split="key_steps")


# --- Files that are broken inside, and what CSV cannot hold ----------------------------------


@pytest.mark.parametrize(
    ("good", "changed", "expected"),
    [
        ({"answer": "2", "mistake": ["sum"]}, {"answer": None, "mistake": []}, None),
        ({"note": "text"}, {"note": ""}, None),
        ({"id": "1"}, {"chosen": "line\r\nline\rnul\0 \u2028 🚀", "id": " 007 "}, None),
        ({}, {"chosen": "x" * 200_000}, None),
        ({"answer": "2"}, {"answer": ""}, "answer: CSV cannot hold ''"),
        ({"note": "text"}, {"note": None}, "note: CSV cannot hold None"),
        ({}, {"rejected": "[]"}, "rejected: CSV cannot hold '[]'"),
        ({}, {"prompt": '[{"role": "user", "content": "x"}]'}, "prompt: CSV cannot hold"),
    ],
)
def test_csv_gives_back_the_same_rows_or_names_what_it_cannot_hold(tmp_path, good, changed, expected):
    path, rows = tmp_path / "rows.csv", [row(**good), row(**changed)]
    if expected is None:
        save_dual_cots(Dataset.from_list(rows), path)
        assert load_dual_cots(path).to_list() == rows
    else:
        [problem] = problems_of(save_dual_cots, Dataset.from_list(rows), path)
        assert problem.startswith(f"{path}, row 2, {expected}")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [5, True, 1.5, ["a"], {"a": 1}])
def test_csv_makes_no_text_of_other_values(tmp_path, value):
    [problem] = problems_of(save_dual_cots, Dataset.from_list([row(note=value)]), tmp_path / "rows.csv")
    assert problem.startswith(f"{tmp_path / 'rows.csv'}, row 1, note: CSV cannot hold {value!r} (")


def write_parquet(path, **columns):
    pq.write_table(pa.table({name: [value] for name, value in row().items()} | columns), path)
    return path


def broken_text(*texts):
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def test_parquet_that_is_broken_inside(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    assert "not a Parquet file that can be read" in problems_of(load_dual_cots, path)[0]
    write_parquet(path, prompt=broken_text(b"q\xff"))
    assert problems_of(load_dual_cots, path)[0].startswith(f"{path}, row 1, prompt: cannot be read: 'utf-8' codec")
    write_parquet(path, note=broken_text(b"\xff"))  # a column that is not ours
    assert problems_of(load_dual_cots, path)[0].startswith(f"{path}, row 1, note: cannot be read: 'utf-8' codec")
    pq.write_table(pa.table([["q"], ["q"], ["a"], ["b"]], names=["prompt", "prompt", "chosen", "rejected"]), path)
    assert "not a Parquet file that can be read" in problems_of(load_dual_cots, path)[0]
    table = pa.table({name: [value] for name, value in row().items()})
    pq.write_table(table.replace_schema_metadata({"huggingface": "[1]"}), path)
    assert "not a Parquet file that can be read" in problems_of(load_dual_cots, path)[0]


def test_a_value_that_python_cannot_represent_is_named(tmp_path):
    dataset = load_dual_cots(write_parquet(tmp_path / "rows.parquet", when=pa.array([2**62], pa.timestamp("us"))))
    [problem] = problems_of(list, rows_of(dataset))
    assert problem == "row 1, when: cannot be read: date value out of range"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("state.json", "[1]"),
        ("state.json", '{"_data_files": 5}'),
        ("state.json", "[" * 100_000),
        ("dataset_info.json", "[1]"),
        ("dataset_info.json", '{"features": {"prompt": {"_type": "Nope"}}}'),
        ("dataset_dict.json", "{}"),
        ("dataset_dict.json", '{"splits": [1]}'),
    ],
)
def test_a_saved_dataset_whose_json_is_something_else(tmp_path, file, text):
    save_dual_cots(Dataset.from_list([row()]), tmp_path / "rows")
    if file == "dataset_dict.json":
        (tmp_path / "rows" / "state.json").unlink()
    (tmp_path / "rows" / file).write_text(text)
    [problem] = problems_of(load_dual_cots, tmp_path / "rows")
    assert problem.startswith(f"{tmp_path / 'rows'}: a saved dataset that cannot be read: ")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    [problem] = problems_of(load_dual_cots, tmp_path / "rows.jsonl")
    assert problem == f"{tmp_path / 'rows.jsonl'} is a device or a pipe; write its contents to a file, and name that"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9" * 5000, "line 2: cannot be read: Exceeds the limit"),
        ("[" * 60 + "]" * 60, "line 2, 'x': its lists or objects are nested too deeply"),
        ('{"a": "\\ud83d"}', "line 2, 'x': has '\\ud83d', half of a surrogate pair"),
        (str(2**70), "row 2: column 'x' cannot be stored"),
        ('"text"', "row 2: column 'x' cannot be stored"),
    ],
)
def test_a_wrong_value_among_good_ones_is_named(tmp_path, value, expected):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row(x=1))[:-2] + f"{x}}}\n" for x in ("1", value, "2")]
    path.write_text("".join(lines))
    [problem] = problems_of(load_dual_cots, path)
    assert problem.startswith(f"{path}, {expected}")


def test_tools_and_calls_keep_their_own_parameters(tmp_path):
    def called(number: int, name: str) -> dict:
        call = {"type": "function", "function": {"name": name, "arguments": {name: number}}}
        asked = {"role": "assistant", "tool_calls": [call]}
        turns = [asked, {"role": "tool", "content": str(number)}]
        return {
            "prompt": [{"role": "user", "content": f"{name} {number}?"}],
            "chosen": [*turns, {"role": "assistant", "content": "Yes."}],
            "rejected": [*turns, {"role": "assistant", "content": "No."}],
            "tools": [{"name": name, "parameters": {name: {"type": "number"}}}],
            "chat_template_kwargs": {name: True},
        }

    rows = [called(1, "add"), called(2, "subtract")]
    loaded = load_dual_cots(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert loaded.to_list() == rows
    for name in ("again.jsonl", "again.parquet", "again"):
        save_dual_cots(loaded, tmp_path / name)
        assert load_dual_cots(tmp_path / name).to_list() == rows
    options = [row | {"tools": json.dumps(row["tools"])} for row in rows]
    loaded = load_dual_cots(write_jsonl(tmp_path / "options.jsonl", options))
    save_dual_cots(loaded, tmp_path / "options.csv")
    assert load_dual_cots(tmp_path / "options.csv").to_list() == options
