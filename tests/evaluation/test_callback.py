"""A suite while training: the run does not notice, everyone knows the scores, the best weights are found."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAT_TEMPLATE, ROWS, byte_level_tokenizer, conversational, tiny_llama
from datasets import Dataset
from peft import LoraConfig
from test_invariants import config
from train_recipe_runs import run_file, stage
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from edit_trl import DualCoTTrainer, SuiteCallback, evaluate_accuracy, evaluate_suite
from edit_trl.common.errors import InputError
from edit_trl.evaluation.suite.callback import HISTORY_FILE

TRAINING = [row | {"id": f"{row['id']}{n}"} for n in range(3) for row in ROWS]
SUITE = [*ROWS, {"prompt": "What is 1 + 2?\n", "chosen": "It is 3.", "rejected": [], "id": "alone"}]
SCORES = {"preference", "margin", "key_preference", "key_margin", "no_wrong_turn"}


def student(dropout: float = 0.1):
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    return model


class Reporter(TrainerCallback):
    """What a reporting integration is given."""

    def __init__(self):
        self.logs: list[tuple[int, dict]] = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def make_trainer(folder, callbacks, *, peft=False, eval_dataset=None, **options) -> DualCoTTrainer:
    defaults = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    defaults |= {"train_sampling_strategy": "random", "per_device_eval_batch_size": 2, "optim": "adamw_torch"}
    trainer = DualCoTTrainer(
        student(),
        args=config(folder, **defaults | options),
        train_dataset=Dataset.from_list(TRAINING),
        eval_dataset=eval_dataset,
        processing_class=byte_level_tokenizer(),
        callbacks=callbacks,
        peft_config=LoraConfig(target_modules="all-linear", lora_dropout=0.1) if peft else None,
    )
    for callback in callbacks:
        callback.trainer = trainer
    return trainer


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / HISTORY_FILE).read_text().splitlines()]


def logged(trainer) -> list[dict]:
    """What was logged of the training itself, without what depends on the clock."""
    return [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in trainer.state.log_history
        if not any(name.startswith("eval_suite/") for name in entry)
    ]


@pytest.mark.parametrize(("peft", "layout"), [(False, "tree"), (True, "padded")])
def test_the_run_is_the_same_bit_for_bit(tmp_path, peft, layout):
    def trained(callbacks, name):
        trainer = make_trainer(tmp_path / name, callbacks, peft=peft, layout=layout)
        trainer.train()
        return trainer, (random.random(), np.random.rand(), torch.rand(3).tolist())

    without, drawn_without = trained([], "without")
    suite = SuiteCallback(SUITE, steps=1, accuracy_rows=2, max_new_tokens=4)
    with_suite, drawn_with = trained([suite], "with")
    ours, theirs = with_suite.model.state_dict(), without.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert logged(with_suite) == logged(without)
    assert drawn_with == drawn_without
    assert [line["step"] for line in history(tmp_path / "with")] == [1, 2, 3, 4]
    assert with_suite.model.training == without.model.training


@pytest.mark.parametrize(
    ("steps", "options", "told"),
    [
        (None, {}, True),
        (None, {"eval_strategy": "steps", "eval_steps": 5}, True),  # of 4
        (None, {"eval_strategy": "steps", "eval_steps": 4}, False),
        (9, {}, False),  # and at the last step
    ],
)
def test_a_suite_that_will_not_run_is_told(tmp_path, caplog, steps, options, told):
    suite = SuiteCallback(SUITE, steps=steps, rows=1)
    make_trainer(tmp_path, [suite], eval_dataset=Dataset.from_list(ROWS[:1]), **options).train()
    assert ("the suite will not run in this training" in caplog.text) is told
    assert (tmp_path / "run" / HISTORY_FILE).exists() is not told


def test_dropout_is_on_in_these_runs(tmp_path):
    losses = []
    for seed in (1, 2):
        trainer = make_trainer(tmp_path, [], train_sampling_strategy="sequential", seed=seed)
        torch.manual_seed(seed)
        trainer.train()
        losses.append(logged(trainer)[0]["loss"])
    assert losses[0] != losses[1]


def test_the_scores_are_those_of_the_functions(tmp_path):
    reporter = Reporter()
    suite = SuiteCallback(Dataset.from_list(ROWS), steps=3, rows=3, accuracy_rows=2, max_new_tokens=4)
    trainer = make_trainer(tmp_path, [reporter, suite], max_steps=3)
    trainer.train()
    tokenizer = byte_level_tokenizer()
    pairs = evaluate_suite(trainer.model, tokenizer, ROWS, batch_size=2, limit=3, greedy=False, progress=False)
    answers = evaluate_accuracy(trainer.model, tokenizer, ROWS[:2], batch_size=2, max_new_tokens=4, progress=False)
    [line] = history(tmp_path)
    assert line["step"] == 3
    for name in SCORES:
        assert line[name] == pytest.approx(pairs.scores[name], abs=1e-6)
    assert line["accuracy"] == answers.overall.accuracy
    assert line["unparsed"] == answers.overall.unparsed / 2
    assert line.keys() == {*SCORES, "step", "epoch", "accuracy", "lenient_accuracy", "unparsed", "cut_off"}
    # The reporters see the suite's scores, and the training's own log of the same step.
    of_suite = [logs for step, logs in reporter.logs if "eval_suite/key_margin" in logs]
    assert [logs["eval_suite/key_margin"] for logs in of_suite] == [line["key_margin"]]
    assert [step for step, logs in reporter.logs if "loss" in logs] == [1, 2, 3]


def test_a_run_in_half_precision_with_checkpointed_activations(tmp_path):
    suite = SuiteCallback(SUITE, steps=1, accuracy_rows=1, max_new_tokens=3)
    trainer = make_trainer(tmp_path, [suite], bf16=True, gradient_checkpointing=True, peft=True, max_steps=2)
    trainer.train()
    scores = evaluate_suite(trainer.model, byte_level_tokenizer(), SUITE, greedy=False, progress=False).scores
    assert history(tmp_path)[-1]["margin"] == pytest.approx(scores["margin"], abs=0.02)
    assert trainer.score_pairs.tree is not None


def test_it_runs_at_the_last_step_too(tmp_path):
    make_trainer(tmp_path, [SuiteCallback(SUITE, steps=3)], max_steps=4).train()
    assert [line["step"] for line in history(tmp_path)] == [3, 4]


def test_it_runs_with_each_evaluation_where_no_steps_are_given(tmp_path):
    trainer = make_trainer(
        tmp_path,
        [SuiteCallback(SUITE)],
        eval_dataset=Dataset.from_list(ROWS),
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
    )
    trainer.train()
    assert [line["step"] for line in history(tmp_path)] == [0, 2, 4]


@pytest.mark.parametrize("metric", ["suite/key_margin", "eval_suite/key_margin"])
def test_the_best_weights_are_those_of_the_best_score(tmp_path, metric):
    suite = SuiteCallback(SUITE, steps=100)  # the metric is wanted at each evaluation
    trainer = make_trainer(
        tmp_path,
        [suite],
        eval_dataset=Dataset.from_list(ROWS),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.1,
        max_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    lines = history(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    best = max(lines, key=lambda line: line["key_margin"])
    assert trainer.state.best_metric == best["key_margin"]
    assert trainer.state.best_global_step == best["step"]
    # The weights are that step's, and an evaluation after the training is of them, not of the last ones.
    scores = evaluate_suite(
        trainer.model, byte_level_tokenizer(), SUITE, batch_size=2, greedy=False, progress=False
    ).scores
    assert scores["key_margin"] == pytest.approx(best["key_margin"], abs=1e-6)
    assert trainer.evaluate()["eval_suite/key_margin"] == pytest.approx(best["key_margin"], abs=1e-6)
    assert history(tmp_path) == lines


def test_a_resumed_run_goes_on_without_duplicates(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(tmp_path, [SuiteCallback(SUITE, steps=1)], **options).train()
    whole = history(tmp_path)
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    resumed = make_trainer(tmp_path, [SuiteCallback(SUITE, steps=1)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    again = history(tmp_path)
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    for ours, theirs in zip(again, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    # A run that starts anew in the folder does not take the old one's lines for its own.
    make_trainer(tmp_path, [SuiteCallback(SUITE, steps=4)], **options).train()
    assert [line["step"] for line in history(tmp_path)] == [4]


def test_training_ends_at_a_plateau(tmp_path, caplog):
    def run(name, resume=None, **options):
        suite = SuiteCallback(SUITE, steps=1, accuracy_rows=2, max_new_tokens=4, stop_at_plateau=2)
        # Nothing is learned, so that no score rises.
        options = {"learning_rate": 0.0, "max_steps": 6, "save_strategy": "steps", "save_steps": 1} | options
        trainer = make_trainer(tmp_path / name, [suite], **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step

    assert run("whole") == 3  # the first suite is the best, and two more are no better
    assert [entry["step"] for entry in history(tmp_path / "whole")] == [1, 2, 3]
    assert run("whole", resume=str(tmp_path / "whole" / "run" / "checkpoint-2")) == 3
    other = {"metric_for_best_model": "suite/margin", "greater_is_better": True, "max_steps": 2}
    assert run("other", **other) == 2


def test_a_plateau_needs_answers(tmp_path):
    with pytest.raises(InputError, match="`stop_at_plateau` watches the accuracy"):
        make_trainer(tmp_path, [SuiteCallback(SUITE, steps=1, stop_at_plateau=2)])


def test_another_trainer_can_use_it(tmp_path):
    def sft(callback) -> SFTTrainer:
        args = SFTConfig(
            str(tmp_path / "run"),
            max_steps=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_steps=1,
        )
        rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS])
        return SFTTrainer(
            student(), args=args, train_dataset=rows, processing_class=byte_level_tokenizer(), callbacks=[callback]
        )

    trainer = sft(SuiteCallback(SUITE, steps=1))
    trainer.train()
    assert [line["step"] for line in history(tmp_path)] == [1, 2]
    assert sum("eval_suite/margin" in entry for entry in trainer.state.log_history) == 2
    callback = SuiteCallback(SUITE, steps=1)
    trainer = sft(callback)
    callback.trainer = trainer
    trainer.train()
    assert sum("eval_suite/margin" in entry for entry in trainer.state.log_history) == 2
    assert sum("loss" in entry for entry in trainer.state.log_history) == 2


BAD_METRICS = {
    "suite/key_preferance": ({}, "`metric_for_best_model: suite/key_preferance` is not one of preference"),
    "suite/accuracy": ({}, "accuracy needs `suite_accuracy_rows`"),
    "suite/right_branch": ({}, "is not one of"),
    "suite/unparsed": ({"accuracy_rows": 1}, "needs `greater_is_better: false`"),
}


@pytest.mark.parametrize("metric", BAD_METRICS)
def test_a_metric_that_is_none_is_said_before_training(tmp_path, metric):
    options, says = BAD_METRICS[metric]
    with pytest.raises(InputError, match=says):
        make_trainer(tmp_path, [SuiteCallback(SUITE, max_new_tokens=4, **options)], metric_for_best_model=metric)


def test_bad_suites_are_said_before_training(tmp_path):
    for rows, options, says in (
        ([], {}, "suite dataset: the suite is empty"),
        ([{**ROWS[0], "rejected": ROWS[0]["chosen"]}], {}, "suite dataset, row 1, rejected"),
        ([{**ROWS[0], "answer": None}], {"accuracy_rows": 1}, "no row has an `answer`"),
    ):
        with pytest.raises(InputError, match=says):
            make_trainer(tmp_path, [SuiteCallback(rows, **options)])
    with pytest.raises(InputError) as error:
        SuiteCallback(SUITE, steps=0, rows=0, accuracy_rows=-1, max_new_tokens=0)
    assert len(error.value.problems) == 4


def test_log_probabilities_that_are_no_numbers_end_the_run(tmp_path):
    suite = SuiteCallback(SUITE, steps=1)
    trainer = make_trainer(tmp_path, [suite], logging_strategy="no")
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="log-probability of token 1"):
        trainer.train()


# Through the command line


def test_a_recipe_turns_it_on(recipe, tmp_path, capsys):
    suite = tmp_path / "suite.jsonl"
    suite.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS))
    options = ["--suite_eval_steps", "1", "--suite_dataset_name", str(suite), "--suite_rows", "2"]
    options += ["--suite_accuracy_rows", "1", "--suite_max_new_tokens", "3"]
    assert stage(recipe, "warm_up", *options) == 0, capsys.readouterr().err
    lines = (tmp_path / "out" / "warm_up" / HISTORY_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert "accuracy" in json.loads(lines[0])
    assert run_file(tmp_path / "out" / "warm_up")["finished"]


def test_the_suite_gives_the_template_the_values_of_the_training(recipe, tmp_path, capsys):
    suite, template = tmp_path / "suite.jsonl", tmp_path / "template.jinja"
    suite.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS))
    template.write_text("{% if style != 'short' %}{{ raise_exception('no style') }}{% endif %}" + CHAT_TEMPLATE)
    options = ["--suite_eval_steps", "2", "--suite_dataset_name", str(suite), "--suite_accuracy_rows", "1"]
    options += ["--suite_max_new_tokens", "3", "--dataset_name", str(suite), "--chat_template_path", str(template)]
    assert stage(recipe, "warm_up", *options) != 0
    assert "no style" in capsys.readouterr().err
    options += ["--chat_template_kwargs", '{"style": "short"}']
    assert stage(recipe, "warm_up", *options) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "warm_up" / HISTORY_FILE).is_file()


BAD_OPTIONS = {
    "steps": (["--suite_eval_steps", "0"], "`suite_eval_steps` must be at least 1, got 0"),
    "alone": (["--suite_rows", "3"], "`suite_rows` need `suite_eval_steps`"),
    "metric": (["--metric_for_best_model", "suite/margin"], "needs `suite_eval_steps`"),
    "plateau": (["--stop_at_plateau", "2"], "`stop_at_plateau` needs `suite_eval_steps`"),
    "plateau of what": (["--suite_eval_steps", "1", "--stop_at_plateau", "2"], "set `suite_accuracy_rows`"),
    "split": (["--suite_eval_steps", "1", "--suite_dataset_split", "x"], "which is missing"),
    "file": (["--suite_eval_steps", "1", "--suite_dataset_name", "nothing.jsonl"], "no such file or folder"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_said(recipe, tmp_path, capsys, name):
    options, says = BAD_OPTIONS[name]
    assert stage(recipe, "warm_up", *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / "warm_up" / "run.json").exists()


# Two processes


def train_for(folder: Path, processes: int, callbacks) -> DualCoTTrainer:
    trainer = make_trainer(
        folder,
        callbacks,
        per_device_train_batch_size=4 // processes,
        gradient_accumulation_steps=1,
        train_sampling_strategy="sequential",
        max_steps=2,
    )
    trainer.train()
    return trainer


def suite_of_processes() -> SuiteCallback:
    # Three batches for two processes, and one answer.
    return SuiteCallback(TRAINING[: 2 * len(ROWS)], steps=1, accuracy_rows=1, max_new_tokens=3, batch_size=3)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run([*command, __file__, str(folder)], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def test_two_processes_share_the_work_and_know_the_same(two_processes):
    first, second = (json.loads((two_processes / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["logs"] == second["logs"]
    assert len(first["logs"]) == 2
    assert {name.removeprefix("eval_suite/") for name in first["logs"][0]} >= SCORES
    lines = history(two_processes / "with")
    assert [line["step"] for line in lines] == [1, 2]
    for line, logs in zip(lines, first["logs"], strict=True):
        assert {name: logs[f"eval_suite/{name}"] for name in line if name not in ("step", "epoch")} == {
            name: value for name, value in line.items() if name not in ("step", "epoch")
        }
    assert first["batches"] + second["batches"] == first["planned"]
    assert min(first["batches"], second["batches"]) >= 1


def test_two_processes_train_the_same_with_and_without(two_processes):
    for rank in (0, 1):
        result = json.loads((two_processes / f"rank{rank}.json").read_text())
        assert result["weights_with"] == result["weights_without"]


def test_an_error_of_one_process_ends_both(two_processes):
    says = [(two_processes / f"error{rank}.txt").read_text() for rank in (0, 1)]
    assert says[0] == says[1]
    assert "log-probability of token 1" in says[0]


def test_sharded_weights_are_judged_as_whole_ones_and_go_on_training(two_processes):
    for rank in (0, 1):
        sharded = json.loads((two_processes / f"sharded{rank}.json").read_text())
        assert sharded["margins"] == pytest.approx(sharded["whole"], abs=1e-6)
        assert sharded["answers"] == sharded["answers_of_whole"]
        assert math.isfinite(sharded["loss"])


def sharded_student() -> dict:
    """What both ways of looking at a student say of one that FSDP has cut up; then a training step."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from edit_trl.evaluation.suite.cases import cases_of
    from edit_trl.evaluation.suite.model_scorer import ModelScorer
    from edit_trl.models.decoding import Decoding
    from edit_trl.models.generation import ModelGenerator

    tokenizer = byte_level_tokenizer()
    cases, _ = cases_of(ROWS, tokenizer)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]

    def look(model) -> tuple[list[float], list[str]]:
        scorer = ModelScorer(model, tokenizer, cases, batch_size=2)
        generator = ModelGenerator(model, tokenizer, Decoding(4), batch_size=2, batching="padded")
        items = [item for items in scorer.run(scorer.plan()) for item in items]
        answers = generator.run(prompts, generator.plan(list(map(len, prompts))))
        return [item["margin"] for item in items], [str(samples) for _, samples in answers]

    model, mesh = tiny_llama(), init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    margins, answers = look(model)
    whole, answers_of_whole = look(tiny_llama())
    ids = torch.tensor([prompts[0]])
    loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    return {
        "margins": margins,
        "whole": whole,
        "answers": answers,
        "answers_of_whole": answers_of_whole,
        "loss": loss.item(),
    }


if __name__ == "__main__":
    from edit_trl.evaluation.suite import model_scorer as suite_model

    output = Path(sys.argv[1])
    seen: list[int] = []
    run_batches = suite_model.ModelScorer.run

    def counted(self, batches):
        seen.append(len(batches))
        return run_batches(self, batches)

    suite_model.ModelScorer.run = counted
    callback = suite_of_processes()
    trained = train_for(output / "with", 2, [callback])
    without = train_for(output / "without", 2, [])
    rank = trained.accelerator.process_index
    weights = [
        torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist() for trainer in (trained, without)
    ]
    logs = [
        {name: value for name, value in entry.items() if name.startswith("eval_suite/")}
        for entry in trained.state.log_history
        if "eval_suite/margin" in entry
    ]
    scorer = suite_model.ModelScorer(trained.model, byte_level_tokenizer(), callback._cases, batch_size=3)
    (output / f"rank{rank}.json").write_text(
        json.dumps(
            {
                "logs": logs,
                "weights_with": weights[0],
                "weights_without": weights[1],
                "batches": seen[0],
                "planned": len(scorer.plan()),
            }
        )
    )

    (output / f"sharded{rank}.json").write_text(json.dumps(sharded_student()))

    # One process alone meets a number that is none: both end, neither waits.
    broken = make_trainer(output / "broken", [suite_of_processes()], logging_strategy="no", max_steps=1)
    run_again = suite_model.ModelScorer.run

    def broken_on_the_second(self, batches):
        if rank == 1:
            with torch.no_grad():
                broken.model.lm_head.weight.fill_(math.nan)
        return run_again(self, batches)

    suite_model.ModelScorer.run = broken_on_the_second
    try:
        broken.train()
    except FloatingPointError as error:
        (output / f"error{rank}.txt").write_text(str(error))
