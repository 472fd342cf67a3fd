"""Rows of thinking models and of tools, with the chat templates that TRL ships: token ids are those of DPOTrainer."""

import json
from pathlib import Path

import pytest
import trl
from conftest import tiny_llama
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from edit_trl import DualCoTConfig, DualCoTTrainer, load_dual_cots, select_rows
from edit_trl.common.errors import InputError
from edit_trl.data.dual_cots import save_dual_cots
from edit_trl.data.preparation import prepare_for_training
from edit_trl.data.row import chain_text
from edit_trl.data.tokenization import tokenize_with_notes, tokenize_with_offsets

FILES = Path(trl.__file__).parent / "chat_templates"
NAMES = ("qwen3", "deepseek_r1_distill", "gptoss", "gemma3", "llama3")
# The values that each template knows, to be set and left out.
VALUES = {"qwen3": {"enable_thinking": False}, "gptoss": {"reasoning_effort": "high"}}
SPECIAL = (
    *("<|pad|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|channel|>", "<|message|>", "<|start|>"),
    *("<|end|>", "<|return|>", "<|call|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<start_of_turn>"),
    *("<end_of_turn>", "<bos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
)

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


def chain(number: int, form: str) -> list[dict]:
    """A chain that ends in a number, with its thoughts in a form."""
    thoughts, answer = f"2 + 3 = {number}.", f"The answer is {number}."
    contents = {
        "plain": {"content": f"{thoughts} {answer}"},
        "spaced": {"content": f"<think>\n{thoughts}\n</think>\n\n{answer}"},
        "tight": {"content": f"<think>{thoughts}</think>{answer}"},
        "without opening": {"content": f"{thoughts}\n</think>\n\n{answer}"},
        "reasoning_content": {"content": answer, "reasoning_content": thoughts},
        "thinking": {"content": answer, "thinking": thoughts},
    }
    return [{"role": "assistant", **contents[form]}]


def row(form: str, **columns) -> dict:
    return {"prompt": QUESTION, "chosen": chain(5, form), "rejected": chain(6, form), **columns}


def with_tools(number: int) -> list[dict]:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": number - 2}}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": str(number)},
        {"role": "assistant", "content": f"The answer is {number}."},
    ]


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = ["2 + 3 = 5. So the answer is 5.\n\n"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token="<bos>", model_max_length=2048
    )
    fast.chat_template = (FILES / f"{name}.jinja").read_text()
    return fast


def trls(rows: list[dict], fast, folder) -> list[dict]:
    """The token ids that TRL's own trainer makes of rows."""
    trainer = DPOTrainer(
        tiny_llama(vocab_size=len(fast)),
        args=DPOConfig(str(folder), bf16=False, report_to="none", max_length=None, use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=fast,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),  # no reference model
    )
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in trainer.train_dataset]


def ours(rows: list[dict], fast) -> list[dict]:
    outputs = [tokenize_with_offsets(row, fast)[0] for row in Dataset.from_list(rows)]
    return [{name: output[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for output in outputs]


def key_text(row: dict, fast, side: str) -> list[str]:
    """The text of the key tokens; each token is checked to be the chain's characters."""
    output, offsets = tokenize_with_offsets(row, fast)
    text = chain_text(row[side])
    for token, (start, end) in zip(output[f"{side}_ids"], offsets[side], strict=True):
        assert start == end or fast.decode([token]) == text[start:end]
    marked = zip(output[f"{side}_ids"], output[f"{side}_key_mask"], strict=True)
    return [fast.decode([token]).strip() for token, key in marked if key]


def keeps(name: str, form: str) -> bool:
    """Whether the template itself keeps thoughts in this form."""
    has_field = name in ("qwen3", "gptoss")  # transformers gives each template its own name of the field
    return name != "deepseek_r1_distill" if form in ("plain", "spaced", "tight") else has_field


@pytest.mark.parametrize("values", [False, True], ids=["", "values"])
@pytest.mark.parametrize("name", NAMES)
def test_token_ids_are_those_of_trls_trainer(name, values, tmp_path):
    if values and name not in VALUES:
        pytest.skip("the template has no variables")
    columns = {"chat_template_kwargs": VALUES[name]} if values else {}
    fast = tokenizer(name)
    for form in ("plain", "spaced", "tight", "reasoning_content", "thinking"):
        rows = [row(form, **columns)]
        if keeps(name, form):
            assert ours(rows, fast) == trls(rows, fast, tmp_path), form


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["spaced", "tight", "reasoning_content", "thinking", "without opening"])
def test_key_steps_are_in_thoughts_and_in_answers(name, form):
    fast, pair = tokenizer(name), row(form)
    assert key_text(pair, fast, "chosen") == ["5", "5"]
    assert key_text(pair, fast, "rejected") == ["6", "6"]
    text = fast.decode(tokenize_with_offsets(pair, fast)[0]["chosen_ids"])
    assert "2 + 3 = 5." in text
    assert "The answer is 5." in text


def test_where_the_own_template_loses_thoughts_trls_variant_is_used(tmp_path):
    fast = tokenizer("deepseek_r1_distill")
    rows = [row("spaced")]
    output, _, notes = tokenize_with_notes(rows[0], fast)
    [note] = notes
    assert "would lose the thoughts of the chains, so they are rendered by TRL's deepseek_r1_distill_training" in note
    assert fast.decode(output["prompt_ids"]).endswith("<｜Assistant｜><think>\n")
    training = tokenizer("deepseek_r1_distill_training")
    assert ours(rows, fast) == trls(rows, training, tmp_path)
    # Thoughts in a field that no template of R1 reads.
    assert ours([row("reasoning_content")], fast) == ours(rows, fast)
    assert "given as `<think>` text to TRL's" in tokenize_with_notes(row("reasoning_content"), fast)[2][0]


@pytest.mark.parametrize("name", ["gemma3", "llama3"])
def test_thoughts_in_a_field_that_the_template_does_not_read_become_text(name, tmp_path):
    fast = tokenizer(name)
    [note] = tokenize_with_notes(row("reasoning_content"), fast)[2][:1]
    assert note.endswith("so they are given to it as `<think>` text")
    assert ours([row("reasoning_content")], fast) == trls([row("spaced")], fast, tmp_path)


@pytest.mark.parametrize("form", ["spaced", "without opening", "reasoning_content"])
def test_a_template_of_ones_own_that_opens_thoughts_is_continued(form):
    """TRL knows no variant of it for training, and it drops what stands before </think>."""
    fast = tokenizer("deepseek_r1_distill")
    fast.chat_template = "{# ours #}" + fast.chat_template
    output = tokenize_with_offsets(row(form), fast)[0]
    assert fast.decode(output["prompt_ids"]).endswith("<｜Assistant｜><think>\n")
    expected = "2 + 3 = 5.\n</think>\n\nThe answer is 5.<｜end▁of▁sentence｜>"
    assert fast.decode(output["chosen_ids"]) == expected
    assert key_text(row(form), fast, "rejected") == ["6", "6"]


@pytest.mark.parametrize("form", ["spaced", "reasoning_content"])
def test_a_template_that_loses_thoughts_in_any_form_is_refused(form):
    fast = tokenizer("llama3")
    fast.chat_template = fast.chat_template.replace("message['content']", "message['content'].split('</think>')[-1]")
    with pytest.raises(InputError, match="leaves out or rewrites the assistant's thoughts"):
        tokenize_with_offsets(row(form), fast)


def test_a_chain_without_thoughts_closes_those_that_the_prompt_opens():
    fast = tokenizer("deepseek_r1_distill")
    output, _, notes = tokenize_with_notes(row("plain"), fast)
    assert fast.decode(output["prompt_ids"]).endswith("<｜Assistant｜><think>\n")
    assert fast.decode(output["chosen_ids"]).startswith("\n</think>\n\n2 + 3 = 5.")
    assert "their thoughts end at once" in notes[0]


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "JSON text"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "gptoss"])
def test_tools_and_their_results(name, as_text, tmp_path):
    fast = tokenizer(name)
    tools = json.dumps([TOOL]) if as_text else [TOOL]
    pair = {"prompt": QUESTION, "chosen": with_tools(5), "rejected": with_tools(6), "tools": tools}
    assert ours([pair], fast) == trls([pair], fast, tmp_path)
    # The argument and the answer; the result of the tool is not the assistant's.
    assert key_text(pair, fast, "chosen") == ["3", "5"]
    assert key_text(pair, fast, "rejected") == ["4", "6"]
    assert "Add two numbers." in fast.decode(tokenize_with_offsets(pair, fast)[0]["prompt_ids"])


def with_call(number: int, arguments) -> list[dict]:
    first, *others = with_tools(number)
    return [
        {**first, "tool_calls": [{"type": "function", "function": {"name": "run", "arguments": arguments}}]},
        *others,
    ]


ARGUMENTS = {
    "escapes": lambda number: {"code": f'x = "a\\n"\n\treturn {number}', "path": "a\\b"},
    "a value like its key": lambda number: {"5": str(number), "b": "b"},
    "empty": lambda number: {"text": "", "b": number},
    "null": lambda number: {"text": None, "b": number},
    "none": lambda number: {},
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "gptoss", "lfm2_2_5"])
def test_arguments_of_calls_as_templates_write_them(name, arguments, tmp_path):
    """Some write JSON, and some each value as it is, or as in Python."""
    fast, make = tokenizer(name), ARGUMENTS[arguments]
    chosen, rejected = (with_call(number, make(number)) for number in (5, 6))
    pair = {"prompt": QUESTION, "chosen": chosen, "rejected": rejected, "tools": json.dumps([TOOL])}
    assert ours([pair], fast) == trls([pair], fast, tmp_path)
    assert key_text(pair, fast, "rejected") == (["6"] if arguments == "none" else ["6", "6"])


def test_arguments_that_a_dataset_fills_with_none_are_those_of_trl(tmp_path):
    fast = tokenizer("qwen3")
    rows = [
        {"prompt": QUESTION, "chosen": with_call(5, call), "rejected": with_call(6, call), "tools": json.dumps([TOOL])}
        for call in ({"a": 2}, {"query": "2 + 3"})
    ]
    assert ours(rows, fast) == trls(rows, fast, tmp_path)


# Prompts of several turns, whose earlier answers have thoughts that templates leave out of prompts

EARLIER = [*QUESTION, *chain(7, "spaced"), {"role": "user", "content": "Really?"}]


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "gemma3", "llama3"])
@pytest.mark.parametrize("form", ["plain", "spaced"])
def test_prompts_of_several_turns(name, form, tmp_path):
    fast, pair = tokenizer(name), {**row(form), "prompt": [{"role": "system", "content": "Be brief."}, *EARLIER]}
    assert ours([pair], fast) == trls([pair], fast, tmp_path)


@pytest.mark.parametrize(
    ("name", "thinks"), [("deepseek_r1_distill", "<think>\n"), ("qwen3_5_think", "<think>\n"), ("qwen3", "")]
)
def test_trls_variant_renders_the_answer_and_not_the_prompt(name, thinks):
    """The variant keeps the thoughts of earlier turns, which the prompt of a model has not."""
    fast = tokenizer(name)
    chosen, rejected = ([*chain(number, "spaced"), *EARLIER[-1:], *chain(number, "spaced")] for number in (5, 6))
    pair = {"prompt": EARLIER, "chosen": chosen, "rejected": rejected}
    output, _, notes = tokenize_with_notes(pair, fast)
    assert f"rendered by TRL's {name}_training" in notes[0]
    prompt = fast.apply_chat_template(EARLIER, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith(thinks)
    assert fast.decode(output["prompt_ids"]) == prompt
    text = fast.decode(output["chosen_ids"])
    assert text.removeprefix("<think>\n").startswith("2 + 3 = 5.\n</think>\n\nThe answer is 5.<")
    assert "7" not in text
    assert key_text(pair, fast, "rejected") == ["6", "6", "6", "6"]


def test_turns_of_the_prompt_that_the_answer_changes_are_trained_on_as_in_trl(tmp_path):
    """Qwen3 writes the thoughts of a call until the next question, which is part of these chains."""
    fast = tokenizer("qwen3")
    thinks = {"content": "<think>\nI add.\n</think>\n\n"}
    [call, result, _] = with_tools(5)
    chosen, rejected = ([*chain(number, "plain"), *QUESTION, *chain(number, "plain")] for number in (5, 6))
    prompt = [*QUESTION, call | thinks, result]
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tools": json.dumps([TOOL])}
    [note] = tokenize_with_notes(pair, fast)[2]
    assert "renders turns of the prompt in another way once a chain follows" in note
    assert ours([pair], fast) == trls([pair], fast, tmp_path)


def test_nulls_that_a_dataset_fills_in_are_said(tmp_path):
    fast = tokenizer("qwen3")
    other = {
        "type": "function",
        "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}},
    }
    pair = {"prompt": QUESTION, "chosen": with_tools(5), "rejected": with_tools(6), "tools": [TOOL]}
    dataset = Dataset.from_list([pair, {**pair, "tools": [other]}])
    notes = [tokenize_with_notes(row, fast)[2] for row in dataset]
    assert "`tools` holds null values" in notes[1][0]
    assert ours([pair, {**pair, "tools": [other]}], fast) == trls([pair, {**pair, "tools": [other]}], fast, tmp_path)
    # Files of rows keep each schema as it is.
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**pair, "tools": [tool]}) + "\n" for tool in (TOOL, other))
    )
    assert [tokenize_with_notes(row, fast)[2] for row in load_dual_cots(tmp_path / "rows.jsonl")] == [[], []]


@pytest.mark.parametrize(("name", "form"), [("nemotron_3_nano", "tight"), ("qwen3_8", "spaced"), ("qwen3_8", "tight")])
def test_thoughts_begin_once(name, form):
    """Some templates know thoughts in a field alone, and others end the prompt in the tag that begins the content."""
    fast = tokenizer(name)
    output, _, notes = tokenize_with_notes(row(form), fast)
    text = fast.decode(output["prompt_ids"] + output["chosen_ids"])
    assert (text.count("<think>"), text.count("</think>")) == (1, 1)
    assert text.endswith(f"<think>\n{fast.decode(output['chosen_ids'])}")
    assert key_text(row(form), fast, "chosen") == ["5", "5"]
    assert len(notes) == 1


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "gptoss"])
def test_arguments_as_json_text_are_those_of_trl(name, tmp_path):
    fast = tokenizer(name)
    texts = [json.dumps({"code": f'x = "a\\n"\n\treturn {number}'}) for number in (5, 6)]
    chosen, rejected = (with_call(number, text) for number, text in zip((5, 6), texts, strict=True))
    pair = {"prompt": QUESTION, "chosen": chosen, "rejected": rejected, "tools": json.dumps([TOOL])}
    assert ours([pair], fast) == trls([pair], fast, tmp_path)
    assert key_text(pair, fast, "rejected") == ["6", "6"]
    notes = tokenize_with_notes(pair, fast)[2]
    assert len(notes) == (name != "qwen3")  # it writes the text as it is
    assert all(
        "as a string in quotation marks" in note and "as a mapping instead of JSON text" in note for note in notes
    )


def test_a_template_that_refuses_arguments_as_json_text_is_named():
    pair = {"prompt": QUESTION, "chosen": with_call(5, "{}"), "rejected": with_call(6, "{}"), "tools": [TOOL]}
    with pytest.raises(InputError, match="give the `arguments` of tool calls as a mapping instead of JSON text"):
        ours([pair], tokenizer("glm4moe"))


def test_rows_without_a_prompt(tmp_path):
    fast = tokenizer("qwen3")
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    pair = {"chosen": system + chain(5, "spaced"), "rejected": system + chain(6, "spaced")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(pair) + "\n")
    [loaded] = load_dual_cots(tmp_path / "rows.jsonl")
    assert (loaded["prompt"], loaded["chosen"]) == (system, chain(5, "spaced"))
    args = DualCoTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
    dataset = Dataset.from_list([pair])
    trainer = DualCoTTrainer(
        tiny_llama(vocab_size=len(fast)), args=args, train_dataset=dataset, eval_dataset=dataset, processing_class=fast
    )
    [expected] = trls([pair], fast, tmp_path)
    for prepared in (trainer.train_dataset, trainer.eval_dataset):
        assert {name: prepared[0][name] for name in expected} == expected
    trainer.train()
    [alone] = select_rows(dataset, "chosen")
    assert (alone["prompt"], alone["chosen"], alone["rejected"]) == (system, chain(5, "spaced"), [])


def test_rows_with_none_and_columns_of_other_use(tmp_path):
    """Arrow gives every message and every row the fields of all others, as None."""
    fast = tokenizer("qwen3")
    rows = [
        row("reasoning_content", meta={"from": {"page": 1}}, rating=3.5, note=None),
        row("plain", meta={"from": {"page": None}}, rating=None, note="x"),
        {**row("spaced"), "prompt": [{"role": "system", "content": "Be brief."}, *QUESTION], "meta": None},
    ]
    assert ours(rows, fast) == trls(rows, fast, tmp_path)


def test_values_of_the_run_are_for_rows_without_their_own(tmp_path):
    fast = tokenizer("qwen3")

    def prepared(rows, **options):
        args = DualCoTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", **options)
        return prepare_for_training(Dataset.from_list(rows), fast, args, "train")[0]["prompt_ids"][:]

    off, on = {"enable_thinking": False}, {"enable_thinking": True}
    without = prepared([row("plain")])
    assert prepared([row("plain")], chat_template_kwargs=off) == prepared([row("plain", chat_template_kwargs=off)])
    assert prepared([row("plain")], chat_template_kwargs=json.dumps(off)) != without
    assert prepared([row("plain", chat_template_kwargs=on)], chat_template_kwargs=off) == without
    mixed = [row("plain", chat_template_kwargs=off), row("plain", chat_template_kwargs=None)]
    assert prepared(mixed) == [*prepared(mixed[:1]), *without]
    with pytest.raises(
        InputError, match=r"'enable_thinking' is the text 'False', .* write false without quotation marks"
    ):
        prepared([row("plain")], chat_template_kwargs={"enable_thinking": "False"})
    with pytest.raises(InputError, match="has no variable 'enable_thinkin'; did you mean `enable_thinking`"):
        prepared([row("plain")], chat_template_kwargs={"enable_thinkin": False})
    plain = {"prompt": "a\n", "chosen": "It is 5.", "rejected": "It is 6."}
    with pytest.raises(InputError, match="`chat_template_kwargs` has no effect: the rows of the train dataset are"):
        prepared([plain], chat_template_kwargs=off)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ""])
def test_new_rows_are_the_same_after_saving(tmp_path, suffix):
    rows = [
        row("reasoning_content", chat_template_kwargs={"enable_thinking": True}, tools=json.dumps([TOOL])),
        {**row("reasoning_content"), "chosen": with_tools(5), "rejected": with_tools(6), "tools": json.dumps([TOOL])},
    ]
    rows[1]["chat_template_kwargs"] = None
    fast, dataset = tokenizer("qwen3"), Dataset.from_list(rows)
    save_dual_cots(dataset, tmp_path / f"rows{suffix}")
    again = load_dual_cots(tmp_path / f"rows{suffix}")
    assert [tokenize_with_offsets(row, fast) for row in again] == [tokenize_with_offsets(row, fast) for row in dataset]


# A prefix that both chains continue, as in Math-Step-DPO

PREFIX = "First, 2 + 3 is asked. "


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("included", [False, True], ids=["before", "at the beginning"])
def test_a_prefix_goes_on_the_prompt(name, included):
    fast = tokenizer(name)
    texts = ["Then 2 + 3 = 5.", "Then 2 + 3 = 6."]
    chosen, rejected = ([{"role": "assistant", "content": (PREFIX if included else "") + text}] for text in texts)
    pair = {"prompt": QUESTION, "chosen": chosen, "rejected": rejected, "prefix": PREFIX}
    output = tokenize_with_offsets(pair, fast)[0]
    assert fast.decode(output["prompt_ids"]).rstrip().endswith(PREFIX.rstrip())
    assert fast.decode(output["chosen_ids"]).lstrip().startswith("Then 2 + 3 = 5.")
    assert key_text(pair, fast, "rejected") == ["6"]


def test_a_prefix_of_plain_rows_is_part_of_the_prompt(tmp_path):
    fast = tokenizer("qwen3")
    pair = {"prompt": "What is 2 + 3?\n", "chosen": "Then 2 + 3 = 5.", "rejected": "Then 2 + 3 = 6.", "prefix": PREFIX}
    whole = {**pair, "prompt": pair["prompt"] + PREFIX}
    del whole["prefix"]
    assert ours([pair], fast) == trls([whole], fast, tmp_path)
    assert key_text(pair, fast, "chosen") == ["5"]


BAD = {
    "one side": ({"prefix": "2 + 3 = 5."}, "row 1, prefix: chosen begins with '2 + 3 = 5.' and rejected does not"),
    "whole chain": (
        {"chosen": [{"role": "assistant", "content": "2 + 3"}], "prefix": "2 + 3"},
        "row 1, prefix: is the whole of chosen, so that nothing is left",
    ),
    "number": ({"prefix": 3}, "row 1, prefix: must be text, got 3"),
    "tools": ({"tools": "[{"}, "row 1, tools: is text that is not JSON"),
    "tool": ({"tools": {"name": "add"}}, "row 1, tools: must be a list of JSON schemas"),
    "values": ({"chat_template_kwargs": [True]}, "row 1, chat_template_kwargs: must be a mapping"),
    "no tools": (
        {"chosen": with_tools(5), "rejected": with_tools(6)},
        "row 1, tools: is missing or empty, but the messages call tools",
    ),
    "thoughts": (
        {"chosen": chain(5, "thinking"), "prefix": "So "},
        "row 1, prefix: cannot stand before thoughts in a field of their own",
    ),
    "field": (
        {"chosen": [{"role": "assistant", "content": "5", "reasoning_content": 5}]},
        "row 1, chosen: `reasoning_content` must be text, got 5",
    ),
    "first turn": ({"chosen": [*QUESTION, *chain(5, "plain")]}, "row 1, chosen: must begin and end with an assistant"),
    "last turn": ({"prompt": [*QUESTION, *chain(5, "plain")]}, "goes into the column `prefix`"),
    "nothing shared": ({"prompt": None, "chosen": chain(5, "plain")}, "row 1, prompt: "),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_are_wrong_are_named(tmp_path, name):
    columns, message = BAD[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("plain") | columns) + "\n")
    with pytest.raises(InputError) as error:
        load_dual_cots(tmp_path / "rows.jsonl")
    assert message in str(error.value)
