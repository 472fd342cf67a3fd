import os
import threading
import time
import tracemalloc

import pytest

from edit_trl.common.conversion import Word
from edit_trl.common.errors import InputError
from edit_trl.common.yaml_file import parse_yaml, read_texts, read_value, read_words, read_yaml


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "r.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, read=read_yaml, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return str(caught.value).replace(str(path), "r.yaml")


def test_values_without_a_type_are_read_as_yaml_reads_them(file):
    text = (
        "whole: 1_000\nhex: 0x1F\nnumber: 1e-6\nhalf: .5\nno: no\nOn: On\ntrue: true\nnothing: ~\nempty:\n"
        "quoted: '1'\ntagged: !!str 5\nfloat: !!float 1\ndate: 2024-01-01\ntime: 1:30\noctal: 010\nequals: =\n"
        "merge: <<\ninner: {0: [1e3, off], on: x}\n"
    )
    assert read_yaml(file(text)) == {
        "whole": 1000,
        "hex": 31,
        "number": 1e-6,
        "half": 0.5,
        "no": False,
        "On": True,
        "true": True,
        "nothing": None,
        "empty": None,
        "quoted": "1",
        "tagged": "5",
        "float": 1.0,
        # YAML 1.1 would make a date, the number 90 and the number 8 of these.
        "date": "2024-01-01",
        "time": "1:30",
        "octal": "010",
        "equals": "=",
        "merge": "<<",
        "inner": {0: [1000.0, False], "on": "x"},
    }


def test_words_keep_what_is_written(file):
    values = read_words(file("a: no\nb: 'no'\nc: [007]\n1: x\n2024-13-45: y\non: z\n~: n\n"))
    assert values == {"a": "no", "b": "no", "c": ["007"], "1": "x", "2024-13-45": "y", "on": "z", "~": "n"}
    assert [type(values[name]) for name in "ab"] == [Word, str]
    assert {type(name) for name in values} == {str}


def test_encodings_and_line_ends(file):
    expected = {"a": "ä", "b": "2"}
    text = "a: ä\r\nb: 2\r\n"
    for content in (
        text.encode(),
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        b"\xfe\xff" + text.encode("utf-16-be"),
    ):
        assert read_words(file(content)) == expected
    # JSON writes a character beyond U+FFFF as two surrogates.
    assert read_yaml(file('{"a": "\\ud83d\\ude00"}')) == {"a": "😀"}


def test_merged_keys_are_not_given_twice(file):
    text = "base: &base {a: 1, b: 2}\nover:\n  <<: *base\n  b: 3\nboth: {<<: [*base, {c: 4}]}\n"
    values = read_yaml(file(text))
    assert values["over"] == {"a": 1, "b": 3}
    assert values["both"] == {"a": 1, "b": 2, "c": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nrows: 2\nseed: 3\n", "r.yaml, line 3: 'seed' is given twice, first in line 1"),
        ("a: {b: 1, c: 2, 'b': 3}\n", "r.yaml, line 1: 'b' is given twice, first in line 1"),
        (
            "stages:\n  - name: x\n    lora_r: 1\n    lora_r: 2\n",
            "r.yaml, line 4: 'lora_r' is given twice, first in line 3",
        ),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "r.yaml, line 4: '<<' is given twice, first in line 3"),
        ("seed: !!int abc\n", "r.yaml, line 1, column 7: 'abc' does not fit its tag !!int"),
        ("seed: !!bool maybe\n", "r.yaml, line 1, column 7: 'maybe' does not fit its tag !!bool"),
        ("seed: !!int " + "9" * 5000, "does not fit its tag !!int"),
        ("a: 1\nb: !!timestamp abc\n", "r.yaml, line 2, column 4: unknown tag '!!timestamp'"),
        ("a: !!set {b, c}\n", "r.yaml, line 1, column 4: unknown tag '!!set'"),
        ("a: !!python/object/apply:os.system [x]\n", "r.yaml, line 1, column 4: unknown tag '!!python/object"),
        ("a: !own 1\n", "r.yaml, line 1, column 4: unknown tag '!own'"),
        ("a: " + "[" * 3000 + "]" * 3000, "r.yaml, line 1, column 35: more than 32 levels of nesting"),
        ("\n".join(" " * level + "a:" for level in range(500)), "r.yaml, line 32, column 32: more than 32 levels"),
        ("[a, b]: 1\n", "r.yaml, line 1, column 1: a key must be a text"),
        ("? {a: b}\n: 1\n", "r.yaml, line 1, column 3: a key must be a text"),
        ("a: &a [*a]\n", "r.yaml, line 1, column 8: *a contains itself"),
        ("a: *b\n", "r.yaml, line 1, column 4: found undefined alias 'b'"),
        ("a: {<<: 5}\n", "r.yaml, line 1, column 9: expected a mapping or list of mappings for merging"),
        ("a: 1\n---\nb: 2\n", "r.yaml, line 2, column 1: expected a single document in the stream"),
        (
            "a:\n\tb: 1\n",
            "r.yaml, line 2, column 1: this is not YAML: found character '\\t' that cannot start any token; "
            "indent with spaces",
        ),
        ("a: b: c\n", "r.yaml, line 1, column 5: this is not YAML: mapping values are not allowed here"),
        ('a: "\\ud800"\n', "r.yaml, line 1, column 4: a lone surrogate is no character"),
        ("a: 1\nb: x\0y\n", "r.yaml, line 2: this is not YAML: the character U+0000 is not allowed"),
        (b"a: 1\nb: \xe4\n", "r.yaml, line 2: this is not YAML: byte 0xe4 is not UTF-8"),
        (b"\xff\xfea", "r.yaml, line 1: this is not YAML: byte 0x61 is not UTF-16-LE"),
        ("", "r.yaml is empty; write options as `key: value`"),
        ("# nothing\n---\n", "r.yaml is empty; write options as `key: value`"),
        ("- a\n", "r.yaml must hold options as `key: value`, got list"),
        ("abc", "r.yaml must hold options as `key: value`, got 'abc'"),
    ],
)
def test_what_is_no_recipe_is_named_with_its_line(file, text, message):
    assert message in refused(file(text))


def test_every_key_given_twice_is_named(file):
    message = refused(file("a: 1\na: 2\nb: {c: 1, c: 2}\n"))
    assert message.startswith("r.yaml: 2 problems")
    assert "line 2: 'a'" in message
    assert "line 3: 'c'" in message


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}], k: 1}}"], ids=["lists", "merged mappings"])
def test_aliases_that_multiply_take_neither_time_nor_memory(file, form):
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {form.format(', '.join([f'*a{n - 1}'] * 10))}" for n in range(1, 12)]
    path = file("\n".join(lines))
    tracemalloc.start()
    started = time.perf_counter()
    message = refused(path)
    took, memory = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than 50000 values, aliases counted" in message
    assert took < 5
    assert memory < 2**25


def test_aliases_within_reason_are_read(file):
    values = read_yaml(file("a: &a [1, 2]\nb: [*a, *a]\nc: &c x\nd: *c\n"))
    assert values == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": "x", "d": "x"}


def test_files_that_are_too_large(file):
    assert "is larger than 4 MiB, which no recipe is" in refused(file(b"a: 1\n# " + b"x" * (11 << 20)))
    assert "r.yaml, line 50000, column 3: more than 50000 values" in refused(file(b"- a\n" * 60_000), read_value)
    assert "r.yaml is larger than 4 MiB" in refused("/dev/zero")


def test_paths_that_are_no_files(tmp_path):
    assert "no recipe at" in refused(tmp_path)
    assert "Is a directory" in refused(tmp_path)
    assert refused("none.yaml", what="task file") == "no task file at r.yaml: No such file or directory"
    assert "embedded null byte" in refused("a\0b")
    assert "File name too long" in refused("x" * 300)


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is empty" in refused(pipe)  # nobody writes to it, and nobody waits for that

    writer = threading.Thread(target=pipe.write_text, args=["seed: 3\n"])
    writer.start()
    while not writer.is_alive():
        time.sleep(0.01)
    time.sleep(0.2)  # until it is opened for writing
    assert read_yaml(pipe) == {"seed": 3}
    writer.join()
    assert "is a pipe or a device; training reads its recipe more than once: use a file" in refused(pipe, again=True)


def test_texts(file):
    assert read_texts(file("sums: Add numbers.\n2023: no\n"), "descriptions") == {"sums": "Add numbers.", "2023": "no"}
    assert "`sums: ['a']`: expected a text, got list" in refused(file("sums: [a]\n"), read_texts, what="descriptions")


def test_a_text_is_parsed_like_a_file():
    assert parse_yaml('{"a": [1, no]}', "here") == {"a": ["1", "no"]}
    with pytest.raises(InputError, match="here, line 1: 'a' is given twice"):
        parse_yaml("{a: 1, a: 2}", "here")
