"""lm-evaluation-harness on tiny models and tasks of local files."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import lm_eval.tasks.manager
import numpy as np
import pytest
import torch
import yaml
from conftest import byte_level_tokenizer, tiny_llama
from peft import LoraConfig, get_peft_model
from thinking_models import taught, thinking_tokenizer
from transformers import LlamaForCausalLM

from edit_trl.common.errors import InputError
from edit_trl.evaluation.harness import evaluate_with_harness, format_harness, load_harness_tasks, write_harness

QUESTIONS = [f"What is {n} + {n}?" for n in range(6)]


def choices(n: int) -> list[str]:
    return [str(2 * n), f"{2 * n + 1}, and not 7"]


def greedy(model, tokenizer, question: str) -> str:
    """Eight tokens, up to the first full stop, as the task below asks for."""
    inputs = tokenizer(f"{question}\n", return_tensors="pt")
    output = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def likelier_choice(model, tokenizer, n: int) -> int:
    """By hand: the choice of the higher summed log-probability after the question."""
    sums = []
    for choice in choices(n):
        start = tokenizer(f"{QUESTIONS[n]}\n")["input_ids"]
        ids = tokenizer(f"{QUESTIONS[n]}\n {choice}")["input_ids"]
        logps = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(logps[at - 1, ids[at]].item() for at in range(len(start), len(ids))))
    return int(np.argmax(sums))


@pytest.fixture
def tasks(tmp_path, model, tokenizer) -> Path:
    """Two tasks of which the model gets four and two of six right."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = []
    for n, question in enumerate(QUESTIONS):
        likelier = likelier_choice(model, tokenizer, n)
        written = greedy(model, tokenizer, question).split(".")[0]
        rows.append(
            {
                "question": question,
                "choices": choices(n),
                "gold": likelier if n < 4 else 1 - likelier,
                "answer": written.strip() if n % 3 == 0 else "none",
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}\n",
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    write_task(
        folder / "own_choice.yaml",
        shared,
        task="own_choice",
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
        metric_list=[{"metric": "acc", **mean}],
        metadata={"version": 2.0},
    )
    write_task(
        folder / "own_answer.yaml",
        shared,
        task="own_answer",
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 8},
        filter_list=[{"name": "strip", "filter": [{"function": "remove_whitespace"}]}],
        metric_list=[{"metric": "exact_match", **mean}],
        metadata={"version": 1.0},
    )
    return folder


def write_task(path: Path, shared: dict, **values) -> None:
    path.write_text(yaml.safe_dump(shared | values))


def test_scores_are_those_of_the_model(tmp_path, tasks, model, tokenizer):
    results = evaluate_with_harness(model, tokenizer, ["own_choice", "own_answer"], include_path=tasks, batch_size=4)
    choice, answer = results["tasks"]["own_choice"], results["tasks"]["own_answer"]
    assert choice["scores"] == {"acc": pytest.approx(4 / 6)}
    # The standard error of a mean, of four ones and two zeros.
    assert choice["stderr"] == {"acc": pytest.approx((4 / 6 * 2 / 6 / 5) ** 0.5)}
    assert (choice["version"], choice["items"], choice["num_fewshot"]) == (2.0, 6, 0)
    assert answer["scores"] == {"exact_match,strip": pytest.approx(2 / 6)}
    assert results["groups"] == {}
    assert results["settings"]["tasks"] == ["own_choice", "own_answer"]

    path = write_harness(results, tmp_path / "run")
    assert path == tmp_path / "run" / "harness.json"
    assert json.loads(path.read_text()) == results
    assert [line.split() for line in format_harness(results).splitlines()] == [
        ["version", "items", "metric", "score", "+/-"],
        ["own_choice", "2.0", "6", "acc", "0.6667", "0.2108"],
        ["own_answer", "1.0", "6", "exact_match,strip", "0.3333", "0.2108"],
    ]


def test_limit_examples_and_a_second_use_of_loaded_tasks(tasks, model, tokenizer):
    path = tasks / "own_choice.yaml"
    values = yaml.safe_load(path.read_text())
    values["dataset_kwargs"]["data_files"]["train"] = values["dataset_kwargs"]["data_files"]["test"]
    path.write_text(yaml.safe_dump(values | {"fewshot_split": "train"}))
    loaded = load_harness_tasks(["own_choice"], tasks)
    first = evaluate_with_harness(model, tokenizer, loaded, limit=3)
    assert first["tasks"]["own_choice"]["scores"] == {"acc": 1.0}
    assert first["tasks"]["own_choice"]["items"] == 3
    shown = evaluate_with_harness(model, tokenizer, loaded, limit=3, num_fewshot=0)
    assert shown == first | {"settings": first["settings"] | {"num_fewshot": 0}}
    fresh = load_harness_tasks(["own_choice"], tasks)
    two = evaluate_with_harness(model, tokenizer, fresh, num_fewshot=2, apply_chat_template=True)
    assert two["tasks"]["own_choice"]["num_fewshot"] == 2
    assert two["tasks"]["own_choice"]["items"] == 6


@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_those_of_the_harness_itself(tasks, model, tokenizer, chat):
    """With worked examples drawn at random, a limit and sampling."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for name in ("own_choice", "own_answer"):
        path = tasks / f"{name}.yaml"
        values = yaml.safe_load(path.read_text())
        values["dataset_kwargs"]["data_files"]["train"] = values["dataset_kwargs"]["data_files"]["test"]
        values |= {"fewshot_split": "train", "fewshot_config": {"sampler": "default"}}
        path.write_text(yaml.safe_dump(values))
    own = evaluate_with_harness(
        model,
        tokenizer,
        ["own_choice", "own_answer"],
        include_path=tasks,
        num_fewshot=2,
        limit=5,
        apply_chat_template=chat,
        seed=3,
    )
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        tasks=["own_choice", "own_answer"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        num_fewshot=2,
        limit=5,
        apply_chat_template=chat,
        random_seed=3,
        numpy_random_seed=3,
        torch_random_seed=3,
        fewshot_random_seed=3,
    )["results"]
    assert own["tasks"]["own_choice"]["scores"]["acc"] == theirs["own_choice"]["acc,none"]
    answer = own["tasks"]["own_answer"]
    assert answer["scores"]["exact_match,strip"] == theirs["own_answer"]["exact_match,strip"]
    assert answer["stderr"]["exact_match,strip"] == theirs["own_answer"]["exact_match_stderr,strip"]


class Snapshot:
    """All that must be as it was."""

    def __init__(self, model, tokenizer):
        self.modes = [module.training for module in model.modules()]
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.random = random.getstate()
        self.numpy = np.random.get_state()
        self.torch = torch.random.get_rng_state()
        self.threads = torch.get_num_threads()
        self.settings = model.generation_config.to_dict()
        self.tokenizer = (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer))

    def assert_same(self, model, tokenizer):
        now = Snapshot(model, tokenizer)
        assert now.modes == self.modes
        assert now.weights.keys() == self.weights.keys()
        assert all(torch.equal(value, now.weights[name]) for name, value in self.weights.items())
        assert now.random == self.random
        assert all(np.array_equal(a, b) for a, b in zip(now.numpy, self.numpy, strict=True))
        assert torch.equal(now.torch, self.torch)
        assert (now.threads, now.settings, now.tokenizer) == (self.threads, self.settings, self.tokenizer)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_disturbed(tasks, model, tokenizer, fails):
    if fails:  # in the middle, after the multiple choice
        path = tasks / "own_answer.yaml"
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(values | {"generation_kwargs": {"until": [], "max_gen_toks": 4096}}))
    tokenizer.pad_token = None
    model.train()
    model.model.layers[0].eval()
    before = Snapshot(model, tokenizer)
    names = ["own_choice", "own_answer"]
    if fails:
        with pytest.raises(AssertionError, match="max tokens to generate"):
            evaluate_with_harness(model, tokenizer, names, include_path=tasks)
    else:
        evaluate_with_harness(model, tokenizer, names, include_path=tasks)
    before.assert_same(model, tokenizer)


def test_an_adapter_and_its_own_head(tasks, tokenizer):
    """Of a model with tied weights, which the harness ties anew: the adapter's head must stay its own."""
    plain = tiny_llama()
    plain.config.tie_word_embeddings = True
    base = LlamaForCausalLM(plain.config)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], r=2))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                value.normal_()
    model.train()
    before = Snapshot(model, tokenizer)
    ids = torch.tensor([tokenizer(QUESTIONS[0])["input_ids"]])
    logits = model(ids).logits.detach()
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    results = evaluate_with_harness(model, tokenizer, ["own_choice"], include_path=tasks)
    right = [
        likelier_choice(model, tokenizer, n) == json.loads(line)["gold"]
        for n, line in enumerate((tasks / "rows.jsonl").read_text().splitlines())
    ]
    assert results["tasks"]["own_choice"]["scores"]["acc"] == pytest.approx(np.mean(right))
    model.train()
    before.assert_same(model, tokenizer)
    assert torch.equal(model(ids).logits, logits)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == trainable


@pytest.fixture
def few_tasks(tmp_path, monkeypatch) -> None:
    """The harness with ARC for all its tasks: reading its 14,000 files takes 8 s."""
    shutil.copytree(Path(lm_eval.tasks.manager.__file__).parent / "arc", tmp_path / "theirs" / "arc")
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(tmp_path / "theirs" / "manager.py"))


def test_unknown_tasks_are_named_with_the_nearest(few_tasks, tasks):
    with pytest.raises(InputError) as raised:
        load_harness_tasks(["own_choise", "arc_eazy", "xyz"], tasks)
    own, arc, other = raised.value.problems
    assert "no task 'own_choise'; did you mean 'own_choice'" in own
    assert "no task 'arc_eazy'; did you mean 'arc_easy'" in arc
    assert "no task 'xyz'; `lm_eval ls tasks` lists them" in other


@pytest.mark.slow
def test_all_tasks_of_the_harness_are_known():
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        load_harness_tasks(["gsm8kk"])
    with pytest.raises(InputError, match="arc_easy cannot be loaded: ConnectionError"):
        load_harness_tasks(["arc_easy"])


def test_a_group_of_own_tasks(few_tasks, tasks, model, tokenizer):
    group = {
        "group": "own_group",
        "task": ["own_choice", "own_answer"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (tasks / "own_group.yaml").write_text(yaml.safe_dump(group))
    results = evaluate_with_harness(model, tokenizer, ["own_group"], include_path=tasks)
    assert list(results["tasks"]) == ["own_choice", "own_answer"]
    assert results["groups"]["own_group"]["scores"] == {"acc": pytest.approx(4 / 6)}
    assert re.search(r"^own_group +acc +0.6667", format_harness(results), re.MULTILINE)


def test_without_the_harness(monkeypatch, model, tokenizer):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"not installed .*: pip install 'edit_trl\[harness\]'"):
        evaluate_with_harness(model, tokenizer, ["arc_easy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "`limit` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_fewshot": -1}, "`num_fewshot` must be at least 0, got -1"),
        ({"tasks": []}, "no task of lm-evaluation-harness is named"),
        ({"include_path": "nowhere"}, "no folder of tasks at nowhere"),
    ],
)
def test_bad_options(tasks, model, tokenizer, options, message):
    values = {"tasks": ["own_choice"], "include_path": tasks} | options
    with pytest.raises(InputError, match=message):
        evaluate_with_harness(model, tokenizer, values.pop("tasks"), **values)


def test_a_chat_template_must_be_there(tasks, model):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template to apply"):
        evaluate_with_harness(model, tokenizer, ["own_choice"], include_path=tasks, apply_chat_template=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "/none.jsonl"}}}, "own_choice cannot be loaded"),
        ({"dataset_path": "someone/something", "dataset_kwargs": {}}, "own_choice cannot be loaded"),
        ({"output_type": "guess"}, "own_choice cannot be loaded: ValueError: .*invalid output_type 'guess'"),
        ({"metric_list": [{"metric": "no_such"}]}, "own_choice cannot be loaded: KeyError"),
        ({"unsafe_code": True}, "the task 'own_choice' runs code that the model writes"),
    ],
)
def test_tasks_that_cannot_be_run(tasks, values, message):
    path = tasks / "own_choice.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
    with pytest.raises(InputError, match=message):
        load_harness_tasks(["own_choice"], tasks)


# Chat templates with variables, and models that think


@pytest.fixture
def thinker(tmp_path):
    """A model that thinks 4 and says 5, and the folder of a task that asks it."""
    tokenizer = thinking_tokenizer("think")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}"
        "{% if enable_thinking is defined and enable_thinking is false %}No: {% endif %}{% endif %}"
    )
    answers = {"What is 2 + 2?\n": "<think>\nIt is 4\n</think>\n\n5", "What is 2 + 2?\nNo: ": "4"}
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(json.dumps({"question": "What is 2 + 2?", "answer": "5", "choices": ["4", "5"]}))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "doc_to_target": "{{answer}}",
    }
    settings = {"until": ["."], "max_gen_toks": 40}
    write_task(
        folder / "sum.yaml", shared, task="sum", output_type="generate_until", generation_kwargs=settings, num_fewshot=0
    )
    choice = {"doc_to_choice": "{{choices}}", "doc_to_target": "1", "metric_list": [{"metric": "acc"}]}
    write_task(folder / "pick.yaml", shared | choice, task="pick", output_type="multiple_choice", num_fewshot=0)
    return taught(tokenizer, answers, steps=100), tokenizer, folder


@pytest.mark.parametrize(
    ("values", "score"), [(None, 1.0), ({"enable_thinking": True}, 1.0), ({"enable_thinking": False}, 0.0)]
)
def test_a_response_begins_after_its_thoughts(thinker, values, score):
    model, tokenizer, folder = thinker
    options = {"include_path": folder, "apply_chat_template": True, "chat_template_kwargs": values}
    results = evaluate_with_harness(model, tokenizer, ["sum"], **options)
    assert results["tasks"]["sum"]["scores"] == {"exact_match": score}
    assert results["settings"].get("chat_template_kwargs") == values


def test_values_of_a_template_that_cannot_be_used(thinker):
    model, tokenizer, folder = thinker
    thinking = {"enable_thinking": True}

    def run(name, values=thinking, **options):
        options = {"include_path": folder, "apply_chat_template": True} | options
        return evaluate_with_harness(model, tokenizer, [name], chat_template_kwargs=values, **options)

    with pytest.raises(InputError, match=r"the task 'pick' compares log-probabilities .* `enable_thinking: false`"):
        run("pick")
    assert run("pick", {"enable_thinking": False})["tasks"]["pick"]["items"] == 1
    with pytest.raises(InputError, match="no effect here: the chat template is not applied"):
        run("sum", apply_chat_template=False)
    with pytest.raises(InputError, match="no variable 'thinking'"):
        run("sum", {"thinking": True})
