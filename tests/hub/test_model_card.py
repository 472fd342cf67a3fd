"""The card: what it says, what it does not, and that nothing in it is markup of others."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml
from conftest import ROWS, byte_level_tokenizer, conversational
from datasets import Dataset
from markdown_it import MarkdownIt
from trainers import LORA, make_trainer

import edit_trl
from edit_trl import DualCoTConfig
from edit_trl.common.errors import InputError
from edit_trl.common.markdown import code, marked_block, text
from edit_trl.hub.card_facts import (
    OBJECTIVE_FIELDS,
    TRAINING_FIELDS,
    CardFacts,
    Evaluation,
    Example,
    StageFacts,
    pick_examples,
    plain_logs,
    plain_options,
    read_facts,
    write_facts,
)
from edit_trl.hub.curves import curves_svg
from edit_trl.hub.licence import licence_of, read_licence
from edit_trl.hub.model_card import dual_cot_model_card, include_earlier_stages, package_versions, write_card

LOG = [
    {"loss": 2.0, "logps/chosen": -2.0, "key_accuracy": 0.4, "step": 10, "epoch": 0.5, "grad_norm": 1.0},
    {"loss": 1.0, "logps/chosen": -1.0, "key_accuracy": 0.8, "step": 20},
    {"eval_loss": 1.5, "eval_key_accuracy": 0.7, "step": 20},
    {"train_runtime": 5.0, "step": 20},
]
EVIL = "</pre><script>alert(1)</script> **b** [x](https://evil) `c` | # h\n\n---\n# owned ![i](http://t)"
MINE = Evaluation(
    name="after",
    kind="evaluate",
    of_this_model=True,
    items=90,
    scores={"accuracy": 0.433, "unparsed": 0.1, "lenient_accuracy": None},
    intervals={"accuracy": [0.33, 0.54]},
    main="accuracy",
    tasks={"sorting": {"items": 45.0, "accuracy": 0.5}, "counting": {"items": 45.0, "accuracy": 0.367}},
)


def stage(tmp_path, **changes) -> StageFacts:
    config = DualCoTConfig(str(tmp_path), use_cpu=True, report_to="none", learning_rate=1e-4)
    facts = StageFacts(
        name="key_steps",
        base_model="someone/base",
        revision=None,
        adapter={"peft_type": "LORA", "r": 16, "target_modules": "k_proj, q_proj"},
        quantization="4-bit nf4",
        dataset="someone/dual-cots",
        rows={"train": "3 of 4 pairs kept; 1 dropped: no key token; key fraction 0.20"},
        objective=plain_options(config, OBJECTIVE_FIELDS),
        training=plain_options(config, TRAINING_FIELDS),
        logs=plain_logs(LOG),
        examples=[Example("Q?", "It is 3.", "It is 4.", [[6, 7]], [[6, 7]])],
        conversational=True,
        versions=package_versions(),
    )
    return dataclasses.replace(facts, **changes)


def card(tmp_path, form="adapter", evaluations=(), stages=None, metadata_of_base=None, **changes) -> str:
    facts = CardFacts(form, stages or [stage(tmp_path, **changes)])
    licence = licence_of(metadata_of_base or {"license": "apache-2.0"}, "its card", facts.base_model)
    made = dual_cot_model_card(
        facts,
        model_name="student",
        repo_id="ada/student",
        base_model=facts.base_model,
        licence=licence,
        evaluations=evaluations,
        has_curves=True,
    )
    return str(made)


def metadata(card_text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card_text, flags=re.DOTALL)[1])


# What it says


def test_metadata(tmp_path):
    data = metadata(card(tmp_path))
    assert data["base_model"] == "someone/base"
    assert data["base_model_relation"] == "adapter"
    assert data["datasets"] == ["someone/dual-cots"]
    assert data["license"] == "apache-2.0"
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-generation")
    assert data["tags"] == ["dual-cot", "edit_trl", "trl"]
    merged = metadata(card(tmp_path, form="merged"))
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")


def test_a_path_is_no_id(tmp_path):
    made = card(tmp_path, base_model=str(tmp_path / "base"), dataset=str(tmp_path / "rows.jsonl"))
    assert "base_model" not in metadata(made)
    assert "datasets" not in metadata(made)
    assert "| `key_steps` | `rows.jsonl` | train | 3 of 4 pairs kept" in made
    assert str(tmp_path) not in made
    assert "name yours as `base_model_name_or_path`" in made


def test_body(tmp_path):
    made = card(tmp_path)
    assert "An adapter for [`someone/base`](https://huggingface.co/someone/base)" in made
    assert "[`someone/dual-cots`](https://huggingface.co/datasets/someone/dual-cots)" in made
    assert "3 of 4 pairs kept; 1 dropped: no key token" in made
    assert "key tokens by α = 2, others by γ = 1 + λ = 0.1 times a sigmoid contrast" in made
    assert "| `chosen_key_weight` | `2.0` |" in made
    assert "| `preference_scope` | `fork` |" in made
    assert "| `lr_scheduler_type` | `linear` |" in made
    assert "the base model was held in 4-bit nf4" in made
    assert "| last log | `key_steps`, step 20 |" in made
    assert "| `key_accuracy` | 0.8000 |" in made
    assert "![Training curves: loss and key accuracy by step](training_curves.svg)" in made
    assert "It is <b>3</b>." in made
    assert f"edit_trl {edit_trl.__version__}, trl " in made
    assert "dai2025capture" in made
    assert "vonwerra2020trl" in made
    assert "Not measured yet" in made


def test_both_stages(tmp_path):
    warm_up = stage(tmp_path, name="warm_up", dataset="someone/chains", base_model="someone/first")
    weights = {"chosen_key_weight": 1.0, "chosen_context_weight": 1.0, "preference_weight": 0.0}
    warm_up = dataclasses.replace(warm_up, objective=warm_up.objective | weights)
    made = card(tmp_path, stages=[warm_up, stage(tmp_path)])
    assert metadata(made)["base_model"] == "someone/first"
    assert metadata(made)["datasets"] == ["someone/chains", "someone/dual-cots"]
    assert "| option | `warm_up` | `key_steps` |" in made
    assert "| `chosen_key_weight` | `1.0` | `2.0` |" in made
    assert "- `warm_up`: cross-entropy on the correct chain (α = γ = 1), as in supervised fine-tuning" in made
    assert ": `warm_up` and then `key_steps`." in made


def test_evaluations_in_tables_and_metadata(tmp_path):
    base = dataclasses.replace(MINE, name="before", of_this_model=False, scores={"accuracy": 0.011}, tasks={})
    suite = dataclasses.replace(
        MINE, kind="suite", main="key_preference", scores={"key_preference": 0.8}, intervals={}, tasks={}
    )
    made = card(tmp_path, evaluations=[base, MINE, suite])
    assert "| `edit-trl evaluate` | items | `accuracy` | `unparsed` |" in made
    assert made.index("| **after** | 90 | 0.433 (0.330 to 0.540) | 0.100 |") < made.index("| before | 90 | 0.011")
    assert "| `sorting` | 45 | 0.500 |" in made
    assert "| `edit-trl suite` | items | `key_preference` |" in made
    [index] = metadata(made)["model-index"]
    assert index["name"] == "student"
    metrics = {m["type"]: m for result in index["results"] for m in result["metrics"]}
    assert set(metrics) == {"accuracy", "unparsed", "key_preference"}  # not those of the model before
    assert metrics["accuracy"]["value"] == 0.433
    assert metrics["accuracy"]["args"] == {"items": 90, "confidence_interval_95": [0.33, 0.54]}


@pytest.mark.parametrize(
    ("form", "loader"), [("adapter", "AutoPeftModelForCausalLM"), ("model", "AutoModelForCausalLM")]
)
def test_its_code_is_python(tmp_path, form, loader):
    blocks = re.findall(r"```python\n(.*?)```", card(tmp_path, form=form), flags=re.DOTALL)
    assert len(blocks) == (3 if form == "adapter" else 2)
    for block in blocks:
        compile(block, "card", "exec")
    assert loader in blocks[0]
    assert loader in blocks[-1]
    assert "load_in_4bit=True" in blocks[-1]


# The licence


def test_the_licence_is_the_base_models(tmp_path):
    made = card(tmp_path, metadata_of_base={"license": "llama3.2"})
    assert metadata(made)["license"] == "llama3.2"
    assert "The licence, llama3.2, is that of the base model someone/base" in made


def test_an_unknown_licence(tmp_path):
    made = card(tmp_path, metadata_of_base={"tags": ["x"]})
    assert (metadata(made)["license"], metadata(made)["license_name"]) == ("other", "unknown")
    assert 'The licence is given as "other" because the base model someone/base states no licence' in made


def test_a_licence_that_forbids_sharing(tmp_path):
    made = card(tmp_path, metadata_of_base={"license": "cc-by-nc-nd-4.0"})
    assert (metadata(made)["license"], metadata(made)["license_name"]) == ("other", "cc-by-nc-nd-4.0")
    assert "does not allow sharing what was made from it" in made


def test_a_licence_of_its_own(tmp_path):
    stated = {"license": "other", "license_name": "own-1.0", "license_link": "LICENSE"}
    data = metadata(card(tmp_path, metadata_of_base=stated))
    assert data["license_name"] == "own-1.0"
    assert data["license_link"] == "https://huggingface.co/someone/base/blob/main/LICENSE"
    several = licence_of({"license": ["mit", "apache-2.0"]}, "its card", "x/y")
    assert (several.id, "several licences" in several.why) == ("other", True)


def test_the_licence_is_read_from_a_folder_and_from_the_hub(tmp_path, serve_hub):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    assert read_licence(str(tmp_path)).id == "mit"
    hub = serve_hub()
    hub.add("bob/base", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    assert read_licence("bob/base").id == "apache-2.0"
    gone = read_licence("bob/nobody")
    assert (gone.id, gone.name) == ("other", "unknown")
    assert "its card on the Hub could not be read" in gone.why
    broken = tmp_path / "broken"
    broken.mkdir()
    for header in ("license: [", "[" * 100_000):
        (broken / "README.md").write_text(f"---\n{header}\n---\n")
        assert read_licence(str(broken)).id == "other"
    assert read_licence("").id == "other"
    assert "any more" in read_licence("/gone/model").why


# Text of others


def test_text_of_others_is_no_markup(tmp_path):
    example = Example(EVIL, f"It is {EVIL}", f"It is {EVIL}", [[0, 2]], [[6, 20]])
    evil = dataclasses.replace(MINE, name=EVIL, tasks={EVIL: {"items": 1.0}, "b": {"items": 1.0}})
    made = card(
        tmp_path,
        evaluations=[evil],
        name=EVIL,
        rows={EVIL: EVIL},
        dataset=EVIL,
        base_model=EVIL,
        quantization=EVIL,
        examples=[example],
        metadata_of_base={"license": EVIL},
    )
    # As a page shows it: rich brings this renderer, and raw HTML is let through as on the Hub.
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(made.split("\n---\n", 1)[1])
    root = HTMLTags()
    root.feed(page)
    assert root.sources == ["training_curves.svg"]
    assert "script" not in root.tags
    assert root.tags["h1"] == 1
    assert root.tags["pre"] >= 3
    assert not [link for link in root.links if "evil" in link]
    assert metadata(made)["license"] == "other"
    assert "owned" in metadata(made)["model-index"][0]["results"][0]["dataset"]["name"]


class HTMLTags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.sources = Counter(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.links += [value for name, value in attrs if name == "href"]
        self.sources += [value for name, value in attrs if name == "src"]


def test_escapes():
    assert text("a|b <i>\n*c*") == "a&#124;b &#60;i&#62; &#42;c&#42;"
    assert code("a`b|c\nd") == "`a'b¦c d`"
    assert marked_block("1 < 2\x1b[31m\u202e", [[0, 1]]) == "<pre>\n<b>1</b> &lt; 2[31m</pre>"


# The picture


def test_curves_of_two_stages():
    picture = curves_svg([("warm_up", LOG), ("<b>", LOG)])
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "img"
    labels = [root.get("aria-labelledby")]
    assert labels == ["title desc"]
    name = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find("svg:desc", name).text == "loss from 2 to 1; key accuracy from 0.4 to 0.8"
    lines = root.findall("svg:polyline", name)
    assert len(lines) == 8  # 2 panels, 2 stages, trained and evaluated
    assert sum(line.get("stroke-dasharray") is not None for line in lines) == 4
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "40" in texts  # the steps of both
    assert "<b>" in texts
    assert len(picture) < 20_000


def test_curves_of_many_steps_are_small_and_of_none_are_none():
    many = [{"loss": float(n % 7), "step": n} for n in range(1, 20_001)]
    assert len(curves_svg([("run", many)])) < 10_000
    assert curves_svg([("run", [{"train_runtime": 1.0, "step": 1}])]) is None
    assert curves_svg([("run", [{"loss": float("nan"), "step": 1}])]) is None


# Facts and examples


def test_facts_are_read_as_they_were_written(tmp_path):
    facts = CardFacts("adapter", [stage(tmp_path)])
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts
    (tmp_path / "card.json").write_text('{"stages": [{"examples": [1]}]}')
    with pytest.raises(InputError, match=r"card\.json cannot be read"):
        read_facts(tmp_path)


SPANS = {"chosen_spans": [[0]], "rejected_spans": []}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": ["a"]}, ".name: "),
        ({"base_model": 5}, ".base_model: "),
        ({"rows": [1]}, ".rows: "),
        ({"objective": {"chosen_key_weight": "many"}}, ".objective['chosen_key_weight']: "),
        ({"training": "x"}, ".training: "),
        ({"processes": "two"}, ".processes: "),
        ({"logs": [{"loss": 1.0}]}, ".logs[0]: there is no step"),
        ({"logs": [{"step": 1, "loss": "x"}]}, ".logs[0]['loss']: "),
        ({"versions": {"trl": 5}}, ".versions['trl']: "),
        (
            {"examples": [{"prompt": "", "chosen": "", "rejected": "", "chosen_spans": [[0]], "rejected_spans": []}]},
            ".examples[0].chosen_spans[0]: ",
        ),
    ],
)
def test_facts_of_other_types_are_refused_with_their_place(tmp_path, changes, place):
    write_facts(tmp_path, CardFacts("adapter", [stage(tmp_path)]))
    content = json.loads((tmp_path / "card.json").read_text())
    content["stages"][0].update(changes)
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"card\.json cannot be read: stages\[0\]{re.escape(place)}"):
        read_facts(tmp_path)


def test_facts_without_stages_and_of_an_unknown_form_are_refused(tmp_path):
    for content, problem in (
        ('{"form": "model", "stages": []}', "no stage"),
        ('{"form": "magic", "stages": []}', "magic"),
    ):
        (tmp_path / "card.json").write_text(content)
        with pytest.raises(InputError, match=problem):
            read_facts(tmp_path)


def test_examples_are_short_and_of_different_tasks():
    rows = [row | {"task": name} for row, name in zip(ROWS, "aabc", strict=True)]
    alone = rows[0] | {"rejected": []}
    picked = pick_examples(Dataset.from_list(rows), byte_level_tokenizer(), "words")
    assert len(picked) == 3
    assert {example.prompt for example in picked} == {row["prompt"].strip() for row in rows[1:]}
    start, end = picked[0].chosen_spans[0]
    assert picked[0].chosen[start:end] == "7"
    talk = [conversational(row) for row in rows[:2]]
    assert pick_examples(Dataset.from_list(talk), byte_level_tokenizer(), "edit", count=1)[0].prompt
    assert pick_examples(Dataset.from_list([alone]), byte_level_tokenizer(), "words") == []


def test_examples_of_chains_with_thoughts_and_turns():
    turns = [{"role": "assistant", "content": None, "reasoning_content": "Hm."}, {"role": "tool", "content": "12"}]
    row = conversational(ROWS[1])
    row["chosen"][0]["reasoning_content"] = "I take them away."
    row["rejected"][0]["reasoning_content"] = "I add them."
    row["prompt"] = [*row["prompt"], *turns]
    (example,) = pick_examples(Dataset.from_list([row]), byte_level_tokenizer(), "words")
    assert example.prompt == f"{ROWS[1]['prompt'].strip()}\n\n<think>\nHm.\n</think>\n\n12"
    assert example.chosen == f"<think>\nI take them away.\n</think>\n\n{ROWS[1]['chosen']}"
    assert any(example.chosen[start:end] == "take" for start, end in example.chosen_spans)


# Written by the trainer


def test_the_trainers_card_loads_what_it_speaks_of(tmp_path, saved_student):
    """The adapter's code, and then the merged one's, run as they stand against the saved folder."""
    rows = [conversational(row) for row in ROWS]
    trainer = make_trainer(
        tmp_path, byte_level_tokenizer(), str(saved_student), rows, LORA, max_steps=2, logging_steps=1
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset_name=str(tmp_path / "rows.jsonl"))
    run = tmp_path / "run"
    write_card(run, read_facts(run), repo_id="run")
    readme = (run / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[:2]
    blocks.append('from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained("merged")')
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ElementTree.parse(run / "training_curves.svg")


def test_earlier_stages_are_included_once(tmp_path):
    for name in ("warm_up", "key_steps"):
        (tmp_path / name).mkdir()
        write_facts(tmp_path / name, CardFacts("adapter", [stage(tmp_path, name=name)]))
    for _ in range(2):
        include_earlier_stages(tmp_path / "key_steps", tmp_path / "warm_up")
    assert [s.name for s in read_facts(tmp_path / "key_steps").stages] == ["warm_up", "key_steps"]
    include_earlier_stages(tmp_path / "warm_up", tmp_path / "student")  # nothing before it
    assert len(read_facts(tmp_path / "warm_up").stages) == 1
