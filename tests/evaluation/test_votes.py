"""Votes with weights: their arithmetic by hand, and the weights that a tiny real student gives."""

import json
import math
import re
import shutil

import pytest
import torch
import yaml
from chat_server import ChatServer, running
from conftest import ROWS, byte_level_tokenizer, conversational, tiny_llama
from datasets import Dataset
from test_invariants import config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edit_trl import DualCoTTrainer, compare_runs, evaluate_accuracy
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.data.mistake_views import checks
from edit_trl.data.row_rewriting import chosen_alone, rejected_alone, renamed
from edit_trl.evaluation.accuracy.answering import checked_item, format_table, graded_again
from edit_trl.evaluation.accuracy.problems import encode, problems_of
from edit_trl.evaluation.accuracy.votes import Weight, count_votes
from edit_trl.evaluation.accuracy.weighing import Weigher
from edit_trl.evaluation.report.items import Detail, page_items, rounded
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.runs.scores import mean_scores
from edit_trl.evaluation.statistics import area_under_curve
from edit_trl.models.decoding import Generated

RIGHT, WRONG, NONE = "The answer is 2.", "The answer is 3.", "Hm."
CORRECT, FALSE, UNPARSED = ("correct", "2"), ("wrong", "3"), ("unparsed", None)
PROBLEM = problems_of([{"prompt": "1 + 1?", "answer": "2", "id": "sum"}])[0]
PROBLEMS = [conversational(row) for row in ROWS]
SAMPLED = {"samples": 4, "temperature": 1.3, "max_new_tokens": 60, "progress": False}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A tiny student that has learnt both chains of three questions, and to tell which is right, by heart."""
    tokenizer = byte_level_tokenizer()
    learnt = PROBLEMS[:3]
    rows = [*chosen_alone(learnt), *(renamed(row, "wrong") for row in rejected_alone(learnt)), *checks(learnt)]
    options = {"max_steps": 200, "preference_weight": 0.0, "per_device_train_batch_size": 12}
    trainer = DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path_factory.mktemp("student"), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    model = tiny_llama()
    model.load_state_dict(trainer.model.state_dict())
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "student"
    for part in student:
        part.save_pretrained(folder)
    return folder


# The arithmetic


@pytest.mark.parametrize(
    ("votes", "weights", "winner"),
    [
        ([FALSE, CORRECT, CORRECT], [0.9, 0.3, 0.4], FALSE),  # 0.9 against 0.7, although two are right
        ([FALSE, CORRECT, CORRECT], [0.9, 0.5, 0.41], CORRECT),  # 0.9 against 0.91
        ([FALSE, UNPARSED, CORRECT], [0.2, 1.0, 0.1], FALSE),  # without an answer, no vote
        ([FALSE, CORRECT], [None, 0.1], CORRECT),
        ([CORRECT, FALSE], [0.5, 0.5], CORRECT),  # the earliest of equals
        # Added in order, 0.1 + 0.2 + 0.3 is above 0.3 + 0.2 + 0.1 in the last bit.
        ([CORRECT, CORRECT, CORRECT, FALSE, FALSE, FALSE], [0.3, 0.2, 0.1, 0.1, 0.2, 0.3], CORRECT),
        ([UNPARSED, UNPARSED], [0.5, 0.5], UNPARSED),
    ],
)
def test_the_largest_sum_of_weights_wins(votes, weights, winner):
    assert count_votes(votes, weights) == (winner, False)


def test_without_any_weight_the_majority_decides_and_it_is_said():
    votes = [FALSE, CORRECT, CORRECT, UNPARSED]
    assert count_votes(votes, [0.0, 0.0, None, 0.7]) == (CORRECT, True)


def test_an_item_has_both_votes_and_every_weight():
    responses = [Generated(text, 3, False) for text in (WRONG, RIGHT, RIGHT, NONE)]
    weights = [Weight(0.9, 11), Weight(0.3, 12), Weight(0.4, 13), Weight(0.8, 14)]
    item = checked_item(PROBLEM, responses, weights=weights)
    assert (item["verdict"], item["value"], item["lenient_value"]) == ("wrong", "3", "3")
    assert (item["majority_verdict"], item["majority_value"], item["no_weight"]) == ("correct", "2", False)
    assert [sample["weight"] for sample in item["samples"]] == [0.9, 0.3, 0.4, 0.8]
    assert mean_scores([item], "evaluate") == {
        "accuracy": 0.0,
        "majority_accuracy": 1.0,
        "lenient_accuracy": 0.0,
        "unparsed": 0.0,
        "cut_off": 0.0,
        "weight_auc": 0.0,  # of the pairs of a right and a wrong response, none has the right one above
        "weight_auc_pooled": 0.0,
        "no_weight": 0.0,
        "generated_tokens": 12.0,
        "weight_tokens": 50.0,
    }
    stale = item | {"verdict": "correct", "value": "2", "majority_verdict": "wrong"}
    assert graded_again(PROBLEM, stale) == item  # with the weights that are stored
    nothing = checked_item(PROBLEM, responses, weights=[Weight(0.0, 1)] * 4)
    assert (nothing["verdict"], nothing["no_weight"]) == ("correct", True)
    assert mean_scores([item, nothing], "evaluate")["no_weight"] == 0.5
    assert not {"majority_verdict", "no_weight"} & checked_item(PROBLEM, responses).keys()


def test_auc():
    # 0.9 is above both; 0.4 equals one and is above the other: 3.5 of 4.
    assert area_under_curve([0.9, 0.4], [0.4, 0.1]) == 0.875
    assert area_under_curve([0.2], [0.3, 0.4]) == 0.0
    assert area_under_curve([], [0.1]) is area_under_curve([0.1], []) is None


def test_auc_within_questions_and_over_all():
    def item(*weights):
        responses = [Generated(text, 3, False) for text in (RIGHT, WRONG)]
        return checked_item(PROBLEM, responses, weights=[Weight(weight, 1) for weight in weights])

    scores = mean_scores([item(0.9, 0.8), item(0.3, 0.1)], "evaluate")
    assert scores["weight_auc"] == 1.0  # each right one is above the wrong one beside it
    assert scores["weight_auc_pooled"] == 0.75  # but 0.3 is not above 0.8
    alone = checked_item(PROBLEM, [Generated(RIGHT, 3, False)] * 2, weights=[Weight(0.5, 1)] * 2)
    assert "weight_auc" not in mean_scores([alone], "evaluate")  # nothing wrong to tell from


# The weights


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(1)


def responses_of(tokenizer, *texts):
    eos = tokenizer.eos_token_id
    return [Generated(text, 0, False, ids=[*tokenizer(text)["input_ids"], eos]) for text in texts]


def weigher_of(student, votes, problems, **options):
    return Weigher(votes, *student, problems, **({"max_new_tokens": 60} | options))


CHAINS = [ROWS[0]["chosen"], ROWS[0]["rejected"], ROWS[0]["chosen"], "5."]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_likelihood_is_the_mean_probability_per_token(student, attention):
    model, tokenizer = student
    model.set_attn_implementation(attention)
    problems = problems_of(PROBLEMS[:1])
    [prompt] = encode(problems, tokenizer, max_new_tokens=60, positions=512)
    drawn = responses_of(tokenizer, *CHAINS)
    [weights] = weigher_of(student, "likelihood", problems)(problems, [prompt], [drawn])
    for weight, response in zip(weights, drawn, strict=True):
        logps = log_probabilities(model, prompt + response.ids)
        expected = [logps[len(prompt) + i - 1, token].item() for i, token in enumerate(response.ids)]
        assert weight.value == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)
    # The prompt, and what chains have in common, are run once.
    beginnings = {tuple(response.ids[:end]) for response in drawn for end in range(1, len(response.ids) + 1)}
    assert sum(weight.tokens for weight in weights) == len(prompt) + len(beginnings)
    assert model.config._attn_implementation == attention
    model.set_attn_implementation("sdpa")


def test_checked_is_how_likely_the_verdict_is_yes(student):
    model, tokenizer = student
    problems = problems_of(PROBLEMS[:2])
    prompts = encode(problems, tokenizer, max_new_tokens=60, positions=512)
    drawn = [responses_of(tokenizer, row["chosen"], row["rejected"]) for row in ROWS[:2]]
    weigher = weigher_of(student, "checked", problems)
    weights = weigher(problems, prompts, drawn)
    yes, no = (tokenizer(verdict)["input_ids"][0] for verdict in ("Yes", "No"))
    for row, responses, theirs in zip(ROWS, drawn, weights, strict=False):
        for response, weight in zip(responses, theirs, strict=True):
            asked = (
                f"<|im_start|>user\n{row['prompt'].strip()}\n\nProposed solution:\n{response.text}\n\n"
                "Is this solution right? Answer Yes or No.<|im_end|>\n<|im_start|>assistant\n"
            )
            p = log_probabilities(model, tokenizer(asked)["input_ids"])[-1].exp()
            assert weight.value == pytest.approx((p[yes] / (p[yes] + p[no])).item(), rel=1e-4, abs=1e-6)
    for right, wrong in weights:  # as it was trained
        assert right.value > 0.9
        assert wrong.value < 0.1
    assert weigher(problems, prompts, drawn) == weights  # without another check of the layout


def test_long_batches_and_the_padded_layout_give_the_same_weights(student, monkeypatch):
    problems = problems_of(PROBLEMS[:2])
    prompts = encode(problems, student[1], max_new_tokens=60, positions=512)
    drawn = [responses_of(student[1], row["chosen"], row["rejected"], "No idea.") for row in ROWS[:2]]

    def weights(votes, layout):
        weigher = weigher_of(student, votes, problems)
        weigher._layout = layout
        return [weight for theirs in weigher(problems, prompts, drawn) for weight in theirs]

    for votes in ("likelihood", "checked"):
        tree, padded = weights(votes, "auto"), weights(votes, "padded")
        monkeypatch.setattr("edit_trl.evaluation.accuracy.weighing._TOKENS_PER_FORWARD", 150)
        small = weights(votes, "auto")
        monkeypatch.undo()
        for other in (padded, small):
            assert [w.value for w in other] == pytest.approx([w.value for w in tree], rel=1e-4, abs=1e-6)
            assert sum(w.tokens for w in other) > sum(w.tokens for w in tree)


def test_a_response_that_is_cut_off_has_no_weight(student):
    problems = problems_of(PROBLEMS[:1])
    prompts = encode(problems, student[1], max_new_tokens=60, positions=512)
    cut = Generated("2 / 2", 3, True, ids=[1, 2, 3])
    weigher = weigher_of(student, "checked", problems)
    assert weigher(problems, prompts, [[cut, cut]]) == [[Weight(None, 0)] * 2]
    [[one, other]] = weigher(problems, prompts, [[cut, *responses_of(student[1], RIGHT)]])
    assert one == Weight(None, 0)
    assert 0 < other.value < 1


def test_a_response_that_ends_where_another_question_begins_is_weighed_up_to_there(student):
    problems = problems_of([{"prompt": "2 + 2?\n", "answer": "4"}])
    prompts = encode(problems, student[1], max_new_tokens=60, positions=512)
    weigher = weigher_of(student, "likelihood", problems)
    ids = student[1]("The answer is 4.")["input_ids"]
    [[cut, whole]] = weigher(
        problems, prompts, [[Generated("The answer is 4.", 30, False), Generated("", 30, False, ids=ids)]]
    )
    assert cut.value == whole.value
    assert weigher(problems, prompts, [[Generated("", 30, False)]]) == [[Weight()]]  # nothing was said before it


def test_a_check_that_does_not_fit_has_no_vote_and_is_named(student, caplog):
    problems = problems_of(PROBLEMS[:1])
    prompts = encode(problems, student[1], max_new_tokens=60, positions=512)
    long = Generated("7 " * 500, 500, False, ids=[5])
    weigher = weigher_of(student, "checked", problems)
    assert weigher(problems, prompts, [[long]]) == [[Weight()]]
    assert "all/robe: a response has no vote" in caplog.text
    assert "512 positions" in caplog.text
    with pytest.raises(InputError, match=r"row 1 \(all robe\): to check a response takes \d+ tokens .* lower"):
        weigher_of(student, "checked", problems, max_new_tokens=450)


def test_what_a_template_puts_before_an_answer_is_no_verdict(student):
    model, tokenizer = student[0], byte_level_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}Hm: {% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    problems = problems_of(PROBLEMS[:1])
    example = weigher_of((model, tokenizer), "checked", problems)._verdicts(problems[0], "x")
    assert tokenizer.decode(example["prompt_ids"]).endswith("<|im_start|>assistant\nHm: ")
    assert tokenizer.decode(example["chosen_ids"]) != tokenizer.decode(example["rejected_ids"])


def test_verdicts_that_begin_alike_are_refused(student):
    words = ["[UNK]", "[EOS]", "1", "+", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[EOS]", unk_token="[UNK]")
    message = re.escape("compares the first tokens of 'Yes' and 'No', and both begin with '[UNK]'")
    rows = [{"prompt": "1 + 1 ?\n", "answer": "2"}]
    with pytest.raises(InputError, match=message):
        evaluate_accuracy(student[0], fast, rows, votes="checked", **SAMPLED)
    evaluate_accuracy(student[0], fast, rows, votes="likelihood", **SAMPLED | {"max_new_tokens": 3})


def test_weights_that_are_not_numbers_are_named(student):
    model = tiny_llama()
    model.load_state_dict(student[0].state_dict())
    model.lm_head.weight.data[7] = math.nan
    problems = problems_of(PROBLEMS[:1])
    prompts = encode(problems, student[1], max_new_tokens=60, positions=512)
    weigher = weigher_of((model, student[1]), "likelihood", problems)
    with pytest.raises(FloatingPointError, match="all/robe: the weight of a response is nan"):
        weigher(problems, prompts, [responses_of(student[1], RIGHT)])


# From Python


def test_from_python(student):
    majority = evaluate_accuracy(*student, PROBLEMS, **SAMPLED)
    results = {
        votes: evaluate_accuracy(*student, PROBLEMS, votes=votes, **SAMPLED) for votes in ("likelihood", "checked")
    }
    assert majority.overall.majority_accuracy is None
    assert majority.weight_tokens == 0
    for votes, result in results.items():
        assert result.overall.majority_accuracy == majority.overall.accuracy
        assert result.generated_tokens == majority.generated_tokens
        assert result.weight_tokens > 0
        for item, same in zip(result.items, majority.items, strict=True):
            assert item["majority_value"] == same["value"]
            assert [s["response"] for s in item["samples"]] == [s["response"] for s in same["samples"]]
            ballots = [(s["verdict"], s["value"]) for s in item["samples"]]
            (_, value), _ = count_votes(ballots, [s["weight"] for s in item["samples"]])
            assert item["value"] == value
        lines = format_table({votes: result}).splitlines()
        labels = [line.split("  ")[0] for line in lines]
        assert {"all, majority", "AUC of weights", "no weight", "tokens generated", "tokens for weights"} <= {*labels}
    assert json.loads(json.dumps(results["checked"].to_dict()))["overall"]["weight_auc"] is not None
    assert "majority" not in format_table({"x": majority})


@pytest.mark.slow  # the scheduler takes six seconds to start, twice
def test_continuous_batching_goes_on_between_the_weights(student):
    rows = [PROBLEMS[1] | {"id": str(copy)} for copy in range(9)]
    options = {"batching": "continuous", "batch_size": 2, "samples": 2, "votes": "checked", "max_new_tokens": 45}
    result = evaluate_accuracy(*student, rows, **SAMPLED | options)  # the scheduler is called twice
    assert any(sample["weight"] for item in result.items for sample in item["samples"])
    assert student[0].config._attn_implementation == "sdpa"


def test_bad_votes_from_python(student):
    with pytest.raises(InputError, match="`votes: checked` has no effect with `samples: 1`"):
        evaluate_accuracy(*student, PROBLEMS, votes="checked")
    with pytest.raises(InputError, match="`votes` must be one of majority, likelihood, checked, got 'chekced'"):
        evaluate_accuracy(*student, PROBLEMS, votes="chekced", **SAMPLED)


# By the command


@pytest.fixture
def recipe(tmp_path, folder):
    rows = [{"prompt": row["prompt"], "answer": row["answer"], "id": row["id"]} for row in PROBLEMS]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text("dataset_name: q.jsonl\n")
    file = tmp_path / "recipe.yaml"
    options = {"model": str(folder), "tasks": ["sums.yaml"], "history": str(tmp_path / "history.sqlite")}
    options |= {"samples": 4, "temperature": 1.3, "max_new_tokens": 60, "batch_size": 4}
    file.write_text(yaml.safe_dump(options | {"votes": "checked", "output_dir": str(tmp_path / "run")}))
    return file


def evaluate(recipe, *options):
    return main(["evaluate", "--config", str(recipe), *map(str, options)])


def test_by_the_command_and_what_reads_its_run(recipe, tmp_path, capsys):
    assert evaluate(recipe) == 0
    rows: dict = {}
    for line in filter(None, capsys.readouterr().out.splitlines()):
        rows.setdefault(line.split()[0], line.split()[1:])  # what the names mean follows below the table
    assert {"accuracy", "majority_accuracy", "no_weight", "generated_tokens", "weight_tokens"} <= rows.keys()
    run = read_run(tmp_path / "run")
    scores = run.record.scores
    assert run.record.settings["votes"] == "checked"
    assert scores["weight_tokens"] == sum(s["weight_tokens"] for i in run.items for s in i["samples"]) / 4
    assert scores["generated_tokens"] == sum(s["tokens"] for i in run.items for s in i["samples"]) / 4
    assert rows["weight_tokens"][0] == f"{scores['weight_tokens']:,.1f}"
    assert rows["weight_auc"][0] == f"{scores['weight_auc']:.1%}"
    weights = [s["weight"] for i in run.items for s in i["samples"] if not s["cut_off"]]
    assert all(0 <= weight <= 1 for weight in weights)

    assert evaluate(recipe, "--votes", "majority", "--output_dir", tmp_path / "majority") == 0
    majority = read_run(tmp_path / "majority")
    assert "votes" not in majority.record.settings
    assert majority.record.scores["accuracy"] == scores["majority_accuracy"]
    assert "majority_accuracy" not in majority.record.scores
    assert majority.items[0].keys() == run.items[0].keys() - {"majority_verdict", "majority_value", "no_weight"}

    with pytest.raises(InputError, match=r"votes: 'checked' there, 'not set'.*--any-decoding"):
        compare_runs(majority, run)
    compared = compare_runs(majority, run, any_decoding=True).systems[0].overall
    assert (compared.baseline, compared.other) == (majority.record.scores["accuracy"], scores["accuracy"])
    assert compare_runs(run, run, score="weight_tokens").systems[0].overall.other == scores["weight_tokens"]
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run"), "--score", "weight_tokens"]) == 0
    assert "tokens" in capsys.readouterr().out
    assert (
        main(["report", str(tmp_path / "run"), str(tmp_path / "majority"), "--output", str(tmp_path / "r.html")]) == 0
    )
    assert "Accuracy, majority" in (tmp_path / "r.html").read_text()
    [[[_, outcome], [_, of_majority]], *_] = [item["runs"] for item in page_items([run, majority], Detail())[0]]
    assert outcome["majority"] == run.items[0]["majority_verdict"]
    assert [s.get("weight") for s in outcome["samples"]] == [rounded(s["weight"]) for s in run.items[0]["samples"]]
    assert "majority" not in of_majority
    capsys.readouterr()
    history = tmp_path / "history.sqlite"
    for metric in ("majority_accuracy", "weight_tokens", "weight_auc_pooled"):
        assert main(["history", "--file", str(history), "--metric", metric]) == 0
        assert "student" in capsys.readouterr().out


def test_a_run_is_resumed_with_the_same_votes(recipe, tmp_path, capsys):
    assert evaluate(recipe) == 0
    whole = (tmp_path / "run" / "items.jsonl").read_bytes()
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "run", begun)
    record = json.loads((begun / "evaluation.json").read_text()) | {"finished": None}
    (begun / "evaluation.json").write_text(json.dumps(record))
    (begun / "items.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    for votes in ("majority", "likelihood"):
        assert evaluate(recipe, "--output_dir", begun, "--votes", votes) == 2
        assert "votes: 'checked' there" in capsys.readouterr().err
    assert evaluate(recipe, "--output_dir", begun) == 0
    assert (begun / "items.jsonl").read_bytes() == whole
    # The items of an earlier answer check are graded again with their own weights.
    (begun / "evaluation.json").write_text(json.dumps(record | {"verifier": "1"}))
    spoilt = [json.loads(line) | {"verdict": "unparsed", "majority_verdict": "unparsed"} for line in whole.splitlines()]
    (begun / "items.jsonl").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in spoilt[:3]))
    assert evaluate(recipe, "--output_dir", begun) == 0
    assert (begun / "items.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "1"], "`votes: checked` has no effect with `samples: 1`; set `samples: 8`"),
        (["--votes", "chekced"], "did you mean 'checked'"),
        (["--engine", "ray"], "needs the log-probabilities of both verdicts"),
        (["--batching", "vllm"], "vLLM keeps the model to itself; use `batching: continuous`"),
        (["--tasks", "null", "--harness", "arc_easy"], "`votes: checked` is for `tasks`"),
        (["--max_new_tokens", "450"], "row 1 (sums robe): to check a response takes"),
    ],
)
def test_refusals_leave_nothing_behind(recipe, tmp_path, capsys, options, message):
    assert evaluate(recipe, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("votes", ["likelihood", "checked"])
def test_an_endpoint_is_refused_before_anything_is_sent(recipe, tmp_path, capsys, votes):
    server = ChatServer(lambda body: RIGHT)
    with running(server) as url:
        assert evaluate(recipe, "--base_urls", url, "--model", "test-model", "--votes", votes) == 2
    error = capsys.readouterr().err
    assert f"`votes: {votes}` needs the log-prob" in error
    assert "`/completions` with `echo` and `logprobs`" in error
    assert server.seen == 0
    assert not (tmp_path / "run").exists()


def test_items_that_were_edited(recipe, tmp_path):
    assert evaluate(recipe) == 0
    file = tmp_path / "run" / "items.jsonl"
    lines = file.read_text().splitlines()
    item = json.loads(lines[1])
    item["samples"][0]["weight"] = "much"
    file.write_text("\n".join([lines[0], json.dumps(item), *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"line 2: .*samples\[0\].weight: 'much' is no number"):
        read_run(tmp_path / "run")
