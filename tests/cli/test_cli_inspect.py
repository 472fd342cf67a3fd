import codecs
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import get_args

import pytest
from conftest import ROWS, byte_level_tokenizer, conversational
from report_data import read_page

from edit_trl import ProceduralTeacher, generate_dual_cots
from edit_trl.cli.inspect import _parser
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.common.terminal import visible
from edit_trl.data.dual_cots import save_dual_cots
from edit_trl.data.pair_statistics import grouped_pairs, locate_pairs, pair_statistics
from edit_trl.key_steps import KeyStepMethod

ALL = [
    {**row, "task": task, "source": source, "mistake": mistake}
    for row, task, source, mistake in zip(
        ROWS,
        ["fibre", "apples", "logic", "steps"],
        ["book", "book", "web", "web"],
        [["operator"], ["calculation"], ["negation", "operator"], None],
        strict=True,
    )
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ALL))
    return path


def inspect(capfd, *arguments) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capfd.readouterr().out


# --- Statistics ------------------------------------------------------------------------------


def test_statistics_by_hand():
    rows = [
        {"prompt": "?", "chosen": "a b c d", "rejected": "a b x d e", "task": "t", "mistake": ["m", "n"]},
        {"prompt": "?", "chosen": "a b", "rejected": "c b", "task": "u", "mistake": ["m"]},
    ]
    pairs = locate_pairs(rows)
    assert [pair.key_fraction for pair in pairs] == [pytest.approx(3 / 9), pytest.approx(2 / 4)]
    assert [pair.shared_prefix for pair in pairs] == [0.5, 0.0]
    assert (pairs[0].chosen_spans, pairs[0].rejected_spans) == ([(4, 5)], [(4, 5), (8, 9)])
    found = pair_statistics(pairs)
    assert (found.rows, found.pairs, found.longest) == (2, 2, 5)
    assert found.key_fraction == pytest.approx((3 / 9 + 1 / 2) / 2)
    assert found.shared_prefix == pytest.approx(0.25)
    assert (found.chosen_length, found.rejected_length, found.median_length) == (3.0, 3.5, 3.0)
    assert {name: len(of) for name, of in grouped_pairs(pairs, "mistake").items()} == {"m": 2, "n": 1}
    assert list(grouped_pairs(pairs, "source")) == []


def test_several_wrong_chains_and_none():
    row = {"prompt": "?", "chosen": "a b c"}
    pairs = locate_pairs([{**row, "rejected": ["a x c", "y b c"]}, {**row, "rejected": []}])
    assert [pair.row for pair in pairs] == [1, 1, 2]
    assert [pair.rejected for pair in pairs] == ["a x c", "y b c", None]
    found = pair_statistics(pairs)
    assert (found.rows, found.pairs) == (2, 2)
    alone = pair_statistics(pairs[2:])
    assert (alone.pairs, alone.key_fraction, alone.rejected_length, alone.longest) == (0, None, None, 3)


def test_a_tokenizer_counts_its_tokens():
    tokenizer = byte_level_tokenizer()
    [pair] = locate_pairs(ROWS[:1], "edit", tokenizer)
    ids = [tokenizer(ROWS[0][side], add_special_tokens=False)["input_ids"] for side in ("chosen", "rejected")]
    assert (pair.chosen_length, pair.rejected_length) == tuple(map(len, ids))
    same = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert pair.shared_prefix == pytest.approx(same / len(ids[0]))


def test_forks():
    row = {"prompt": "?", "chosen": "2 + 1 = 3. So 3 of 4.", "rejected": "2 * 1 = 2. So 2 of 5."}
    [pair] = locate_pairs([row], "forks")
    assert [pair.rejected[slice(*span)] for span in pair.rejected_spans] == ["*", "2", "2"]


def test_given_spans():
    row = {**ROWS[0], "chosen_key_spans": [[0, 5]], "rejected_key_spans": []}
    [pair] = locate_pairs([row], "spans")
    assert (pair.chosen_spans, pair.rejected_spans) == ([(0, 5)], [])
    with pytest.raises(InputError, match=r"row 2: method 'spans' needs chosen_spans"):
        locate_pairs([row, ROWS[1]], "spans")


# --- Plain text ------------------------------------------------------------------------------


def test_plain_text(data, capfd):
    output = inspect(capfd, data)
    assert output.startswith(f"{data}: 4 rows, 4 pairs\n")
    assert "\x1b" not in output
    assert "  chosen    White: 2 / 2 = 1 bolt. In total 2 [+] 1 = [3] bolts. Therefore, the answer is [3]." in output
    assert "  rejected  White: 2 / 2 = 1 bolt. In total 2 [*] 1 = [2] bolts. Therefore, the answer is [2]." in output
    assert (
        "1 of 4  robe  (fibre; book; mistake: operator; key 12%, shared prefix 48%)" in output
    )  # 3 and 12 of 25 words
    rows = {line.split()[0]: line.split()[1] for line in output.splitlines() if re.match(r"  \S+ +\d+ +\d+%", line)}
    assert rows == {
        **dict.fromkeys(("fibre", "apples", "logic", "steps"), "1"),
        **dict.fromkeys(("calculation", "negation"), "1"),
        **dict.fromkeys(("operator", "book", "web"), "2"),
    }


def test_lines_of_a_chain_are_kept_and_nothing_is_wrapped(tmp_path, capfd):
    row = {"prompt": "?" * 300, "chosen": "one\ntwo\nsame", "rejected": "one\nthree\nsame"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    output = inspect(capfd, tmp_path / "rows.jsonl")
    assert "  chosen    one\n            [two]\n            same\n" in output
    assert "?" * 300 in output


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--task", "logic", "apples"], ["apples", "boolean"]),
        (["--mistake", "operator"], ["robe", "boolean"]),
        (["--mistake", "operator", "--source", "web"], ["boolean"]),
        (["--id", "steps"], ["steps"]),
        (["--limit", "2"], ["robe", "apples"]),
        (["--source", "web", "--limit", "1"], ["boolean"]),
    ],
)
def test_filters(data, capfd, options, ids):
    output = inspect(capfd, data, *options)
    assert re.findall(rf"^\d of {len(ids)}  (\w+)", output, re.MULTILINE) == ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "logics"], "no pair has the task 'logics'; did you mean `logic`?"),
        (["--task", "zzz"], "no pair has the task 'zzz'; there are fibre, apples, logic, steps"),
        (["--source", "web", "--id", "robe"], "no pair passes all of the filters --source, --id"),
        (["--limit", "0"], "--limit must be 1 or more, got 0"),
        (["--column_mapping", "{x}"], "`--column_mapping.x: None`: must not be empty"),
        (["--column_mapping", '{"x": "prompt"}'], "no column 'x'"),
        (["--split", "test"], "no split 'test'"),
        (["--dataset_config", "main"], "only applies to a dataset on the Hub"),
        (["--method", "spans"], "row 1: method 'spans' needs chosen_spans"),
        (["--tokenizer", "/nowhere"], "`tokenizer: /nowhere`: no such folder"),
        (["--html", "{folder}"], "is a folder; name a file"),
    ],
)
def test_bad_options(data, capfd, options, message):
    options = [option.replace("{folder}", str(data.parent)) for option in options]
    assert main(["inspect", str(data), *options]) == 2
    assert message in capfd.readouterr().err


def test_rows_that_are_no_dual_cots(data, capfd):
    data.write_text(json.dumps({**ROWS[0], "rejected": 3}))
    assert main(["inspect", str(data)]) == 2
    assert "row 1, rejected" in capfd.readouterr().err
    assert main(["inspect", str(data) + "x.jsonl"]) == 2
    assert "no such file" in capfd.readouterr().err


def test_columns_and_splits_and_messages(tmp_path, capfd):
    rows = [{"question": r["prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    output = inspect(capfd, tmp_path / "rows.json", "--column_mapping", '{"question": "prompt"}')
    assert "4 of 4  row 4" in output
    assert (
        main(["generate", "--rows", "4", "--held_out", "2", "--conversational", "--output", str(tmp_path / "d")]) == 0
    )
    capfd.readouterr()
    output = inspect(capfd, tmp_path / "d" / "test", "--method", "spans")
    assert "2 rows, 2 pairs" in output
    assert "key steps by 'spans'" in output
    assert "role" not in output
    (tmp_path / "turns.jsonl").write_text(
        json.dumps(conversational(ROWS[0]) | {"prompt": [{"role": "system", "content": "Be brief."},
                                                         {"role": "user", "content": "How many?"}]})
    )  # fmt: skip
    assert "system: Be brief.\n            user: How many?" in inspect(capfd, tmp_path / "turns.jsonl")


def test_a_tokenizer(data, tmp_path, capfd):
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    output = inspect(capfd, data, "--tokenizer", tmp_path / "tokenizer", "--method", "edit")
    assert re.search(r"mean chain: \d+ tokens correct", output)


def test_the_methods_are_those_of_key_steps():
    [action] = [action for action in _parser()._actions if action.dest == "method"]
    assert sorted(action.choices) == sorted(get_args(KeyStepMethod))


def test_a_page(data, tmp_path, capfd):
    output = inspect(capfd, data, "--html", tmp_path / "pairs.html", "--source", "web", "--limit", "1")
    assert output == f"{tmp_path / 'pairs.html'}: 1 pair, 0.1 MB\n"
    page, [item] = read_page(tmp_path / "pairs.html")
    assert page["title"] == str(data)
    assert item["id"] == "boolean"
    assert item["chosen_spans"]


def test_nothing_in_the_data_steers_the_terminal(tmp_path, capfd):
    row = {**ROWS[0], "prompt": "\x1b[31m\x07\x9b2J [bold]x[/bold] \r?", "id": "\x1b]0;title\x07"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    output = inspect(capfd, tmp_path / "rows.jsonl")
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(output)
    assert "\u241b[31m\u2407\ufffd2J [bold]x[/bold] \u240d?" in output
    assert visible("a\tb\nc\x7f") == "a\tb\nc\u2421"


def test_a_reader_that_has_seen_enough(tmp_path):
    rows = [{**ROWS[0], "id": str(number)} for number in range(2000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with subprocess.Popen(
        [sys.executable, "-m", "edit_trl.cli.main", "inspect", tmp_path / "rows.jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert b"2000 rows" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# --- On a terminal ---------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal of 24 lines with the command on it."""

    def __init__(self, *arguments, columns=120, own_input=True):
        self.screen, terminal = pty.openpty()
        self.resize(columns)
        # A size in the environment would win over the terminal's; pytest-xdist sets one.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edit_trl.cli.main", "inspect", *map(str, arguments)],
            stdin=terminal if own_input else subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            env={**environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"} | {"NO_COLOR": ""},
            start_new_session=True,
        )
        os.close(terminal)

    def resize(self, columns):
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, keys):
        os.write(self.screen, keys.encode())

    def until(self, text, seconds=180) -> str:
        """What was written up to where `text` came, colours left out."""
        seen, end = "", time.monotonic() + seconds
        while text not in plain(seen):
            assert time.monotonic() < end, f"no {text!r} in {plain(seen)!r}"
            seen += self._read(0.2)
        return seen

    def rest(self) -> str:
        self.process.wait(180)
        return self._read(0.2)

    def _read(self, seconds) -> str:
        if not select.select([self.screen], [], [], seconds)[0]:
            return ""
        try:
            return self._decoder.decode(os.read(self.screen, 65536))
        except OSError:  # the other end is closed
            return ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_going_through_pairs(data):
    with Terminal(data) as terminal:
        first = terminal.until("0/4")
        assert "4 rows, 4 pairs" in plain(first)
        assert "\x1b[?1049h" in first  # a screen of its own, so that the shell's is as it was afterwards
        for keys, place, name in (
            ("n", "1/4", "robe"),
            ("\x1b[C", "2/4", "apples"),
            ("\x1bOC", "3/4", "boolean"),
            ("\x1b[D", "2/4", "apples"),
            ("p", "1/4", "robe"),
            ("G", "4/4", "steps"),
            ("n", "4/4", "steps"),
            ("g", "0/4", "rows, 4 pairs"),
            ("p", "0/4", "rows, 4 pairs"),
            ("nnn", "3/4", "boolean"),
        ):
            terminal.type(keys)
            assert name in plain(terminal.until(f" {place}"))
        terminal.type("q")
        assert "\x1b[?1049l" in terminal.rest()
        assert terminal.process.returncode == 0


def test_key_steps_stand_out_on_both_sides(data):
    with Terminal(data, "--id", "robe") as terminal:
        terminal.until("0/1")
        terminal.type("n")
        screen = terminal.until("1/1")
        marked = re.findall(r"\x1b\[1;4;38;2;[0-9;]+m([^\x1b]*)\x1b", screen)
        assert sorted(marked) == sorted(["+", "3", "3", "*", "2", "2"])
        assert "+ correct" in plain(screen)
        assert "- wrong" in plain(screen)
        terminal.type("\x1b")
        assert terminal.rest() is not None
        assert terminal.process.returncode == 0


def test_a_long_pair_scrolls_and_a_new_size_is_drawn(tmp_path):
    chain = "\n".join(f"line {number}" for number in range(60))
    row = {"prompt": "?", "chosen": f"{chain}\nright end", "rejected": f"{chain}\nwrong end"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with Terminal(tmp_path / "rows.jsonl") as terminal:
        terminal.until("0/1")
        terminal.type("n")
        assert "line 40" not in plain(terminal.until("1/1"))
        terminal.type("j")
        assert "scroll" in plain(terminal.until("1/1"))
        terminal.type("   ")
        for _ in range(2):
            terminal.until("1/1")
        assert "wrong end" in plain(terminal.until("1/1"))
        terminal.resize(60)  # the chains are now one below the other
        assert "wrong end" not in plain(terminal.until("1/1"))
        terminal.type("    ")
        terminal.until("wrong end")
        terminal.type("\x04")
        terminal.rest()
        assert terminal.process.returncode == 0


def test_markup_and_control_characters_are_shown(tmp_path):
    row = {**ROWS[0], "prompt": "[bold red]x[/bold red] [/nothing] \x1b[2J", "task": "[link=file:///]t"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with Terminal(tmp_path / "rows.jsonl") as terminal:
        terminal.until("0/1")
        terminal.type("n")
        screen = plain(terminal.until("1/1"))
        assert "[bold red]x[/bold red] [/nothing] \u241b[2J" in screen
        assert "[link=file:///]t" in screen
        terminal.type("q")
        terminal.rest()


def test_an_interruption_leaves_the_terminal_as_it_was(data):
    with Terminal(data) as terminal:
        terminal.until("0/4")
        before = termios.tcgetattr(terminal.screen)[3]
        terminal.process.send_signal(2)
        assert "\x1b[?1049l" in terminal.rest()
        assert terminal.process.returncode == 130
        assert not before & termios.ECHO
        assert termios.tcgetattr(terminal.screen)[3] & termios.ECHO


def test_without_a_keyboard_it_is_printed_in_colour(data):
    with Terminal(data, own_input=False) as terminal:
        output = terminal.until("the answer is yes")
        assert "\x1b[?1049h" not in output
        assert "\x1b[1;4;" in output
        assert "4 of 4" in plain(output)


def test_the_procedural_teachers_pairs(tmp_path, capfd):
    save_dual_cots(generate_dual_cots(ProceduralTeacher(), 14), tmp_path / "rows.parquet")
    output = inspect(capfd, tmp_path / "rows.parquet", "--method", "spans", "--task", "navigate")
    assert "2 rows, 2 pairs" in output


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]


def turns_row(**more) -> dict:
    """A row of several turns, with thoughts and a tool."""

    def chain(answer: str) -> list[dict]:
        return [
            {"role": "assistant", "content": None, "reasoning_content": "I add.", "tool_calls": CALL},
            {"role": "tool", "content": "a secret of the tool"},
            {"role": "assistant", "content": f"The answer is {answer}."},
        ]

    prompt = [{"role": "user", "content": "Sum?"}, *chain("1"), {"role": "user", "content": "What is 2 + 2?"}]
    return {"prompt": prompt, "chosen": chain("4"), "rejected": chain("5"), "tools": [TOOL], "answer": "4"} | more


def test_rows_with_thoughts_turns_tools_and_no_prompt(tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    row = turns_row(id="turns", chat_template_kwargs={"enable_thinking": True})
    path.write_text(json.dumps(row) + "\n")
    shown = inspect(capfd, path)
    assert "assistant: <think>" in shown
    assert '{"name": "add", "arguments": {"a": 2, "b": 2}}' in shown
    assert "The answer is [4]." in shown
    assert shown.count("a secret of the tool") == 1  # in the prompt: it is no part of a chain
    assert main(["validate", "--dataset", str(path)]) == 0
    prompt = row.pop("prompt")
    whole = row | {side: prompt + row[side] for side in ("chosen", "rejected")}
    path.write_text(json.dumps(whole) + "\n")
    assert "The answer is [4]." in inspect(capfd, path)
    assert main(["validate", "--dataset", str(path)]) == 0
    assert inspect(capfd, path, "--html", tmp_path / "page.html")


def test_a_prefix_is_no_obstacle(tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0] | {"prefix": "White: 2 / 2"}) + "\n")
    assert "In total 2 [+] 1" in inspect(capfd, path)
    assert main(["validate", "--dataset", str(path)]) == 0
