"""Files that Arrow reads are as if their rows had been read one by one, and any other file is left to that way."""

import json
from random import Random

import pytest
from conftest import ROWS, conversational

from edit_trl import load_dual_cots
from edit_trl.common.errors import InputError
from edit_trl.data.columns import Columns
from edit_trl.data.files import iterate_rows
from edit_trl.data.json_lines import read_uniform_rows
from edit_trl.data.row_checks import find_row_errors
from edit_trl.data.table_checks import is_surely_valid

PLAIN = [{**row, "id": str(number), "mistake": None if number else ["order"]} for number, row in enumerate(ROWS)]
CONVERSATIONS = [conversational(row) for row in PLAIN]
ROW = {"prompt": "1 + 1 = ?\n", "chosen": "It is 2.", "rejected": "It is 3.", "chosen_key_spans": [[0, 2], [6, 7]]}
TURNS = {name: [{"role": "user" if name == "prompt" else "assistant", "content": ROW[name]}] for name in [*ROW][:3]}


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_bytes(rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("rows", [PLAIN, CONVERSATIONS, [{**row, "n": 1, "x": "a", "f": 0.5} for row in PLAIN]])
def test_the_columns_are_those_of_rows_read_one_by_one(tmp_path, rows):
    path = write(tmp_path, rows)
    table, columns = read_uniform_rows(path), Columns()
    assert not list(find_row_errors(columns.store(iterate_rows(path)), [*rows[0]], "rows"))
    assert table.column_names == columns.names
    for name, array in columns.arrays("rows").items():
        assert table[name].type == array.type
        assert table[name].to_pylist() == array.to_pylist()
    assert is_surely_valid(table)
    assert load_dual_cots(path).to_list() == table.to_pylist()


LINE = json.dumps(ROW).encode()


@pytest.mark.parametrize(
    "lines",
    [
        LINE + b" " + LINE,
        LINE.replace(b", ", b",\n", 1),
        LINE + b"\nnull",
        b"null",
        LINE + b"\n\n" + LINE,
        b"\xef\xbb\xbf" + LINE,
        LINE + b"\n" + LINE[:-1] + b', "prompt": "twice"}',
        LINE + b"\n" + LINE[:-1] + b', "more": 1}',
        LINE + b"\n" + LINE.replace(b"It", b"\xff"),
        LINE + b"\n" + LINE.replace(b"It", b"\\ud800"),
        LINE + b"\n" + LINE.replace(b"It", b"\x01"),
        LINE + b"\n" + LINE.replace(b"6", b"6.0"),
        LINE[:-1] + b', "tools": null}',
        LINE[:-1] + b', "more": null}',
        LINE[:-1] + b', "more": [1]}',
        json.dumps({**TURNS, "chosen": [{"role": "assistant", "content": "a", "name": None}]}).encode(),
        json.dumps(TURNS).encode() + b"\n" + json.dumps({**TURNS, "chosen": [{"role": "assistant"}]}).encode(),
        b"",
    ],
)
def test_any_other_file_is_left_to_be_read_row_by_row(tmp_path, lines):
    assert read_uniform_rows(write(tmp_path, lines)) is None


@pytest.mark.parametrize(
    ("row", "changes", "error"),
    [
        (ROW, {"chosen": " \u3000\x1c"}, "is empty"),
        (ROW, {"prompt": None}, "is missing"),
        (ROW, {"rejected": "\nIt is 2. "}, "equals chosen"),
        (ROW, {"chosen_key_spans": [[0, 9]]}, "out of range: the chain has 8"),
        (ROW, {"chosen_key_spans": [[0, 2], [1, 3]]}, "overlaps"),
        (ROW, {"chosen_key_spans": [[1, 1]]}, "is empty"),
        (ROW, {"chosen_key_spans": [[-1, 1]]}, "out of range"),
        (ROW, {"chosen_key_spans": [[0, 1, 2]]}, "must be two integers"),
        (ROW, {"mistake": [None]}, "must be a list of texts"),
        (ROW, {"id": "a"}, "is already the id of row 1"),
        (ROW, {"prefix": "It is 2."}, "is the whole of chosen"),
        (TURNS, {"prompt": [{"role": "assistant", "content": "a"}]}, "must end in a user turn"),
        (TURNS, {"prompt": [{"role": "human", "content": "a"}]}, "role must be one of"),
        (TURNS, {"chosen": [{"role": "user", "content": "a"}]}, "must begin and end with an assistant"),
        (TURNS, {"chosen": [{"role": "assistant", "content": " "}]}, "a message is empty"),
        (TURNS, {"chosen": []}, "must begin and end with an assistant"),
    ],
)
def test_rows_with_errors_are_never_found_valid(tmp_path, row, changes, error):
    first = {**row, "id": "a", "mistake": ["x"], **({"prefix": ""} if "prefix" in changes else {})}
    path = write(tmp_path, [first, {**first, "id": "b", **changes}])
    table = read_uniform_rows(path)
    assert table is not None
    assert not is_surely_valid(table)
    with pytest.raises(InputError, match=error) as caught:
        load_dual_cots(path)
    assert "row 2" in str(caught.value)


TEXTS = ["1 + 1 = ?", "It is 2.", "It is 3.", "It is 2. ", "\u3000\x1c", "", "\u00e9\U0001f600", "{}", None]
SPANS = [[], [[0, 1]], [[0, 1], [1, 2]], [[0, 2], [1, 2]], [[2, 3], [0, 1]], [[1, 1]], [[-1, 1]], [[0, 99]], [[0]]]
USUAL = {  # of each column: values that are valid beside each other
    "prompt": [TEXTS[0]],
    "chosen": [TEXTS[1]],
    "rejected": [TEXTS[2]],
    "chosen_key_spans": SPANS[:3],
    "rejected_key_spans": SPANS[:3],
    "mistake": [["order"], [], None],
    "answer": ["2", "", None],
    "id": [None],
    "prefix": [None],
}
ODD = {
    **dict.fromkeys(["prompt", "chosen", "rejected", "prefix", "id", "answer"], TEXTS),
    **dict.fromkeys(["chosen_key_spans", "rejected_key_spans"], SPANS),
    "mistake": [[None], [""], ["order", None], None],
}
ROLES = ["user", "assistant", "system", "tool", "User", "", None]


def drawn_row(rng, columns, conversations):
    """A row of the usual values, in which about one in ten values may be wrong."""
    row = {column: rng.choice(ODD[column] if rng.random() < 0.1 else USUAL[column]) for column in columns}
    if not conversations:
        return row
    for column in ("prompt", "chosen", "rejected"):
        turns = [{"role": "user" if column == "prompt" else "assistant", "content": row[column]}]
        if rng.random() < 0.1:
            turns.insert(rng.choice([0, len(turns)]), {"role": rng.choice(ROLES), "content": rng.choice(TEXTS)})
        row[column] = turns if rng.random() < 0.98 else []
    return row


def test_whole_columns_are_checked_by_the_rules_for_rows(tmp_path):
    rng, found = Random(0), {"surely valid": 0, "errors": 0, "valid row by row": 0}
    for _ in range(1000):
        columns = ["prompt", "chosen", "rejected", *rng.sample([*USUAL][3:], rng.randrange(4))]
        conversations = rng.random() < 0.5
        rows = [drawn_row(rng, columns, conversations) for _ in range(2)]
        table = read_uniform_rows(write(tmp_path, rows))
        if table is None:
            continue
        surely_valid, errors = is_surely_valid(table), [*find_row_errors(rows, columns, "rows")]
        assert not (surely_valid and errors), rows
        found["surely valid" if surely_valid else "errors" if errors else "valid row by row"] += 1
    assert found["surely valid"] > 200
    assert found["errors"] > 200
    assert found["valid row by row"] < found["surely valid"]  # most valid rows take the fast way
