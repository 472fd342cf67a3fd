"""The report's text and data; what a browser makes of it is in test_report_browser."""

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from conftest import ROWS, conversational
from report_data import (
    evaluate_item,
    evaluate_items,
    read_page,
    suite_item,
    suite_items,
    unpacked,
    write_run,
    write_training,
)

from edit_trl import ProceduralTeacher, generate_dual_cots
from edit_trl.common.errors import InputError
from edit_trl.data.pair_statistics import locate_pairs
from edit_trl.evaluation.report import page, write_pairs, write_report
from edit_trl.evaluation.report.items import Detail, packed_tokens, page_items
from edit_trl.evaluation.report.page import SCRIPTS, escaped_json
from edit_trl.evaluation.report.summary import SCORE_LABELS, flips, group_scores
from edit_trl.evaluation.report.training_history import read_training_run
from edit_trl.evaluation.runs.scores import SCORES
from edit_trl.evaluation.statistics import bootstrap_interval

HOSTILE = "</script><script>window.hacked=1</script><!-- <img src=x onerror=hacked=1> \"'`${}& \u2028\u05d0\u202e"

TASKS = [{**row, "task": "numbers" if row["answer"].isdigit() else "logic", "mistake": None} for row in ROWS]


class Outline(HTMLParser):
    """The elements of a page and the text of each script and style."""

    def __init__(self):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._within = None

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = self.texts.get(tag)
        if self._within is not None:
            self._within.append("")

    def handle_endtag(self, tag):
        self._within = None

    def handle_data(self, data):
        if self._within is not None:
            self._within[-1] += data


def outline(path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text())
    return parser


def test_it_needs_nothing_else(tmp_path):
    run = write_run(tmp_path / "run", "evaluate", "student", evaluate_items(TASKS, 1.0))
    found = outline(write_report([run], tmp_path / "report.html"))
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 2
    assert tags.count("style") == 1
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(tags)
    assert not [attrs for _, attrs in found.elements if "src" in attrs]
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    code = found.texts["script"][1] + found.texts["style"][0]
    addresses = set(re.findall(r"https?://[^\s\"')]+", code))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, never loaded
    assert not re.search(r"@import|url\(", found.texts["style"][0])


def test_only_its_own_script_and_style_may_run(tmp_path):
    run = write_run(tmp_path / "run", "evaluate", "student", evaluate_items(TASKS, 1.0))
    found = outline(write_report([run], tmp_path / "report.html"))
    [policy] = [a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    data, script = found.texts["script"]
    assert json.loads(data)["runs"]
    [style] = found.texts["style"]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (script, style)]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_the_scripts_make_no_html_of_text():
    folder = files(page.__package__)
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".js"))
    assert names == sorted(SCRIPTS)
    assert len(names) == 6
    text = "\n".join((folder / name).read_text() for name in names)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert word not in text, word
    assert not re.search(r"\.style\b|style:", text)  # the policy forbids style attributes
    assert max(len(line) for line in text.splitlines()) < 160


@pytest.mark.parametrize(
    "text", [HOSTILE, "<", "]]>", "<!--<script>", "\ud800 alone", "\x00\x1b", "x" * 50_000, "מה \u202e?", "😀"]
)
def test_any_text_is_data(tmp_path, text):
    row = {"task": text, "id": text, "prompt": text, "answer": "3", "mistake": [text], "source": text}
    row |= {"chosen": text + " 1. Therefore, the answer is 3.", "rejected": text + " 2."}
    items = json.loads(json.dumps([evaluate_item(row, [text + " Therefore, the answer is 3."])]))
    if "\ud800" in text:
        for item in items:  # cannot be written to items.jsonl, but escaped it can be read from there
            assert escaped_json(item).isascii()
        return
    runs = [
        write_run(tmp_path / "a", "evaluate", text[:100], items),
        write_run(tmp_path / "b", "suite", "suite", [suite_item(row, True, random.Random(0))]),
    ]
    path = write_report(runs, tmp_path / "report.html", title=text)
    found = outline(path)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in outline(_plain(tmp_path)).elements]
    raw = path.read_text().split('id="data">')[1].split("</script>")[0]
    assert not set("<>&") & set(raw)
    assert raw.isascii()
    data, [item] = read_page(path)
    assert data["title"] == text
    assert item["prompt"] == text
    assert item["chosen"] == row["chosen"]
    assert item["runs"][0][1]["samples"][0]["response"].startswith(text)


def _plain(tmp_path):
    run = write_run(tmp_path / "plain", "evaluate", "student", evaluate_items(TASKS, 1.0))
    return write_report([run], tmp_path / "plain.html")


def test_a_question_of_several_runs_is_one_item(tmp_path):
    rows = [conversational(row) for row in TASKS]
    items = evaluate_items(rows, 1.0)
    other = evaluate_items(rows, 0.0)
    other[0] = {**other[0], "prompt": [{"role": "user", "content": "Something else?"}]}
    runs = [
        write_run(tmp_path / "a", "evaluate", "a", items),
        write_run(tmp_path / "b", "evaluate", "b", other),
        write_run(tmp_path / "c", "suite", "a", suite_items(rows, 1.0)),
    ]
    found, tokens = page_items(runs, Detail())
    assert [dict(item["runs"])[2]["tokens"] for item in found[:4]] == [0, 1, 2, 3]
    assert len(tokens) == 4
    assert len(found) == 5
    by_prompt = {json.dumps(item["prompt"]): item for item in found}
    assert [run for run, _ in by_prompt[json.dumps(rows[0]["prompt"])]["runs"]] == [0, 2]
    assert [run for run, _ in by_prompt[json.dumps(rows[1]["prompt"])]["runs"]] == [0, 1, 2]
    [alone] = [item for item in found if "Something" in json.dumps(item["prompt"])]
    assert [run for run, _ in alone["runs"]] == [1]
    assert "chosen" not in alone
    assert by_prompt[json.dumps(rows[1]["prompt"])]["chosen"] == TASKS[1]["chosen"]


def test_suites_of_other_chains_are_other_items(tmp_path):
    changed = [{**row, "rejected": row["rejected"] + " No."} for row in TASKS]
    runs = [
        write_run(tmp_path / "a", "suite", "a", suite_items(TASKS, 1.0)),
        write_run(tmp_path / "b", "suite", "b", suite_items(changed, 1.0)),
    ]
    items, _ = page_items(runs, Detail())
    assert [len(item["runs"]) for item in items] == [1] * 8
    assert flips(["suite", "suite"], items) == []


def test_tokens_are_packed():
    tokens = [[0, 3, -0.014], [3, 7, -2.0], [8, 9, -0.5], [8, 9, -1.5], [9, 12, -math.inf], [0, 0, -0.001]]
    assert packed_tokens(tokens) == {
        "lengths": [3, 4, 1, 1, 3, 0],
        "starts": [[2, 8], [3, 8], [5, 0]],
        "logps": [1, 200, 50, 150, None, 0],
    }


def test_flips_are_counted_and_tested(tmp_path):
    rows = [{**TASKS[0], "id": str(n), "prompt": f"{n}?", "task": "ab"[n % 2]} for n in range(10)]
    right, wrong = rows[0]["chosen"], rows[0]["rejected"]
    before = [evaluate_item(row, [right if n < 4 else wrong]) for n, row in enumerate(rows)]
    after = [evaluate_item(row, [right if n != 0 else wrong]) for n, row in enumerate(rows)]
    runs = [
        write_run(tmp_path / "a", "evaluate", "a", before),
        write_run(tmp_path / "b", "evaluate", "b", after),
        write_run(tmp_path / "c", "suite", "c", suite_items(rows, 1.0)),
    ]
    items, _ = page_items(runs, Detail())
    [pair] = flips(["evaluate", "evaluate", "suite"], items)
    # 6 fixed and 1 broken: 2 * (P(0 of 7) + P(1 of 7)) = 2 * 8 / 128.
    assert (pair["a"], pair["b"], pair["items"]) == (0, 1, 10)
    assert pair["p_value"] == pytest.approx(0.125)
    value, low, high = pair["difference"]
    assert value == pytest.approx(0.5)
    assert -1 <= low < value < high <= 1


def test_groups_have_intervals(tmp_path):
    rows = [{**TASKS[0], "id": str(n), "prompt": f"{n}?", "mistake": ["x", "y"][: 1 + n % 2]} for n in range(6)]
    run = write_run(tmp_path / "a", "evaluate", "a", evaluate_items(rows, 1.0))
    groups = group_scores(run)
    [[name, count, scores]] = groups["task"]
    assert (name, count) == ("numbers", 6)
    right = [float(item["verdict"] == "correct") for item in run.items]
    interval = bootstrap_interval(right)
    assert scores["accuracy"] == pytest.approx([sum(right) / 6, interval.low, interval.high], abs=1e-4)
    assert scores["cut_off"][0] == pytest.approx(sum(item["cut_off"] for item in run.items) / 6, abs=1e-4)
    assert [(name, count) for name, count, _ in groups["mistake"]] == [("x", 6), ("y", 3)]
    assert groups["source"] == []
    suite = write_run(tmp_path / "b", "suite", "b", suite_items(rows, 1.0))
    value, low, high = group_scores(suite)["task"][0][2]["margin"]
    assert value == pytest.approx(suite.record.scores["margin"], abs=1e-3)
    assert low < value < high


def test_every_score_has_a_label():
    assert set(SCORE_LABELS) == {name for scores in SCORES.values() for name in scores}


def test_values_that_are_no_numbers(tmp_path):
    [item] = suite_items(TASKS[:1], 1.0)
    item["tokens"]["chosen"][2][2] = -math.inf
    item["logps"]["chosen"] = item["margin"] = math.nan
    run = write_run(tmp_path / "a", "suite", "a", suite_items(TASKS[:1], 1.0))
    run.items[0] = item
    data, [shown] = read_page(write_report([run], tmp_path / "report.html"))
    outcome = shown["runs"][0][1]
    assert unpacked(data["tokens"])[outcome["tokens"]]["chosen"]["logps"][2] is None
    assert outcome["margin"] is None
    assert outcome["logps"]["chosen"] is None


def test_runs_of_one_name_are_told_apart(tmp_path):
    items = evaluate_items(TASKS, 1.0)
    runs = [write_run(tmp_path / name, "evaluate", "student", items) for name in "ab"]
    runs.append(write_run(tmp_path / "c", "suite", "student", suite_items(TASKS, 1.0)))
    data, _ = read_page(write_report(runs, tmp_path / "report.html"))
    assert [run["name"] for run in data["runs"]] == [
        f"student ({tmp_path / 'a'})",
        f"student ({tmp_path / 'b'})",
        "student",
    ]


def long_rows(count: int) -> list[dict]:
    """Rows with chains about as long as those of BIG-Bench Hard, some 220 tokens."""
    made = [dict(row) for row in generate_dual_cots(ProceduralTeacher(difficulty=3), 100, conversational=False)]
    rows = []
    for number in range(count):
        parts = [made[(number * step + step) % len(made)] for step in (1, 3, 7, 11)]
        joined = {name: " ".join(part[name] for part in parts) for name in ("prompt", "chosen", "rejected")}
        rows.append({**parts[-1], **joined, "id": str(number)})
    return rows


def test_two_thousand_items_are_a_small_page(tmp_path):
    rows = long_rows(250)

    def eightfold(items):  # too far apart for the compression to see
        return [{**item, "id": f"{item['id']}/{number}"} for number in range(8) for item in items]

    runs = [
        write_run(tmp_path / "a", "suite", "student", eightfold(suite_items(rows, 0.7))),
        write_run(tmp_path / "b", "evaluate", "student", eightfold(evaluate_items(rows, 0.7))),
    ]
    tokens = [len(item["tokens"][side]) for item in runs[0].items for side in ("chosen", "rejected")]
    assert sum(tokens) / len(tokens) > 120
    path = write_report(runs, tmp_path / "report.html")
    assert path.stat().st_size < page.MOST_BYTES == 5_000_000
    data, items = read_page(path)
    assert data["notice"] is None
    assert len(items) == 2000
    assert all(len(item["runs"]) == 2 for item in items)


def test_what_does_not_fit_is_left_out_and_said(tmp_path, monkeypatch):
    runs = [
        write_run(tmp_path / "a", "suite", "a", suite_items(TASKS, 1.0)),
        write_run(tmp_path / "b", "evaluate", "a", evaluate_items(TASKS, 0.5, samples=8)),
    ]
    size = write_report(runs, tmp_path / "all.html").stat().st_size
    monkeypatch.setattr(page, "MOST_BYTES", size - 1)
    data, items = read_page(write_report(runs, tmp_path / "fewer.html"))
    assert "one response" in data["notice"]
    assert "log-probabilities" not in data["notice"]
    outcomes = [dict(item["runs"]) for item in items]
    assert all(len(outcome[1]["samples"]) == 1 and outcome[1]["of"] == 8 for outcome in outcomes)
    assert all(outcome[1]["samples"][0].get("value") == outcome[1]["value"] for outcome in outcomes)
    assert all("tokens" in outcome[0] for outcome in outcomes)
    monkeypatch.setattr(page, "MOST_BYTES", 10)
    data, items = read_page(write_report(runs, tmp_path / "least.html"))
    assert "no log-probabilities of tokens" in data["notice"]
    assert not any("tokens" in dict(item["runs"])[0] for item in items)


def test_learning_curves(tmp_path):
    write_training(tmp_path / "train")
    training = read_training_run(tmp_path / "train")
    data, items = read_page(write_report([], tmp_path / "report.html", [training]))
    assert items == []
    [run] = data["training"]
    assert run["name"] == "train"
    assert [stage["name"] for stage in run["stages"]] == ["warm_up", "key_steps"]
    charts = dict(run["stages"][1]["charts"])
    curves = {(name, held_out): points for name, held_out, points in charts["Likelihood per token (nats)"]}
    assert set(curves) == {
        *((f"logps/{side}_{part}", False) for side in ("chosen", "rejected") for part in ("key", "context")),
        ("logps/chosen_key", True),
    }
    assert [step for step, _ in curves["logps/chosen_key", False]] == list(range(5, 61, 5))
    assert [step for step, _ in curves["logps/chosen_key", True]] == [20, 40, 60]
    assert charts["Suite during training (share)"][0][0] == "suite/key_preference"


def test_long_curves_are_thinned_and_odd_values_left_out(tmp_path):
    log = [{"step": n, "loss": float(n)} for n in range(5001)] + [{"step": 5001, "loss": math.inf}]
    log += [{"step": 5002, "loss": "high"}, {"loss": 1.0}, {"step": 5003, "train_runtime": 3.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    data, _ = read_page(write_report([], tmp_path / "report.html", [read_training_run(tmp_path)]))
    [[_, [[_, _, points]]]] = data["training"][0]["stages"][0]["charts"]
    assert 200 < len(points) <= 301
    assert points[0] == [0, 0.0]
    assert points[-1] == [5001, None]


def test_an_interrupted_training_run_is_read_from_its_last_checkpoint(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        log = {"log_history": [{"step": step, "loss": 1.0}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(log))
    (tmp_path / "run.json").write_text('{"finished": null}')
    [stage] = read_training_run(tmp_path).stages
    assert stage.finished is None
    assert stage.log[-1]["step"] == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is not a list of logged steps"),
        ("[" * 100_000, "nested too deeply"),
        ('{"log_history": 3}', "is not a list of logged steps"),
        ('{"log_history": []}', "has not logged anything yet"),
    ],
)
def test_training_files_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_training_run(tmp_path)


def test_pairs_as_a_page(tmp_path):
    rows = [{**TASKS[0], "rejected": [TASKS[0]["rejected"], "No idea."]}, TASKS[1], {**TASKS[2], "rejected": []}]
    pairs = locate_pairs(rows)
    path = write_pairs(pairs, tmp_path / "pairs.html", title="rows.jsonl", method="words")
    data, items = read_page(path)
    [run] = data["runs"]
    assert (run["kind"], run["name"], run["items"]) == ("pairs", "rows.jsonl", 4)
    assert ["Rows", "3"] in run["facts"]
    assert ["Pairs", "3"] in run["facts"]
    assert [name for name, _, _ in run["groups"]["task"]] == ["numbers", "logic"]
    assert len(items) == 4
    assert items[0]["chosen_spans"]
    assert "rejected" not in items[3]
    assert ["Row", "3"] in items[3]["facts"]
    with pytest.raises(InputError, match="nothing to show"):
        write_pairs([], tmp_path / "x.html", title="x", method="words")


def test_thoughts_are_marked_and_turns_without_a_text_shown(tmp_path):
    turns = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]},
        {"role": "tool", "content": "4"},
    ]
    row = TASKS[0] | {"prompt": turns, "answer": "4"}
    responses = ["<think>\nIs it 5?\n</think>\n\nThe answer is 4.", "<think>\nIs it 4?", "The answer is 4."]
    run = write_run(tmp_path / "run", "evaluate", "run", [evaluate_item(row, responses)])
    _, (item,) = read_page(write_report([run], tmp_path / "report.html"))
    samples = item["runs"][0][1]["samples"]
    assert [sample.get("thoughts") for sample in samples] == [responses[0].index("\n\nThe"), len(responses[1]), None]
    assert [turn["content"] for turn in item["prompt"]] == [
        "What is 2 + 2?",
        '{"name": "add", "arguments": {"a": 2}}',
        "4",
    ]
    chains = {
        side: [{"role": "assistant", "content": text, "reasoning_content": "Hm."}]
        for side, text in (("chosen", "4"), ("rejected", "5"))
    }
    pairs = locate_pairs([row | chains])
    _, (item,) = read_page(write_pairs(pairs, tmp_path / "pairs.html", title="x", method="words"))
    assert item["chosen"][: item["chosen_thoughts"]] == "<think>\nHm.\n</think>"
    assert item["prompt"][1]["content"].startswith('{"name"')


def test_where_a_page_may_be_written(tmp_path):
    run = write_run(tmp_path / "run", "evaluate", "student", evaluate_items(TASKS, 1.0))
    path = write_report([run], tmp_path / "new" / "folder" / "report.html")
    assert path.is_file()
    before = path.read_bytes()
    assert write_report([run], path).read_bytes() == before  # nothing in it depends on when it was made
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html"]
    other = tmp_path / "thesis.html"
    other.write_text("<!DOCTYPE html><p>mine")
    with pytest.raises(InputError, match="exists and is not a report"):
        write_report([run], other)
    assert other.read_text().endswith("mine")
    with pytest.raises(InputError, match="is a folder; name a file"):
        write_report([run], tmp_path)
    with pytest.raises(InputError, match="is a file, not a folder"):
        write_report([run], other / "report.html")
    with pytest.raises(InputError, match="nothing to report"):
        write_report([], tmp_path / "empty.html")
