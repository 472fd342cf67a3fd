"""The benchmark of how costs grow: the fit, what is measured, and the rows that it is measured on."""

import json

import pytest
import scaling
import torch
from datasets import enable_caching, enable_progress_bars


def test_the_fit_finds_the_exponent():
    sizes = [50, 100, 200, 400]
    assert scaling.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert scaling.exponent(sizes, [7.0] * 4) == pytest.approx(0.0)


def test_rows_have_the_size_that_is_asked_for():
    rows = scaling.made_up_rows(8, 64, pairs_a_prompt=4)
    assert len({row["prompt"] for row in rows}) == 2
    for row in rows:
        assert sum(len(text.split()) for text in row.values()) == 64
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        assert chosen[:12] == rejected[:12]
        assert chosen[12:] != rejected[12:]


@pytest.fixture
def restored():
    """The settings of the process that the benchmark changes are as before."""
    threads = torch.get_num_threads()
    yield
    enable_caching()
    enable_progress_bars()
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored")
def test_every_work_has_an_exponent_for_each_of_its_variables(tmp_path, capsys):
    file = tmp_path / "scaling.json"
    sizes = "--pairs 8 16 --tokens 32 64 --pairs_a_prompt 1 2 --processes 1 2 --repeats 1"
    scaling.main([*sizes.split(), "--output", str(file)])
    result = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert list(result["exponents"]) == ["validate", "key_steps", "preparation", "collation", "step"]
    for work, by_name in result["exponents"].items():
        assert set(by_name) == {"pairs", "tokens", "pairs_a_prompt"} | (
            {"processes"} if work == "preparation" else set()
        )
    assert set(result["seconds"]["step"]["tokens"]) == {"32", "64"}
    assert all(time > 0 for times in result["seconds"]["step"].values() for time in times.values())
