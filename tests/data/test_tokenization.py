import subprocess
import sys
from pathlib import Path

import pytest
import trl
from conftest import CHAT_TEMPLATE, ROWS, conversational
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from edit_trl import DualCoTConfig
from edit_trl.common.errors import InputError
from edit_trl.data.preparation import RowPreparation, prepare_dual_cots, prepare_for_training
from edit_trl.data.tokenization import tokenize_dual_cot, tokenize_with_notes, tokenize_with_offsets
from edit_trl.models.chat_templates import render

CJK_ROW = {
    "prompt": "箱に りんごが🍎 3個と みかんが 4個。全部で何個？\n",
    "chosen": "りんご🍎は3個。みかん🍊は4個。3 + 4 = 7個。Therefore, the answer is 7.",
    "rejected": "りんご🍎は3個。みかん🍋は4個。3 + 4 = 8個。Therefore, the answer is 8.",
}


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: lower-cases, and puts special tokens around."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[EOS]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", special.index("[CLS]"))]
    )
    return _wrap(tokenizer, eos_token="[EOS]", pad_token="[PAD]", unk_token="[UNK]")


def sentence_piece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's: a unigram model over text whose spaces are ▁, with byte fallback off."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(_texts(), trainer)
    return _wrap(tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _texts() -> list[str]:
    return [text for row in [*ROWS, CJK_ROW] for text in (row["prompt"], row["chosen"], row["rejected"])]


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(params=["byte_level", "word_piece", "sentence_piece", "smollm2"])
def any_tokenizer(request, tokenizer):
    return {
        "byte_level": lambda: tokenizer,
        "word_piece": word_piece_tokenizer,
        "sentence_piece": sentence_piece_tokenizer,
        "smollm2": lambda: request.getfixturevalue("smollm2_tokenizer"),
    }[request.param]()


def key_texts(row: dict, tokenizer, side: str, method: str = "words") -> list[str]:
    """The chain's characters under each run of key tokens, found without the code under test's offsets."""
    output = tokenize_dual_cot(row, tokenizer, key_step_method=method)
    ids, mask = output[f"{side}_ids"], output[f"{side}_key_mask"]
    runs: list[list[int]] = []
    for position, (token, key) in enumerate(zip(ids, mask, strict=True)):
        if key and position and mask[position - 1]:
            runs[-1].append(token)
        elif key:
            runs.append([token])
    return [tokenizer.decode(run).strip() for run in runs]


@pytest.mark.parametrize("make", [dict, conversational], ids=["plain", "conversational"])
def test_marks_the_words_that_differ(any_tokenizer, make):
    row = make(ROWS[1])  # 12 - 5 = 7 against 8, and the answer
    assert key_texts(row, any_tokenizer, "chosen") == ["7", "7"]
    assert key_texts(row, any_tokenizer, "rejected") == ["8", "8"]


@pytest.mark.parametrize("make", [dict, conversational], ids=["plain", "conversational"])
@pytest.mark.parametrize("method", ["edit", "words", "fork", "reference"])
def test_masks_fit_their_ids(any_tokenizer, make, method):
    for row in ROWS:
        output = tokenize_dual_cot(make(row), any_tokenizer, key_step_method=method)
        for side in ("chosen", "rejected"):
            lengths = {len(output[f"{side}_{name}"]) for name in ("ids", "key_mask", "fork_mask")}
            assert len(lengths) == 1
            assert any(output[f"{side}_key_mask"])
            assert not output[f"{side}_key_mask"][-1]  # EOS, or the template's end of turn
        fork = output["fork"]
        assert output["chosen_ids"][:fork] == output["rejected_ids"][:fork]
        assert output["chosen_ids"][fork] != output["rejected_ids"][fork]


@pytest.mark.parametrize("make", [dict, conversational], ids=["plain", "conversational"])
def test_splits_as_dpo_trainer_does(any_tokenizer, make, model, tmp_path):
    rows = [{k: v for k, v in make(row).items() if k in ("prompt", "chosen", "rejected")} for row in ROWS]
    model.resize_token_embeddings(len(any_tokenizer))
    args = DPOConfig(str(tmp_path), bf16=False, report_to="none", max_length=None)
    trainer = DPOTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=any_tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),  # no reference model
    )
    for row, expected in zip(rows, trainer.train_dataset, strict=True):
        output = tokenize_dual_cot(row, any_tokenizer)
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert output[name] == expected[name]


def test_eos_is_a_completion_token(tokenizer):
    output = tokenize_dual_cot(ROWS[0], tokenizer)
    assert output["chosen_ids"][-1] == output["rejected_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("make", [dict, conversational], ids=["plain", "conversational"])
def test_multi_byte_text(tokenizer, smollm2_tokenizer, make):
    # A byte-level tokenizer cuts 🍊 and 🍋 (4 bytes each, 3 of them shared) into several tokens; all of
    # the character is key, and none of its neighbours.
    for any_byte_level in (tokenizer, smollm2_tokenizer):
        assert key_texts(make(CJK_ROW), any_byte_level, "chosen") == ["🍊", "7", "7"]
        assert key_texts(make(CJK_ROW), any_byte_level, "rejected") == ["🍋", "8", "8"]


def test_spans_of_the_row(any_tokenizer):
    row = ROWS[0] | {"chosen_key_spans": [[32, 37]], "rejected_key_spans": [[32, 37]]}
    assert row["chosen"][32:37] == "2 + 1"
    marked = "".join("".join(key_texts(row, any_tokenizer, "chosen", "spans")).split())
    assert marked == "2+1"
    assert "".join("".join(key_texts(row, any_tokenizer, "rejected", "spans")).split()) == "2*1"


def test_shared_tail_stays_unmarked_at_different_lengths(tokenizer):
    """The authors align sequences padded to one length, which marks a shared tail as key."""
    row = {
        "prompt": "Count.\n",
        "chosen": "One and two. So it is 2. Therefore, the answer is as said.",
        "rejected": "One and two and three and four and five. So it is 2. Therefore, the answer is as said.",
    }
    for method in ("edit", "words", "fork", "reference"):
        output = tokenize_dual_cot(row, tokenizer, key_step_method=method)
        tail = len(tokenizer(". So it is 2. Therefore, the answer is as said.")["input_ids"])
        for side in ("chosen", "rejected"):
            assert not any(output[f"{side}_key_mask"][-tail:])
        assert any(output["rejected_key_mask"])


def test_chain_that_stands_in_the_prompt_too(tokenizer):
    row = conversational(ROWS[1])
    row["prompt"] = [{"role": "user", "content": f"Is this right? {ROWS[1]['chosen']} Do it again."}]
    assert key_texts(row, tokenizer, "chosen") == ["7", "7"]


def test_fork_mask_ends_with_the_step(tokenizer):
    output = tokenize_dual_cot(ROWS[0], tokenizer)
    marked = [t for t, key in zip(output["rejected_ids"], output["rejected_fork_mask"], strict=True) if key]
    # "2 * 1 = 2" differs in the operator and the result; the answer in the next sentence is left out.
    assert "".join(tokenizer.decode(marked).split()) == "*2"
    assert sum(output["rejected_key_mask"]) > len(marked)


# Preparing a dataset


def prepare(rows, tokenizer, **options):
    return prepare_dual_cots(Dataset.from_list(rows), RowPreparation(tokenizer, **options))


def test_keeps_row_numbers_and_counts(tokenizer):
    same_words = {"prompt": "Hi.\n", "chosen": "So: one.", "rejected": "So:  one."}  # a space apart
    prepared, report = prepare([ROWS[0], same_words, ROWS[1]], tokenizer)
    assert prepared["row"][:] == [1, 3]
    assert prepared["row_id"][:] == ["robe", "apples"]
    assert (report.rows, report.kept, report.dropped) == (3, 2, {"no key token": 1})
    assert "2 of 3 pairs kept; 1 dropped: no key token; key fraction 0." in str(report)


def test_drops_by_key_fraction(tokenizer):
    unlike = {"prompt": "Hi.\n", "chosen": "All is one here.", "rejected": "Two were never quite there."}
    _, report = prepare([ROWS[1], unlike], tokenizer, max_key_fraction=0.5)
    assert report.dropped == {"key fraction over 0.5": 1}


def test_drops_rows_over_max_length(tokenizer):
    lengths = [len(tokenize_dual_cot(row, tokenizer)["prompt_ids"]) for row in ROWS]
    output = tokenize_dual_cot(ROWS[2], tokenizer)
    fits = lengths[2] + max(len(output["chosen_ids"]), len(output["rejected_ids"]))
    long = ROWS[2] | {"chosen": ROWS[2]["chosen"] + " Indeed.", "id": "long"}
    prepared, report = prepare([ROWS[2], long], tokenizer, max_length=fits)
    assert prepared["row_id"][:] == ["boolean"]
    assert report.dropped == {f"longer than max_length={fits}": 1}


def test_truncates_and_says_how_many_key_tokens_went(tokenizer):
    output = tokenize_dual_cot(ROWS[1], tokenizer)
    prompt = len(output["prompt_ids"])
    first_key = output["chosen_key_mask"].index(True)
    total = sum(output["chosen_key_mask"]) + sum(output["rejected_key_mask"])
    prepared, report = prepare([ROWS[1]], tokenizer, max_length=prompt + first_key + 1, truncate_long=True)
    assert len(prepared["chosen_ids"][0]) == len(prepared["chosen_key_mask"][0]) == first_key + 1
    assert report.truncated == 1
    assert report.truncated_key_tokens == total - 2  # one key token is left on each side
    assert f"1 truncated, {total - 2} key tokens cut off" in str(report)


SEVERAL = ROWS[0] | {
    "rejected": [ROWS[0]["rejected"], "White: 2 / 2 = 1 bolt. In total 2 + 1 = 4 bolts. Therefore, the answer is 4."]
}


@pytest.mark.parametrize("form", [dict, conversational], ids=["plain", "conversational"])
def test_several_wrong_chains_are_several_pairs(tokenizer, form):
    chains = SEVERAL["rejected"]
    rows = [form(row | {"rejected": chain}) for row, chain in ((SEVERAL, chains[0]), (SEVERAL, chains[1]))]
    several = form(SEVERAL)
    if form is conversational:
        several["rejected"] = [row["rejected"] for row in rows]
    other = form(ROWS[1])
    other["rejected"] = [other["rejected"]]
    prepared, report = prepare([several, other], tokenizer)
    assert prepared["row"][:] == [1, 1, 2]
    assert prepared["row_id"][:] == ["robe", "robe", "apples"]
    assert report.kept == 3
    for pair, row in zip(prepared, rows, strict=False):
        expected = tokenize_dual_cot(row, tokenizer)
        assert {name: pair[name] for name in expected} == expected


def test_spans_of_several_wrong_chains(tokenizer):
    plus, three = (SEVERAL["chosen"].index(text) for text in ("+", "3 bolts"))
    spans = [[[plus, plus + 1]], [[three, three + 1]]]
    spans = {"chosen_key_spans": spans, "rejected_key_spans": spans}
    prepared, _ = prepare([SEVERAL | spans], tokenizer, key_step_method="spans")
    marked = [
        tokenizer.decode([token for token, key in zip(*columns, strict=True) if key]).strip()
        for columns in zip(prepared["chosen_ids"], prepared["chosen_key_mask"], strict=True)
    ]
    assert marked == ["+", "3"]


PREPARE = """
import sys, time
from datasets import Dataset, load_from_disk
sys.path.insert(0, {tests!r})
from conftest import ROWS, byte_level_tokenizer
import datasets, edit_trl.data.preparation as t
datasets.config.HF_DATASETS_CACHE = {cache!r}
tokenizer = byte_level_tokenizer()
tokenizer("used before", padding=True, truncation=True, max_length=8)
original, calls = t.tokenize_rows, []
t.tokenize_rows = lambda rows, *a, **k: calls.extend(rows) or original(rows, *a, **k)
t.prepare_dual_cots(Dataset.from_list(ROWS), t.RowPreparation(tokenizer, {method!r}))
print("CALLS", len(calls))
"""


def test_a_second_run_tokenizes_nothing(tmp_path):
    """In a process of its own each, from rows in memory."""

    def calls(method: str) -> int:
        code = PREPARE.format(tests=str(Path(__file__).parents[1]), cache=str(tmp_path), method=method)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout.split("CALLS ")[1])

    assert [calls("words"), calls("words"), calls("edit")] == [4, 0, 4]


def test_several_processes(tokenizer):
    rows = Dataset.from_list([row | {"id": f"{row['id']}{n}"} for n in range(5) for row in ROWS])
    alone, _ = prepare_dual_cots(rows, RowPreparation(tokenizer, "edit"))
    shared, _ = prepare_dual_cots(rows, RowPreparation(tokenizer, "edit", max_length=511), num_proc=2)
    assert shared.to_list() == alone.to_list()


# Bad input


def test_prompt_alone_over_max_length(tokenizer):
    with pytest.raises(InputError, match=r"prompt alone fills max_length=5 in 2 of 2 pairs \(rows 1, 2\)"):
        prepare(ROWS[:2], tokenizer, max_length=5)


def test_no_row_left(tokenizer):
    with pytest.raises(InputError, match=r"no pair is left to train on \(0 of 4 pairs kept; 4 dropped"):
        prepare(ROWS, tokenizer, max_key_fraction=1e-3)


def test_no_chat_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        tokenize_dual_cot(conversational(ROWS[0]), tokenizer)


def test_no_eos_token(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no EOS token"):
        tokenize_dual_cot(ROWS[0], tokenizer)


def test_template_that_rewrites_the_answer(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("m['content']", "m['content'] | upper")
    with pytest.raises(InputError, match="rewrites the assistant's text"):
        tokenize_dual_cot(conversational(ROWS[0]), tokenizer)


def test_prompt_that_merges_into_the_chain(smollm2_tokenizer):
    row = {"prompt": "t", "chosen": "he one is 1.", "rejected": "he one is 2."}
    with pytest.raises(InputError, match="shares no token"):
        tokenize_dual_cot(row, smollm2_tokenizer)


@pytest.mark.parametrize("form", ["plain", "conversational"])
def test_a_random_mask_has_as_many_tokens_anywhere_in_the_chain(form, tokenizer):
    for row in ROWS:
        row = conversational(row) if form == "conversational" else row
        words = tokenize_dual_cot(row, tokenizer)
        drawn, offsets = tokenize_with_offsets(row, tokenizer, key_step_method="random")
        for side in ("chosen", "rejected"):
            for mask in ("key_mask", "fork_mask"):
                assert sum(drawn[f"{side}_{mask}"]) == sum(words[f"{side}_{mask}"])
            outside = [start == end for start, end in offsets[side]]
            assert any(outside)
            keys = drawn[f"{side}_key_mask"]
            assert not any(key and out for key, out in zip(keys, outside, strict=True))
            assert all(key or not fork for key, fork in zip(keys, drawn[f"{side}_fork_mask"], strict=True))
        assert drawn["fork"] == words["fork"]


def test_a_random_mask_is_of_the_seed_and_the_row(tokenizer):
    masks = [
        tokenize_dual_cot(ROWS[0], tokenizer, key_step_method="random", key_step_seed=seed)["chosen_key_mask"]
        for seed in (0, 0, 1)
    ]
    assert masks[0] == masks[1] != masks[2]
    code = (
        "from conftest import ROWS, byte_level_tokenizer as t; from edit_trl.data.tokenization import *; "
        "print(tokenize_dual_cot(ROWS[0], t(), key_step_method='random')['chosen_key_mask'])"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == str(masks[0])


def test_the_seed_of_a_random_mask_is_part_of_what_is_cached(tokenizer):
    rows = Dataset.from_list(ROWS)
    first, second = (RowPreparation(tokenizer, "random", key_step_seed=seed) for seed in (0, 1))
    assert first.fingerprint(rows) != second.fingerprint(rows)
    prepared = [prepare_dual_cots(rows, of)[0]["chosen_key_mask"][:] for of in (first, second)]
    assert prepared[0] != prepared[1]


def test_spans_of_a_correct_chain_alone_are_key(tokenizer):
    row = {**ROWS[1], "rejected": ROWS[1]["chosen"], "chosen_key_spans": [[0, 3]]}
    tokens = tokenize_dual_cot(row, tokenizer, key_step_method="spans")
    kept = [i for i, key in zip(tokens["chosen_ids"], tokens["chosen_key_mask"], strict=True) if key]
    assert tokenizer.decode(kept) == "She"
    assert not any(tokens["rejected_key_mask"] + tokens["chosen_fork_mask"] + tokens["rejected_fork_mask"])
    # Other methods mark nothing in it.
    assert not any(tokenize_dual_cot(row, tokenizer, key_step_method="words")["chosen_key_mask"])
    assert not any(tokenize_dual_cot(row, tokenizer, key_step_method="random")["chosen_key_mask"])


# Chat templates that end the generation prompt with what they do not put before an answer

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
# These read the content of a message as a list of parts, and nothing of a text.
OF_PICTURES = ("idefics3", "llava_next", "smolvlm")
THOUGHTS = {
    side: f"<think>\n{ROWS[1][side].split(' Therefore')[0]}\n</think>\n\nTherefore{ROWS[1][side].split('Therefore')[1]}"
    for side in ("chosen", "rejected")
}
# Without the thoughts of the reasoning model's answer in what it renders, as DeepSeek R1's.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}User:{{ m['content'] }}{% else %}Assistant:"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:<think>\n{% endif %}"
)


def texts(row: dict, tokenizer) -> tuple[str, str]:
    """What is trained of the correct chain: its prompt and its completion."""
    output, offsets = tokenize_with_offsets(row, tokenizer)
    for side in ("chosen", "rejected"):
        content = row[side][0]["content"]
        for token, (start, end) in zip(output[f"{side}_ids"], offsets[side], strict=True):
            assert start == end or tokenizer.decode([token]) == content[start:end]
    return tokenizer.decode(output["prompt_ids"]), tokenizer.decode(output["chosen_ids"])


@pytest.mark.parametrize("name", OF_PICTURES)
def test_templates_that_read_no_text_are_refused(tokenizer, name):
    tokenizer.chat_template = next(file for file in TEMPLATES if file.stem == name).read_text()
    row = {"prompt": [{"role": "user", "content": "How many?"}]} | {
        side: [{"role": "assistant", "content": ROWS[1][side]}] for side in ("chosen", "rejected")
    }
    with pytest.raises(InputError, match="the chat template of"):
        tokenize_with_offsets(row, tokenizer)


@pytest.mark.parametrize(
    ("file", "thoughts"),
    [
        (file, thoughts)
        for file in TEMPLATES
        for thoughts in (False, True)
        if file.stem.removesuffix("_training") not in OF_PICTURES and (not thoughts or "think" in file.read_text())
    ],
    ids=lambda value: getattr(value, "stem", "thoughts" if value is True else ""),
)
def test_chains_are_trained_after_the_prompt_of_a_generation(tokenizer, file, thoughts):
    tokenizer.chat_template, tokenizer.bos_token = file.read_text(), "<|pad|>"
    row = conversational(ROWS[1] | THOUGHTS if thoughts else ROWS[1])
    prompt, completion = texts(row, tokenizer)
    given = render(tokenizer, row["prompt"], add_generation_prompt=True)
    if thoughts and file.stem.startswith("qwen3_5_nothink"):  # as in TRL, without the end of thoughts that are none
        given = given.removesuffix("\n</think>\n\n")
    assert prompt == given
    # A chain that begins as the prompt ends goes on where the prompt stops.
    chain = row["chosen"][0]["content"].removeprefix("<think>\n" if prompt.endswith("<think>\n") else "")
    if thoughts and file.stem.startswith("glm4moe"):  # moves the line breaks of thoughts
        chain = chain.replace("<think>\n", "<think>").replace("\n</think>\n\n", "</think>\n")
    assert chain in completion
    keys = key_texts(row, tokenizer, "chosen")
    assert keys == ["7", "7"]


def test_what_comes_after_an_open_thought(tokenizer):
    tokenizer.chat_template = R1
    row = conversational(ROWS[1])
    question = f"User:{ROWS[1]['prompt'].strip()}Assistant:<think>\n"
    # A chain without thoughts ends those that the prompt opens.
    assert texts(row, tokenizer) == (question, f"\n</think>\n\n{ROWS[1]['chosen']}<|im_end|>")
    thinking = conversational(ROWS[1] | THOUGHTS)
    assert texts(thinking, tokenizer) == (question, THOUGHTS["chosen"].removeprefix("<think>\n") + "<|im_end|>")
    spaced = conversational({**ROWS[1], **{side: f" \n{text}\n" for side, text in THOUGHTS.items()}})
    assert texts(spaced, tokenizer) == texts(thinking, tokenizer)
    # A closed thought that the template puts before an answer stays part of what is learned.
    tokenizer.chat_template = R1.replace("Assistant:{{", "Assistant:<think></think>{{").replace("<|im_end|>", "")
    prompt, completion = texts(row, tokenizer)
    assert (prompt, completion) == (question, f"</think>{ROWS[1]['chosen']}")


def test_a_prompt_that_would_melt_into_what_the_template_puts_after_it(smollm2_tokenizer):
    """The prompt ends within a word that the template goes on with."""
    template = smollm2_tokenizer.chat_template
    smollm2_tokenizer.chat_template = R1.replace("<think>\n", " th").replace("Assistant:", "Assistant: then:", 1)
    try:
        row = conversational(ROWS[1])
        prompt = render(smollm2_tokenizer, row["prompt"], add_generation_prompt=True)
        prompt_ids = smollm2_tokenizer(prompt)["input_ids"]
        whole = render(smollm2_tokenizer, [*row["prompt"], *row["chosen"]])
        assert whole.startswith(prompt)
        assert smollm2_tokenizer(whole)["input_ids"][: len(prompt_ids)] != prompt_ids
        output = tokenize_dual_cot(row, smollm2_tokenizer)
        assert output["prompt_ids"] == prompt_ids
        assert smollm2_tokenizer.decode(output["chosen_ids"]) == f"en:{ROWS[1]['chosen']}<|im_end|>"
        assert key_texts(row, smollm2_tokenizer, "chosen") == ["7", "7"]
    finally:
        smollm2_tokenizer.chat_template = template


def test_a_person_is_told_what_comes_before_the_chains(tokenizer, log):
    args = DualCoTConfig("unused", use_cpu=True, report_to="none")
    rows = Dataset.from_list([conversational(row) for row in ROWS])
    prepare_for_training(rows, tokenizer, args, "train")
    assert not [message for message in log if "generation prompt" in message]
    tokenizer.chat_template = R1
    prepare_for_training(rows, tokenizer, args, "train")
    [told] = [message for message in log if "generation prompt" in message]
    assert told.startswith("train dataset: the generation prompt ends with '<think>\\n', which")
    assert tokenize_with_notes(ROWS[0], tokenizer)[2] == []


def test_rows_that_a_template_refuses_are_named(tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    ) + CHAT_TEMPLATE
    rows = [conversational(row) for row in ROWS]
    for row in rows[1:3]:
        row["prompt"] = [{"role": "system", "content": "Be brief."}, *row["prompt"]]
    with pytest.raises(InputError) as error:
        prepare_dual_cots(Dataset.from_list(rows), RowPreparation(tokenizer), name="eval")
    assert str(error.value).startswith("eval dataset, rows 2, 3: the chat template of ")
    assert "(system, user): System role not supported; change them" in str(error.value)
