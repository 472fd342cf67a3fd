"""Key steps: hand-worked alignments, words, steps, spans, tokenizers of four kinds, and properties."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROWS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edit_trl.common.errors import InputError
from edit_trl.common.steps import WORD, words_of
from edit_trl.key_steps import Chain, KeySteps, fork_scope, key_step_masks, locate_key_steps, mark, masks_from_spans

PRMBENCH = Path(__file__).parents[2] / "shared" / "data" / "key_steps" / "prmbench_dev.jsonl"


def bits(mask: list[bool]) -> str:
    """[True, False] -> "10", so that expected masks stay readable."""
    assert {type(key) for key in mask} <= {bool}
    return "".join(map(str, map(int, mask)))


def texts_of(spans: list[tuple[int, int]], text: str) -> list[str]:
    return [text[start:end] for start, end in spans]


def marked(chosen: str, rejected: str, method: str = "words") -> tuple[list[str], list[str]]:
    steps = locate_key_steps(chosen, rejected, method=method)
    return texts_of(steps.chosen_spans, chosen), texts_of(steps.rejected_spans, rejected)


# Token ids


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_mask", "rejected_mask"),
    [
        ([1, 2, 3], [1, 2, 3], "000", "000"),
        ([1, 2, 3], [1, 9, 3], "010", "010"),  # replaced
        ([1, 2, 3], [1, 3], "010", "00"),  # deleted: the wrong side has no key token
        ([1, 3], [1, 2, 3], "00", "010"),
        ([1, 1], [1, 1, 1], "00", "001"),  # prefix and suffix would overlap
        ([1, 1, 1], [1, 1], "001", "00"),
        ([], [4, 5], "", "11"),
        ([], [], "", ""),
        ([1, 2], [3, 4, 5], "11", "111"),  # nothing shared
        # A shared tail at different lengths stays unmarked (padded, it would be repaid in pad tokens).
        ([1, 2, 3, 4, 5], [1, 9, 8, 7, 3, 4, 5], "01000", "0111000"),
        # "9 1 1" -> "8 1" costs 2 in two ways; the shared end must be kept.
        ([9, 1, 1], [8, 1], "110", "10"),
    ],
)
def test_edit_by_hand(chosen, rejected, chosen_mask, rejected_mask):
    steps = key_step_masks(chosen, rejected)
    assert (bits(steps.chosen), bits(steps.rejected)) == (chosen_mask, rejected_mask)
    assert steps.chosen_spans is None
    assert steps.rejected_spans is None


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_mask", "rejected_mask"),
    [
        ([1, 2, 3], [1, 9, 3], "010", "010"),
        # D("9 1 1", "8 1") = 2. Walking back from the end, deleting the last 1 keeps the cost minimal
        # and comes first in the authors' code: the shared tail is marked. From the other side the
        # last 1 is inserted, the 1 before it kept and the 8 replaced.
        ([9, 1, 1], [8, 1], "101", "10"),
        ([1, 2, 3, 4, 5], [1, 9, 8, 7, 3, 4, 5], "01000", "0111000"),
        ([], [4], "", "1"),
        ([1, 1], [1, 1, 1], "00", "001"),
    ],
)
def test_reference_by_hand(chosen, rejected, chosen_mask, rejected_mask):
    steps = key_step_masks(chosen, rejected, "reference")
    assert (bits(steps.chosen), bits(steps.rejected)) == (chosen_mask, rejected_mask)


@pytest.mark.parametrize("method", ["edit", "reference"])
def test_arrays_and_tensors_of_ids(method):
    expected = key_step_masks([1, 2, 3], [1, 3], method)
    assert key_step_masks(np.array([1, 2, 3]), np.array([1, 3]), method) == expected
    assert key_step_masks(torch.tensor([1, 2, 3]), torch.tensor([1, 3]), method) == expected


def test_key_fraction():
    assert key_step_masks([1, 2, 3, 4], [1, 9, 9, 3, 4, 5]).key_fraction == 4 / 10  # 2 | 9 9, 5
    assert KeySteps([], []).key_fraction == 0.0


# The alignment against a table of distances


def distance_table(first: list[int], second: list[int]) -> list[list[int]]:
    table = [[i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = min(table[i][j + 1] + 1, table[i + 1][j] + 1, table[i][j] + (a != b))
    return table


def alignment_cost(steps: KeySteps) -> int:
    """Edits that the masks stand for: between two kept tokens, as many as the longer run of key ones."""
    runs = [[len(run) for run in bits(mask).split("0")] for mask in (steps.chosen, steps.rejected)]
    return sum(map(max, *runs))


def shared(first: list[int], second: list[int]) -> int:
    """The number of leading items that are equal."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


def random_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(7)
    # A small alphabet makes ties; the last pairs are longer than one and two machine words.
    pairs = [tuple([rng.randrange(3) for _ in range(rng.randrange(10))] for _ in range(2)) for _ in range(count)]
    for length in (64, 65, 130, 200):
        chosen = [rng.randrange(20) for _ in range(length)]
        pairs.append((chosen, [t if rng.random() > 0.3 else rng.randrange(20) for t in chosen[3:]]))
    return pairs


def test_edit_is_a_minimum_alignment_that_keeps_equal_tokens():
    for chosen, rejected in random_pairs(600):
        steps = key_step_masks(chosen, rejected)
        kept = [t for t, key in zip(chosen, steps.chosen, strict=True) if not key]
        assert kept == [t for t, key in zip(rejected, steps.rejected, strict=True) if not key]
        assert alignment_cost(steps) == distance_table(chosen, rejected)[-1][-1]
        # The shared start, and then as much of the shared end as is left, is never key.
        start = shared(chosen, rejected)
        end = shared(chosen[start:][::-1], rejected[start:][::-1])
        for mask in (steps.chosen, steps.rejected):
            assert not any(mask[:start] + mask[len(mask) - end :])


def authors_mask(own: list[int], other: list[int]) -> list[bool]:
    """The authors' table and walk: delete, else insert, else keep or replace; prefix taken off."""
    prefix = shared(own, other)
    table = distance_table(own[prefix:], other[prefix:])
    mask = [False] * len(own)
    i, j = len(own) - prefix, len(other) - prefix
    while i or j:
        if i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
            mask[prefix + i] = True
        elif j and table[i][j] == table[i][j - 1] + 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            mask[prefix + i] = own[prefix + i] != other[prefix + j]
    return mask


def test_reference_breaks_ties_as_the_authors_do():
    differs = 0
    for chosen, rejected in random_pairs(600):
        steps = key_step_masks(chosen, rejected, "reference")
        assert steps.chosen == authors_mask(chosen, rejected)
        assert steps.rejected == authors_mask(rejected, chosen)
        differs += steps != key_step_masks(chosen, rejected)
    assert differs > 50  # else the ties would not have been tried


# Words


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_words", "rejected_words"),
    [
        ("so 5 + 13 = 18.", "so 5 + 12 = 17.", ["13", "18"], ["12", "17"]),
        ("It is 3.5 kg.", "It is 3.25 kg.", ["3.5"], ["3.25"]),
        ("He pays $1,250.50", "He pays $1,350.50", ["1,250.50"], ["1,350.50"]),
        ("at (1,2)", "at (1,3)", ["2"], ["3"]),  # a coordinate, not a thousand
        ("18.", "18.5", ["18."], ["18.5"]),  # the number changed as a whole
        ("She doesn't sell 4", "She does sell 4", ["doesn't"], ["does"]),
        ("True and not False", "True and False", ["not"], []),
        ("a\nb  c", "a b c", [], []),  # white space is not a word
        ("x = 1\ny = 2", "x = 3\ny = 4", ["1", "2"], ["3", "4"]),
        ("end 1\n2 go", "end 3\n4 go", ["1", "2"], ["3", "4"]),  # a span stays on its line
        ("we add both now", "we take one now", ["add both"], ["take one"]),  # neighbours are merged
        ("答案是十八。", "答案是十二。", ["八"], ["二"]),
        ("she 👩‍💻 won", "she 👩‍🔬 won", ["👩‍💻"], ["👩‍🔬"]),
        ("ok 👍🏽 go", "ok 👍🏿 go", ["👍🏽"], ["👍🏿"]),
        ("in 🇩🇪🇫🇷 now", "in 🇩🇪🇮🇹 now", ["🇫🇷"], ["🇮🇹"]),
        ("cafe\u0301 bar", "cafe bar", ["cafe\u0301"], ["cafe"]),
        ("कीमत दो है", "कीमत तीन है", ["दो"], ["तीन"]),  # vowel signs belong to their word
    ],
)
def test_words(chosen, rejected, chosen_words, rejected_words):
    assert marked(chosen, rejected) == (chosen_words, rejected_words)


def test_without_a_tokenizer_masks_are_over_words():
    steps = locate_key_steps("2 + 3 = 5.", "2 * 3 = 6.")
    assert (bits(steps.chosen), bits(steps.rejected)) == ("010010", "010010")
    assert (steps.chosen_spans, steps.rejected_spans) == ([(2, 3), (8, 9)], [(2, 3), (8, 9)])
    assert locate_key_steps("2 + 3 = 5.", "2 * 3 = 6.", method="edit") == steps


def test_identical_chains_have_no_key_step():
    chain = "So 5 + 13 = 18. Therefore, the answer is 18."
    for method in ("edit", "words", "fork", "reference"):
        steps = locate_key_steps(chain, chain, method=method)
        assert steps.key_fraction == 0
        assert steps.chosen_spans == steps.rejected_spans == []


def test_only_added_words_leave_the_other_side_without_key_tokens():
    assert marked("He has 5 apples.", "He has 5 red apples.") == ([], ["red"])


def test_long_degenerate_text_is_quick():
    text = "." * 3000 + "a'" * 3000 + "\u0301" * 3000 + "1," * 3000
    assert marked(text + " x", text + " y", "fork") == (["x"], ["y"])


# The fork

STEPS = (
    "Tom has 5 apples. He buys 3 more, so 8. Therefore, the answer is 8.",
    "Tom has 5 apples. He buys 4 more, so 9. Therefore, the answer is 9.",
)


def test_fork_keeps_the_step_in_which_the_chains_part():
    assert marked(*STEPS) == (["3", "8", "8"], ["4", "9", "9"])
    assert marked(*STEPS, "fork") == (["3", "8"], ["4", "9"])


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_words", "rejected_words"),
    [
        ("a 1\nb 2", "a 3\nb 4", ["1"], ["3"]),  # a line is a step
        ("it is 3.5 or 2. So 2.", "it is 4.5 or 3. So 3.", ["3.5", "2"], ["4.5", "3"]),
        ("buy 1 (e.g. 2). So 3", "buy 4 (e.g. 5). So 6", ["1", "2"], ["4", "5"]),
        ("1. Add 2.\n", "2. Add 3.\n", ["1", "2"], ["2", "3"]),  # a list's number is no sentence
        ('He said "5." Then 6.', 'He said "7." Then 8.', ["5"], ["7"]),
        ("它是3。所以4。", "它是5。所以6。", ["3"], ["5"]),
        ("Is it 3? No 4!", "Is it 5? No 6!", ["3"], ["5"]),
        # A step left out: the wrong chain goes on with its next one, which is shared.
        ("Add 2. Take 3. End.", "Take 3. End.", ["Add 2."], []),
        ("one two", "one", ["two"], []),  # one chain ends at the fork
        # The period is shared, so only the wrong chain has a key word in the step.
        ("5 apples. Next 1", "5 apples, so 2. Next 2", [], [", so 2"]),
    ],
)
def test_where_the_fork_ends(chosen, rejected, chosen_words, rejected_words):
    assert marked(chosen, rejected, "fork") == (chosen_words, rejected_words)


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_words", "rejected_words"),
    [
        # From where they part to the end of the step, shared words too.
        ("It is 1 + 2 = 3. So 3.", "It is 1 * 2 = 2. So 2.", ["+ 2 = 3."], ["* 2 = 2."]),
        ("Add 2. Take 3. End.", "Take 3. End.", ["Add 2."], ["Take 3."]),
        ("one two", "one", ["two"], []),
        ("same", "same", [], []),
    ],
)
def test_a_whole_step_is_marked_from_where_the_chains_part(chosen, rejected, chosen_words, rejected_words):
    assert marked(chosen, rejected, "step") == (chosen_words, rejected_words)


def test_forks_adds_the_first_key_word_of_every_later_step():
    assert marked(*STEPS, "forks") == (["3", "8", "8"], ["4", "9", "9"])
    chosen = "It is 1 + 2 = 3. Then 3 - 1 = 2 apples. No change. So 2."
    rejected = "It is 1 * 2 = 2. Then 2 - 1 = 1 apple. No change. So 1."
    assert marked(chosen, rejected) == (["+", "3", "3", "2 apples", "2"], ["*", "2", "2", "1 apple", "1"])
    assert marked(chosen, rejected, "forks") == (["+", "3", "3", "2"], ["*", "2", "2", "1"])


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_words", "rejected_words"),
    [
        ("a 1\nb 2 c 3", "a 4\nb 5 c 6", ["1", "2"], ["4", "5"]),  # a line is a step
        ("它是3。所以4和5。", "它是5。所以6和7。", ["3", "4"], ["5", "6"]),
        # The wrong chain adds a step, the one it parts with; the correct one parts with its next.
        ("Add 2. Take 3 and 4. End.", "Add 2. So 5, I think. Take 7 and 8. End.", ["3", "4"], ["So 5, I think.", "7"]),
        # The chosen side has no key word in the fork's step, and one in a later one.
        ("5 apples. Next 1 or 3", "5 apples, so 2. Next 2 or 4", ["1"], [", so 2", "2"]),
        ("one two", "one", ["two"], []),
        ("same", "same", [], []),
        ("", "a b. c d.", [], ["a b. c"]),  # adjacent words are one span
    ],
)
def test_where_steps_part(chosen, rejected, chosen_words, rejected_words):
    assert marked(chosen, rejected, "forks") == (chosen_words, rejected_words)


# Two real pairs of PRMBench (shared/data), each worked out by hand: row, marks of both sides.
REAL_PAIRS = [
    # "Find x such that sqrt(x + 7) = 9", circular, errors in steps 3 to 5: each of them is touched.
    (
        586,
        ["Now we can subtract 7 from both sides.", "Which", "And", "So"],
        ["Assume $x = 74$ and verify it solves the equation.", "Substituting", "So", "Therefore"],
    ),
    # "Factor 36 - 9x^2", cubes for squares, errors in steps 3 and 4. "Oops." is a sentence of its own.
    (
        917,
        ["still factor it", "You're", "$"],
        ["apply the difference of cubes formula here next", "Oops", "Difference"],
    ),
]


@pytest.mark.skipif(not PRMBENCH.is_file(), reason="the shared data does not stand beside the project")
@pytest.mark.parametrize(("row", "chosen_words", "rejected_words"), REAL_PAIRS)
def test_forks_of_real_pairs(row, chosen_words, rejected_words):
    pair = json.loads(PRMBENCH.read_text(encoding="utf-8").splitlines()[row])
    chosen, rejected = "\n".join(pair["correct_steps"]), "\n".join(pair["wrong_steps"])
    assert marked(chosen, rejected, "forks") == (chosen_words, rejected_words)


def test_fork_scope_of_a_mask():
    text = "so 4. Then 9\nand 7"
    offsets = [(0, 2), (2, 4), (4, 5), (5, 10), (10, 12), (12, 13), (13, 16), (16, 18), (0, 0)]
    mask = [False, True, False, False, True, False, False, True, True]
    assert bits(fork_scope(mask, offsets, text)) == "010000000"
    # From a later first key token: to the end of its line; the token without characters goes.
    mask[1] = False
    assert bits(fork_scope(mask, offsets, text)) == "000010000"
    assert bits(fork_scope([False] * 9, offsets, text)) == "0" * 9
    assert bits(fork_scope([False] * 8 + [True], offsets, text)) == "0" * 9


def test_fork_scope_looks_at_a_token_after_its_leading_newline():
    # "\nB" begins the second line; it does not end the first.
    text = "A\nB C\nD"
    offsets = [(0, 1), (1, 3), (3, 5), (5, 7)]
    assert bits(fork_scope([False, True, True, True], offsets, text)) == "0110"
    # A newline that is itself the first key token is its step.
    assert bits(fork_scope([False, True, True], [(0, 1), (1, 2), (2, 3)], text)) == "010"


# Spans and offsets


def test_masks_from_spans():
    offsets = [(0, 3), (3, 6), (6, 6), (6, 7), (7, 9), (0, 0), (9, 10), (9, 10)]
    spans = [(1, 2), (5, 7), (9, 10)]
    assert bits(masks_from_spans(spans, offsets)) == "11010011"
    assert bits(masks_from_spans([], offsets)) == "0" * 8
    assert masks_from_spans(spans, []) == []
    # Touching is not overlapping.
    assert bits(masks_from_spans([(3, 6)], [(0, 3), (3, 4), (5, 7), (6, 8)])) == "0110"


def test_given_spans():
    steps = locate_key_steps("a 12 b", "a 13", method="spans", chosen_spans=[[2, 4]], rejected_spans=[])
    assert (bits(steps.chosen), bits(steps.rejected)) == ("010", "00")
    assert (steps.chosen_spans, steps.rejected_spans) == ([(2, 4)], [])


# Tokenizers of different kinds

CORPUS = [
    "She has 18 apples and 12 pears. So 18 + 12 = 30. Therefore, the answer is 30.",
    "他有三个苹果。答案是三。",
    "I like 👩‍💻 and 👩‍🔬 here.",
    "The cost is $1,250.50 in total.\nSo we add 5 more.",
]


def fast(model, trainer, pre_tokenizer, **parts) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def byte_level_bpe(trim_offsets: bool) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["[UNK]"])
    # Digits one by one, as SmolLM2 does it.
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return fast(models.BPE(), trainer, split, post_processor=processors.ByteLevel(trim_offsets=trim_offsets))


def word_piece() -> PreTrainedTokenizerFast:
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"])
    return fast(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizer=normalizers.BertNormalizer(lowercase=True),
    )


def unigram() -> PreTrainedTokenizerFast:
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="[UNK]", special_tokens=["[UNK]"])
    # Without the second part "30." would be one token, and key as a whole.
    split = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    return fast(models.Unigram(), trainer, split)


TOKENIZERS = {
    "byte-level": lambda: byte_level_bpe(trim_offsets=False),
    "byte-level, trimmed offsets": lambda: byte_level_bpe(trim_offsets=True),
    "WordPiece": word_piece,
    "Unigram": unigram,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def key_characters(mask: list[bool], text: str, tokenizer) -> str:
    """The text under the key tokens, white space left out."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert len(mask) == len(offsets)
    places = {i for (a, b), key in zip(offsets, mask, strict=True) if key for i in range(a, b)}
    return "".join("".join(text[i] for i in sorted(places)).split())


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_key", "rejected_key"),
    [
        ("So 18 + 12 = 30. Good.", "So 18 + 17 = 35. Good.", "1230", "1735"),
        ("The cost is $1,250.50 now.", "The cost is $1,350.50 now.", "1,250.50", "1,350.50"),
        ("答案是三。", "答案是五。", "三", "五"),
        ("I like 👩‍💻 here.", "I like 👩‍🔬 here.", "👩‍💻", "👩‍🔬"),
        ("Add 5 more.\nSo 8.", "Add 5 more.\nSo 9.", "8", "9"),
    ],
)
def test_key_words_land_on_the_right_tokens(tokenizer, chosen, rejected, chosen_key, rejected_key):
    steps = locate_key_steps(chosen, rejected, tokenizer)
    assert key_characters(steps.chosen, chosen, tokenizer) == chosen_key
    assert key_characters(steps.rejected, rejected, tokenizer) == rejected_key


def test_fork_and_spans_with_a_tokenizer(tokenizer):
    steps = locate_key_steps(*STEPS, tokenizer, "fork")
    assert key_characters(steps.chosen, STEPS[0], tokenizer) == "38"
    assert key_characters(steps.rejected, STEPS[1], tokenizer) == "49"
    spans = {"chosen_spans": [(8, 9)], "rejected_spans": [(26, 27)]}
    steps = locate_key_steps(*STEPS, tokenizer, "spans", **spans)
    assert key_characters(steps.chosen, STEPS[0], tokenizer) == "5"
    assert key_characters(steps.rejected, STEPS[1], tokenizer) == "4"


def test_edit_aligns_the_tokenizer_s_own_tokens():
    tokenizer = byte_level_bpe(trim_offsets=False)
    chosen, rejected = "So 18 + 12 = 30.", "So 18 + 17 = 30."
    steps = locate_key_steps(chosen, rejected, tokenizer, "edit")
    ids = tokenizer([chosen, rejected], add_special_tokens=False)["input_ids"]
    assert steps.chosen == key_step_masks(*ids).chosen
    # Half a number is key: digits are tokens of their own here.
    assert texts_of(steps.chosen_spans, chosen) == ["2"]
    assert texts_of(steps.rejected_spans, rejected) == ["7"]


def test_all_bytes_of_a_character_are_key_together():
    tokenizer = byte_level_bpe(trim_offsets=False)
    chosen, rejected = "x 龍 y", "x 龜 y"  # not in the corpus: three bytes, three tokens
    steps = locate_key_steps(chosen, rejected, tokenizer)
    assert sum(steps.chosen) == sum(steps.rejected) == 3
    assert sum(locate_key_steps(chosen, rejected, tokenizer, "edit").chosen) < 3


# Bad input


@pytest.mark.parametrize("method", ["words", "fork", "spans"])
def test_methods_on_text_refuse_token_ids(method):
    with pytest.raises(InputError, match=f"{method}.*needs the chains' text.*locate_key_steps"):
        key_step_masks([1], [2], method)


def test_unknown_method():
    message = "'levenshtein'; choose one of edit, words, fork, forks, step, spans, reference, random"
    with pytest.raises(InputError, match=message):
        key_step_masks([1], [2], "levenshtein")
    with pytest.raises(InputError, match=message):
        locate_key_steps("a", "b", method="levenshtein")
    with pytest.raises(InputError, match=message):
        mark(Chain("a", [1]), Chain("b", [2]), "levenshtein")


@pytest.mark.parametrize("method", ["words", "fork", "forks", "spans"])
def test_methods_on_text_refuse_chains_without_offsets(method):
    with pytest.raises(InputError, match=f"'{method}' places key steps by character offsets"):
        mark(Chain("a", [1], key_spans=[]), Chain("b", [2], key_spans=[]), method)


@pytest.mark.parametrize("ids", [[[1, 2]], [1.0], "text", torch.tensor([[1, 2]])])
def test_ids_that_are_not_a_flat_sequence_of_integers(ids):
    with pytest.raises(InputError, match="rejected_ids must be a flat sequence of integer"):
        key_step_masks([1, 2], ids)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (None, "needs rejected_spans, got None"),
        ([(0, 5)], r"rejected_spans: \[0, 5\].*4 characters"),
        ([(-1, 1)], r"\[-1, 1\]"),
        ([(2, 2)], r"\[2, 2\] is empty"),
        ([(0, 2), (1, 3)], r"\[1, 3\].*before it \(2\)"),
        ([(2, 3), (0, 1)], r"\[0, 1\]"),
    ],
)
def test_bad_spans(spans, message):
    with pytest.raises(InputError, match=message):
        locate_key_steps("abcd", "abce", method="spans", chosen_spans=[(3, 4)], rejected_spans=spans)


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False
        name_or_path = "my-tokenizer"

    with pytest.raises(InputError, match=r"my-tokenizer.*no character offsets"):
        locate_key_steps("a", "b", Slow())


def test_importing_it_is_cheap():
    code = "import sys, edit_trl.key_steps; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_random_places_as_many_tokens_as_words_marks(tokenizer):
    chosen, rejected = ROWS[0]["chosen"], ROWS[0]["rejected"]
    words = locate_key_steps(chosen, rejected, tokenizer)
    drawn = [locate_key_steps(chosen, rejected, tokenizer, "random", seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for steps in drawn:
        assert sum(steps.chosen) == sum(words.chosen)
        assert sum(steps.rejected) == sum(words.rejected)
        assert steps.chosen_spans
        assert all(0 <= a < b <= len(chosen) for a, b in steps.chosen_spans)


@pytest.mark.parametrize(
    "text", ["", "  \n", " a b", "1,234.5 don't", "a.b\t\u00a0c \n", "x\u0301 \u4e2d\u6587 \U0001f469\u200d\U0001f4bb!"]
)
def test_words_and_their_starts(text):
    words, starts = words_of(text)
    assert list(zip(words, starts, strict=False)) == [(word[0], word.start()) for word in WORD.finditer(text)]
    assert starts[len(words) :] == (len(text),)


def test_a_key_stretch_on_several_lines_has_a_span_per_line():
    steps = locate_key_steps("a b\n\n c d e", "a e")
    assert steps.chosen_spans == [(2, 3), (6, 9)]
