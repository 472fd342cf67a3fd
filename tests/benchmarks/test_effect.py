"""The matrix of methods: what is refused before anything runs, and a small one that really runs."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import effect
import pytest
import yaml
from effect_matrix.cells import Cell, clear, list_cells, read_cell, settle, write_cell
from effect_matrix.checks import check_options, check_power, detectable
from effect_matrix.config import read_matrix
from effect_matrix.data import make_sets, prompt_text, resolve
from effect_matrix.differences import accuracy_interval, difference
from effect_matrix.kept import keep, take_up, with_missing
from effect_matrix.measure import fork_confidence
from effect_matrix.page import write_page
from effect_matrix.pool import run_cells
from effect_matrix.tables import as_markdown, fill
from effect_matrix.work import best_point, run_cell, training_options

from edit_trl import ProceduralTeacher, load_dual_cots
from edit_trl.common.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILIES = ["arithmetic", "object_counting"]
MATRIX = {
    "students": {"toy": {"from_scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "vocabulary": 400}}},
    "seeds": [0],
    "data": {
        "warm_up": {"families": FAMILIES, "rows": 32},
        "dev": {"families": FAMILIES, "rows": 6},
        "held_out": {"families": FAMILIES, "rows": 6},
        "tests": {"in_domain": {"families": FAMILIES, "rows": 8}},
        "pairs": {
            "new": {"families": FAMILIES, "rows": 16},
            "seen": {"of": "warm_up", "rows": 16},
            "hard": {"of": "new", "hardest": 0.5},
        },
    },
    "warm_up": {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_length": 512},
    "stage_2": {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 512},
    "methods": {
        "sft": {
            "options": {"chosen_key_weight": 1.0, "preference_weight": 0.0},
            "grid": {"learning_rate": [1e-4, 1e-3]},
        },
        "ours": {"label": "<b>ours</b>", "pairs": "hard"},
    },
    "baseline": "sft",
    "evaluation": {"batch_size": 8, "max_new_tokens": 4},
}


def matrix_file(folder: Path, **changes) -> Path:
    """The matrix with values at `a.b.c` paths changed; a value of ... is left out."""
    values = copy.deepcopy(MATRIX)
    for path, value in changes.items():
        *above, last = path.split("/")
        place = values
        for name in above:
            place = place[name]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    file = folder / "matrix.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ...}, "`methods` is missing"),
        ({"metods": {}}, "unknown key `metods`; did you mean `methods`?"),
        ({"baseline": "stf"}, "`baseline: stf` is none of the methods; did you mean `sft`?"),
        ({"methods/ours/pairs": "nwe"}, "`pairs: nwe` is none of `data.pairs`; did you mean `new`?"),
        ({"methods/ours/girds": {}}, "`methods.ours`: unknown key `girds`; did you mean `grid`?"),
        ({"methods/ours/grid": {"learning_rate": 1e-3}}, "the grid's `learning_rate` must be a list"),
        ({"students": {}}, "`students` must be a mapping of at least one name"),
        ({"students/toy": {"path": "./nowhere"}}, "student `toy`: no model at ./nowhere"),
        ({"students/toy": {}}, "student `toy` needs one of `path` and `from_scratch`"),
        ({"students/toy/from_scratch/layer": 2}, "unknown key `layer`; did you mean `layers`?"),
        ({"students/toy/from_scratch/heads": 3}, "`heads: 3` must divide `hidden_size: 32`"),
        ({"seeds": []}, "`seeds` must be a list of integers"),
        ({"tuning_seed": 7}, "`tuning_seed: 7` is none of `seeds` [0]"),
        ({"data/dev": ...}, "the set `dev` is missing"),
        ({"data/dev/rows": ...}, "data set `dev`: needs `rows`"),
        ({"data/dev": {"of": "warm_up", "rows": 4}}, "only `pairs` can be a part of another set"),
        ({"data/dev": {"path": "nowhere.jsonl"}}, "no file or folder at nowhere.jsonl"),
        ({"data/pairs/hard/hardest": 1.5}, "`hardest: 1.5` must be a share"),
        ({"data/pairs/hard/of": "neww"}, "`of: neww` is no set of pairs"),
        ({"data/pairs/hard/problems_of": "nwe"}, "`problems_of: nwe` must be a set of pairs"),
        ({"data/pairs/hard/wrong_chains_of": "nwe"}, "`wrong_chains_of: nwe` must be a set of pairs"),
        ({"data/pairs/hard/wrong_chains_of": "hard"}, "`wrong_chains_of: hard` must stand above it"),
        ({"data/pairs/seen": {"of": "hard"}}, "`of: hard` must stand above it in `data.pairs`"),
        (
            {"data/pairs/hard": {"of": "new", "problems_of": "seen", "wrong_chains_of": "seen"}},
            "needs one of problems_of and wrong_chains_of",
        ),
        ({"power": {"test": "harder"}}, "`power.test: harder` is none of `data.tests`"),
        ({"methods/ours/control": "stf"}, "`control: stf` is none of the other methods; did you mean `sft`?"),
        ({"methods/ours/control": "ours"}, "`control: ours` is none of the other methods"),
        ({"methods/sft/start": "ours"}, "`methods.sft`: `start: ours` must be a method above it"),
        ({"data/pairs/hard/student_of": "sft"}, "`student_of: sft` must be a method, beside `generate`"),
        (
            {"data/pairs/hard": {"generate": {}, "student_of": "ours"}},
            "`student_of: ours` trains on `hard`, which must stand above it",
        ),
        ({"collapse": {"method": "our", "variants": {}}}, "`collapse.method: our` is none of the methods"),
        ({"collapse": {"method": "ours"}}, "`collapse`: `variants` is missing"),
    ],
)
def test_a_bad_matrix_is_refused_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(InputError, match=r"matrix\.yaml") as caught:
        read_matrix(matrix_file(tmp_path, **changes))
    assert message in str(caught.value)


def test_everything_wrong_is_told_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        read_matrix(matrix_file(tmp_path, baseline="x", seeds=[-1], **{"methods/ours/pairs": "y"}))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods/ours/options": {"chosen_key_wieght": 1.0}}, "did you mean `chosen_key_weight`?"),
        ({"methods/ours/grid": {"preference_weight": [-1.0]}}, "`preference_weight` must be a finite number"),
        ({"methods/ours/recipe": "nowhere.yaml"}, "`methods.ours`: no recipe at nowhere.yaml"),
        ({"stage_2/max_step": 3}, "did you mean `max_steps`?"),
        ({"collapse": {"method": "ours", "variants": {"half": {"alpha": 1}}}}, "`collapse.half`"),
    ],
)
def test_options_that_the_trainer_does_not_have_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        check_options(read_matrix(matrix_file(tmp_path, **changes)))
    assert message in str(caught.value)


def test_the_shipped_matrices_pass_all_checks(tmp_path, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    recorded = tmp_path / "bbh.jsonl"
    recorded.write_text("{}\n", encoding="utf-8")
    found = sorted(path.name for path in BENCHMARKS.glob("effect_*.yaml"))
    assert found == [f"effect_{name}.yaml" for name in ("gpu", "power", "pretrained", "small", "whole")]
    for name in found:
        paths = {"bbh": str(recorded)} if name == "effect_gpu.yaml" else {}
        matrix = read_matrix(BENCHMARKS / name, paths)
        check_options(matrix)
        check_power(matrix, detectable(matrix))
        grids = [len(method.points) for method in matrix.methods.values()]
        assert len(matrix.methods[matrix.baseline].points) == max(grids)  # the baseline is tuned as well as any


def test_no_problem_is_in_two_sets_and_a_set_more_changes_no_other(tmp_path):
    matrix = read_matrix(matrix_file(tmp_path))
    folders = make_sets(matrix, tmp_path / "data")
    from datasets import load_from_disk

    asked = {name: {prompt_text(row) for row in load_from_disk(str(of))} for name, of in folders.items()}
    assert {name: len(of) for name, of in asked.items()} == {
        "warm_up": 32,
        "dev": 6,
        "held_out": 6,
        "test_in_domain": 8,
        "pairs_new": 16,
        "pairs_seen": 16,
    }
    assert asked["pairs_seen"] <= asked["warm_up"]
    del asked["pairs_seen"]
    assert sum(map(len, asked.values())) == len(set.union(*asked.values()))
    more = {"families": FAMILIES, "rows": 4}
    with_more = read_matrix(matrix_file(tmp_path, **{"data/pairs/more": more}))
    after = resolve(with_more.data)
    assert {name: after[name] for name in folders} == {name: resolve(matrix.data)[name] for name in folders}


def test_a_test_that_shares_problems_with_another_set_is_refused(tmp_path):
    from edit_trl import ProceduralTeacher, generate_dual_cots

    rows = generate_dual_cots(ProceduralTeacher(FAMILIES, seed=5), 6, conversational=True)
    rows.to_json(tmp_path / "same.jsonl")
    same = {"path": str(tmp_path / "same.jsonl")}
    for other in ("dev", "warm_up", "pairs/new"):
        changes = {"data/tests/in_domain": same, f"data/{other}": same}
        with pytest.raises(InputError, match="share 6 problems, such as") as caught:
            make_sets(read_matrix(matrix_file(tmp_path, **changes)), tmp_path / "data")
        assert "test_in_domain" in str(caught.value)


def test_recorded_questions_are_dealt_and_only_right_chains_are_trained(tmp_path):
    answers = ["3" if number % 2 else "4" for number in range(20)]
    lines = [
        {"question": f"Question {n}?", "answer": "3", "task": "t", "teacher_response": f"So the answer is {a}."}
        for n, a in enumerate(answers)
    ]
    file = tmp_path / "recorded.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]), encoding="utf-8")
    recorded = {"recorded": "{here}", "recorded_rows": 10}
    changes = {"paths": {"here": "nowhere"}, "data/tests/in_domain": recorded}
    changes["data/warm_up"] = {**MATRIX["data"]["warm_up"], **recorded}
    path = matrix_file(tmp_path, **changes)
    with pytest.raises(InputError, match="no file at nowhere; say where it is with --path"):
        read_matrix(path)
    with pytest.raises(InputError, match=r"has no path 'hree'; did you mean `here`"):
        read_matrix(path, {"hree": "x"})
    folders = make_sets(read_matrix(path, {"here": str(file)}), tmp_path / "data")
    from datasets import load_from_disk

    trained, tested = (load_from_disk(str(folders[name])).to_list() for name in ("warm_up", "test_in_domain"))
    alone = [row for row in trained if not row["rejected"]]
    assert len(tested) == 10
    assert len(trained) == 32 + len(alone)
    assert all("answer is 3" in row["chosen"][0]["content"] for row in alone)
    assert not {prompt_text(row) for row in alone} & {prompt_text(row) for row in tested}
    too_many = matrix_file(tmp_path, **{"data/dev": {"recorded": str(file), "recorded_rows": 21}})
    with pytest.raises(InputError, match="has 20 questions, of which other sets take 0"):
        make_sets(read_matrix(too_many), tmp_path / "more")


def test_what_can_be_detected_grows_with_items_and_too_little_is_refused(tmp_path, capsys):
    few, many = (
        detectable(read_matrix(matrix_file(tmp_path, **{"data/tests/in_domain/rows": rows})))["in_domain"]
        for rows in (100, 400)
    )
    # One seed: (1.96 + 0.84) * sqrt(0.3 / 400), by t with 399 degrees of freedom.
    assert many == pytest.approx(2.807 * (0.3 / 400) ** 0.5, abs=2e-4)
    assert few == pytest.approx(2 * many, rel=0.02)
    path = matrix_file(tmp_path, power={"difference": 0.03})
    assert effect.main([str(path), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert "in_domain: 8 items x 1 seeds show a true difference of" in told.out
    assert "`power.difference: 0.03`, but 8 items of `in_domain` x 1 seeds show" in told.err
    assert not (tmp_path / "out" / "cells").exists()


def test_the_last_stage_of_a_recipe_counts_and_options_win_over_it():
    recipe = "learning_rate: 1.0e-3\nstages:\n- {name: a, max_steps: 1}\n- {name: b, max_steps: 2, seed: 4}\n"
    options = training_options(recipe, {"max_steps": 3}, {"learning_rate": 1e-4})
    assert (options["max_steps"], options["learning_rate"], options["seed"]) == (3, 1e-4, 4)
    assert "stages" not in options
    assert "name" not in options


def test_the_fork_is_the_first_token_that_differs():
    item = {
        "chosen": "2 + 2 = 4",
        "rejected": "2 + 2 = 5",
        "tokens": {
            "chosen": [[0, 8, -0.1], [8, 9, -0.6931471805599453], [9, 9, 0.0]],
            "rejected": [[0, 8, -0.1], [8, 9, -3.0], [9, 9, 0.0]],
        },
    }
    assert fork_confidence(item) == pytest.approx(0.5)


def test_the_best_point_is_the_best_on_dev_and_the_first_of_equals(tmp_path):
    for name, accuracy in (("a", 0.2), ("b", 0.5), ("c", 0.5)):
        result = {"dev": {"accuracy": accuracy}, "name": name}
        write_cell(tmp_path / "cells" / name, {"inputs": {}, "status": "done", "result": result})
    assert best_point(["a", "b", "c"], tmp_path)[0] == "b"


def cells_of(path: Path, **wanted) -> list[Cell]:
    return [c for c in list_cells(read_matrix(path)) if all(getattr(c, k) == v for k, v in wanted.items())]


def test_cells_stand_in_the_order_of_their_seeds_and_need_what_they_start_from(tmp_path):
    collapse = {"method": "ours", "variants": {"half": {"preference_weight": 0.05}}, "seeds": 3}
    path = matrix_file(tmp_path, seeds=[0, 1], collapse=collapse)
    cells = cells_of(path)
    names = [cell.name for cell in cells]
    for cell in cells:
        assert all(names.index(need) < names.index(cell.name) for need in cell.needs)
    finals = [cell.name.split("/")[-1] for cell in cells if "/final/" in cell.name]
    assert finals == [f"{m}_seed{s}" for s in (0, 1) for m in ("warm_up", "sft", "ours")]
    assert len(cells_of(path, kind="tune")) == 2 + 1
    assert [c.seed for c in cells if "/collapse/" in c.name] == [0, 1, 0]


def test_a_changed_matrix_says_what_changed_and_redo_does_it_anew(tmp_path):
    output = tmp_path / "out"
    cells = cells_of(matrix_file(tmp_path))
    for cell in cells:
        write_cell(cell.folder(output), {"name": cell.name, "inputs": cell.inputs, "status": "done"})
    assert settle(cells, output, redo=False) == []
    write_cell(cells[0].folder(output), {"inputs": cells[0].inputs, "status": "failed", "error": "x"})
    assert settle(cells, output, redo=False) == [cells[0]]
    changed = cells_of(matrix_file(tmp_path, **{"methods/ours/options": {"preference_weight": 0.2}}))
    with pytest.raises(InputError, match=r"`options.preference_weight` was None, is 0.2") as caught:
        settle(changed, output, redo=False)
    assert "--redo" in str(caught.value)
    assert "sft" not in str(caught.value)
    left = settle(changed, output, redo=True)
    assert {cell.method for cell in left[1:]} == {"ours"}
    clear(left, output)
    assert not any(cell.folder(output).exists() for cell in left)


def test_only_takes_the_methods_named_and_the_baseline(tmp_path, capsys):
    matrix = read_matrix(matrix_file(tmp_path))
    assert list(effect.only(matrix, ["ours"]).methods) == ["sft", "ours"]
    with pytest.raises(InputError, match=r"no method 'our'; did you mean `ours`"):
        effect.only(matrix, ["our"])
    arguments = [str(matrix.path), "--output", str(tmp_path), "--jobs", "0"]
    assert effect.main(arguments) == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err


def test_tables_go_between_the_markers(tmp_path):
    assert as_markdown([["a", "b"], ["x|y", "1\n2"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 2 |"
    file = tmp_path / "RESULTS.md"
    file.write_text("before\n<!-- begin: effect.py -->\nold\n<!-- end: effect.py -->\nafter\n", encoding="utf-8")
    fill(file, "new")
    fill(file, "newer")
    text = file.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "newer" in text
    assert "old" not in text
    assert text.count("new") == 1
    file.write_text("none", encoding="utf-8")
    with pytest.raises(InputError, match="must have one line"):
        fill(file, "new")


def test_the_page_escapes_what_it_is_given(tmp_path):
    cells = {"asked": 1, "done": 0, "failed": {}}
    results = {"cells": cells, "baseline": "sft", "students": {"<i>": {"methods": {}}}}
    write_page(results, [("<script>", [["<a>"], ["<img src=x>"]])], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for harm in ("<script", "<img", "<i>", "<a>"):
        assert harm not in text
    assert "&lt;img src=x&gt;" in text


def test_a_worker_that_is_killed_fails_its_cell_alone(tmp_path):
    """The first cell's worker is killed while it waits for a pipe; the next cell gets another worker."""
    output = tmp_path / "out"
    output.mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stuck = {"pairs": {"generate": {"dataset_name": str(pipe), "teacher": "procedural"}}}
    cells = [
        Cell("toy/pairs/stuck", "pairs", "toy", 0, (), stuck),
        Cell("toy/pairs/needs_it", "pairs", "toy", 0, ("toy/pairs/stuck",), {}),
        Cell("toy/warm_up/none", "warm_up", "toy", 0, (), {"student": {"path": str(tmp_path / "none")}}),
    ]
    ended = []

    def kill() -> None:
        while not (cells[0].folder(output) / "log").exists():
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "effect_matrix.work"], capture_output=True)
        for process in children.stdout.split():
            os.kill(int(process), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run_cells(cells, set(), output, 1, ended.append)
    killer.join()
    assert [(end.cell.name, end.status) for end in ended] == [
        ("toy/pairs/stuck", "failed"),
        ("toy/warm_up/none", "failed"),
    ]
    assert "the process died (SIGKILL)" in read_cell(cells[0].folder(output))["error"]
    assert "KeyError" in read_cell(cells[2].folder(output))["error"]
    assert read_cell(cells[1].folder(output)) is None


def test_differences_are_paired_by_seed():
    """Warm-ups far apart, and a method that mends the same share of items in each."""
    shares = (20, 50, 80)
    before = ["1" * right + "0" * (100 - right) for right in shares]
    after = ["1" * (right + 8) + "0" * (92 - right) for right in shares]
    found = difference(before, after)
    assert found["difference"] == pytest.approx(0.08)
    # Each of 24 items is mended in one of three seeds: its mean is 1/3 or 0, so their variance is known.
    error = (24 * (1 / 3 - 0.08) ** 2 + 76 * 0.08**2) / 99 / 100
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.984 * error**0.5, rel=0.01)
    assert found["p_value"] < 0.001
    low, high = accuracy_interval(after)
    assert low < 0.2
    assert high > 0.9
    with pytest.raises(InputError, match="runs of 100, 100, 99, 100, 100, 100 items"):
        difference(before, [*after[:2], "1" * 99])


def test_one_seed_is_tested_exactly():
    found = difference(["0" * 10], ["1" * 6 + "0" * 4])
    assert found["p_value"] == pytest.approx(2 / 2**6)
    assert found["seeds"] == 1


def test_items_without_a_score_in_one_run_do_not_count():
    assert difference(["0-01"], ["11-1"])["difference"] == pytest.approx(1 / 2)


KEPT = {"paths": {"model": "first/student"}, "students/toy": {"path": "{model}"}}


@pytest.fixture
def kept_matrix(tmp_path):
    """A matrix whose student is a folder, which differs between machines, and whose methods build on each other."""

    def make(student: str, **changes):
        folder = tmp_path / student
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        more = {"methods/then": {"start": "ours", "pairs": "hard"}, **KEPT, **changes}
        return read_matrix(matrix_file(tmp_path, **more), {"model": str(folder)})

    return make


def test_records_are_taken_up_on_another_machine(kept_matrix, tmp_path):
    matrix, kept = kept_matrix("here"), tmp_path / "kept"
    cells = list_cells(matrix)
    by_name = {cell.name: cell for cell in cells}
    for cell in cells:
        result = {"dev": {"accuracy": 0.5}, "model": f"cells/{cell.name}/model"}
        write_cell(cell.folder(tmp_path / "one"), {"inputs": cell.inputs, "status": "done", "result": result})
        if "then" not in cell.name:
            keep(cell, tmp_path / "one", kept, matrix.paths)
    assert "here" not in (kept / "toy/warm_up/seed0.json").read_text(encoding="utf-8")

    other = kept_matrix("there")
    cells, output = list_cells(other), tmp_path / "two"
    taken, aside = take_up(cells, output, kept, other.paths, redo=False)
    assert len(taken) == len(cells) - 2
    assert aside == []
    left = settle(cells, output, redo=False)
    assert [cell.name for cell in left] == ["toy/tune/then_0", "toy/final/then_seed0"]
    # What the two need is built again: the final model of `ours`, its pairs and the warm-up; no record of a grid is.
    names = ["toy/warm_up/seed0", "toy/pairs/hard_seed0", "toy/final/ours_seed0"]
    again = with_missing(left, cells, output)
    assert [cell.name for cell in again if cell not in left] == [name for name in by_name if name in names]
    (output / "cells/toy/final/ours_seed0/model").mkdir()
    assert "toy/final/ours_seed0" not in [cell.name for cell in with_missing(left, cells, output)]

    # A cell that was built again keeps its first record, with the place of its new model.
    final = next(cell for cell in cells if cell.name == "toy/final/ours_seed0")
    built = {"dev": {"accuracy": 0.4}, "model": "cells/elsewhere"}
    write_cell(final.folder(output), {"inputs": final.inputs, "status": "done", "result": built})
    keep(final, output, kept, other.paths)
    assert read_cell(final.folder(output))["result"] == {"dev": {"accuracy": 0.5}, "model": "cells/elsewhere"}


def test_records_of_another_version_are_named_and_kept_aside(kept_matrix, tmp_path):
    matrix, kept = kept_matrix("here"), tmp_path / "kept"
    for cell in list_cells(matrix):
        write_cell(cell.folder(tmp_path / "one"), {"inputs": cell.inputs, "status": "done", "result": {}})
        keep(cell, tmp_path / "one", kept, matrix.paths)
    changed = kept_matrix("here", **{"methods/ours/options": {"preference_weight": 0.2}})
    cells, output = list_cells(changed), tmp_path / "two"
    with pytest.raises(InputError, match=r"ours_0\.json: `options.preference_weight` was None, is 0.2") as caught:
        take_up(cells, output, kept, changed.paths, redo=False)
    assert "--redo" in str(caught.value)
    taken, aside = take_up(cells, output, kept, changed.paths, redo=True)
    assert not [name for name in taken if "ours" in name or "then" in name]
    assert all(file.is_file() and file.parent.parent.parent == kept / "aside" for file in aside)
    assert not (kept / "toy/tune/ours_0.json").exists()
    (kept / "toy/warm_up/seed0.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"seed0\.json is not the record of a finished cell: it has no `inputs`"):
        take_up(cells, tmp_path / "three", kept, changed.paths, redo=False)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "effect.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_other_wrong_chains_stand_beside_the_same_right_ones(tmp_path):
    """Of the problems that both sets have, with the one's right and the other's wrong chain."""
    own = [
        {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": f"{row['chosen']} No: 0."}
        for row in ProceduralTeacher(FAMILIES).rows(20)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    changes = {
        "data/pairs/own": {"path": str(tmp_path / "own.jsonl")},
        "data/pairs/warm_up_part": {"of": "warm_up", "rows": 10},
        "data/pairs/on_policy": {"of": "warm_up_part", "wrong_chains_of": "own"},
        "methods/ours/pairs": "on_policy",
    }
    matrix = read_matrix(matrix_file(tmp_path, **changes))
    make_sets(matrix, tmp_path / "data")
    [cell] = [cell for cell in list_cells(matrix) if cell.name == "toy/pairs/on_policy_seed0"]
    assert run_cell(cell, tmp_path) == {"pairs": 10}
    part = load_dual_cots(tmp_path / "data/pairs_warm_up_part/rows")
    made = load_dual_cots(cell.folder(tmp_path) / "rows")
    assert made["chosen"] == part["chosen"]
    for row in made:
        assert row["rejected"][-1]["content"] == f"{row['chosen'][-1]['content']} No: 0."
        assert row["source"] == "on_policy"


@pytest.mark.slow
def test_a_small_matrix_runs_resumes_and_reports(tmp_path):
    output = tmp_path / "out"
    # A generated set that cannot be made: its cell fails, what needs it is left out, the rest goes on.
    made = {"generate": {"teacher": "procedural", "families": FAMILIES, "rows": 8, "seed": 5}}
    pairs = {
        "data/pairs/broken": {"generate": {"teacher": "nobody"}},
        "data/pairs/made": made,
        "data/pairs/control": {"of": "new", "problems_of": "hard"},
    }
    methods = {f"methods/{name}": {"pairs": name} for name in ("broken", "made", "control")}
    path = matrix_file(tmp_path, **pairs, **methods, **{"methods/control/control": "ours"})
    first = run(path, "--output", output)
    assert first.returncode == 1, first.stderr
    assert "failed: toy/pairs/broken_seed0" in first.stderr
    results = json.loads((output / "effect.json").read_text(encoding="utf-8"))
    assert list(results["cells"]["failed"]) == ["toy/pairs/broken_seed0"]
    methods = results["students"]["toy"]["methods"]
    assert list(methods) == ["warm_up", "sft", "ours", "made", "control"]
    assert methods["ours"]["steps"] == methods["sft"]["steps"] == 2
    assert len(methods["sft"]["grid"]) == 2
    assert methods["warm_up"]["held_out"]["displacement"] == 0
    assert {"low", "high", "holm_p_value"} <= methods["ours"]["differences"]["in_domain"].keys()
    assert json.loads(first.stdout.splitlines()[-1])["baseline"] == "sft"
    # The same pairs and options, so the same model: no difference to its control.
    beside = methods["control"]["control_differences"]["in_domain"]
    assert (beside["difference"], beside["seeds"]) == (0, 1)
    assert "control_differences" not in methods["ours"]
    assert "Difference to a control on the same pairs" in first.stdout
    page = (output / "effect.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;ours&lt;/b&gt;" in page
    assert "<b>ours" not in page
    assert "<svg" in page
    # The hardest half are those pairs that the warmed-up student is least sure of.
    made = {name: read_cell(output / f"cells/toy/pairs/{name}_seed0")["result"] for name in ("hard", "control")}
    assert made["hard"]["pairs"] == made["control"]["pairs"] == 8
    assert 0 < made["hard"]["most_confident"] < 1

    again = run(path, "--output", output)
    assert "17 cells, 14 done, 3 to do" in again.stdout  # the failed one, and the two that need it
    assert again.returncode == 1
    good = matrix_file(tmp_path)
    assert run(good, "--output", output, "--report").returncode == 0
    assert run(good, "--output", output).returncode == 0
    assert "0 to do" in run(good, "--output", output, "--check").stdout


@pytest.mark.slow
def test_an_interruption_ends_the_workers_too(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "effect.py"), str(matrix_file(tmp_path)), "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = output / "cells/toy/warm_up/seed0/log"
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert "resumes from the cells that are done" in process.stderr.read()
    for worker in map(int, workers.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
