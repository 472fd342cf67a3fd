"""Responses as text: markers of thoughts may be special tokens, and thoughts may be open when a response begins."""

import pytest
from thinking_models import taught, thinking_tokenizer

from edit_trl.common.errors import InputError
from edit_trl.models.decoding import Decoding, Generated
from edit_trl.models.generation import ModelGenerator
from edit_trl.models.responses import is_thinking, response_text

CANONICAL = "<think>\n2 + 2 = 4.\n</think>\n\nThe answer is 4."
WRITTEN = {
    "think": "<think>\n2 + 2 = 4.\n</think>\n\nThe answer is 4.",
    "mistral": "[THINK]2 + 2 = 4.[/THINK]The answer is 4.",
    "gpt_oss": (
        "<|channel|>analysis<|message|>2 + 2 = 4.<|end|><|start|>assistant<|channel|>final<|message|>The answer is 4."
    ),
    "gemma_4": "<|channel>thought\n2 + 2 = 4.<channel|>The answer is 4.",
}


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def answer(tokenizer, response, decoding, batching="padded", prompt="Sum?\n"):
    """What a model says that has learnt a response by heart."""
    model = taught(tokenizer, {prompt: response})
    generator = ModelGenerator(model, tokenizer, decoding, batching=batching)
    ((_, [[generated]]),) = generator.run([ids(tokenizer, prompt)], [[0]])
    return generated


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("markers", WRITTEN)
def test_markers_of_thoughts_survive_and_other_special_tokens_do_not(markers, special):
    tokenizer = thinking_tokenizer(markers, special=special)
    response = ids(tokenizer, WRITTEN[markers] + "<|pad|>")
    assert response_text(tokenizer, ids(tokenizer, "Sum?\n"), response) == CANONICAL


@pytest.mark.parametrize("markers", WRITTEN)
def test_thoughts_that_never_end_have_no_answer(markers):
    tokenizer, written = thinking_tokenizer(markers), WRITTEN[markers]
    begun = ids(tokenizer, written[: written.index("4.") + 2])
    assert response_text(tokenizer, [], begun) == "<think>\n2 + 2 = 4."
    assert is_thinking(tokenizer, [], begun)
    assert not is_thinking(tokenizer, [], ids(tokenizer, written))


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("2 + 2 = 4.\n</think>\n\nThe answer is 4.", CANONICAL),
        ("<think>\n2 + 2 = 4.\n</think>\n\nThe answer is 4.", CANONICAL),
        ("2 + 2 = 4. The answer is 4.", "<think>\n2 + 2 = 4. The answer is 4."),
        ("\n</think>\n\nThe answer is 4.", "The answer is 4."),
    ],
)
def test_a_prompt_may_have_begun_the_thoughts(response, text):
    tokenizer = thinking_tokenizer("think")
    prompt = ids(tokenizer, "<|im_start|>assistant\n<think>\n")
    assert response_text(tokenizer, prompt, ids(tokenizer, response)) == text


def test_a_response_without_thoughts_is_as_before():
    tokenizer = thinking_tokenizer("think")
    prompt = ids(tokenizer, "<think>\n\n</think>\n\n")
    assert response_text(tokenizer, prompt, ids(tokenizer, " The answer<|pad|> is 4. ")) == "The answer is 4."
    assert not is_thinking(tokenizer, prompt, ids(tokenizer, "The answer"))


def test_a_model_says_its_thoughts():
    tokenizer = thinking_tokenizer("gpt_oss")
    said = answer(tokenizer, WRITTEN["gpt_oss"], Decoding(60))
    assert said == Generated(CANONICAL, len(ids(tokenizer, WRITTEN["gpt_oss"])) + 1, cut_off=False)


@pytest.mark.parametrize("batching", ["padded", "continuous"])
def test_thoughts_longer_than_their_limit_are_cut_off(batching):
    tokenizer = thinking_tokenizer("think")
    thoughts = "<think>\n2 + 2 = 4."
    length = len(ids(tokenizer, thoughts))
    model = taught(tokenizer, {"Sum?\n": CANONICAL, "What?\n": "The answer is 4."})
    prompts = [ids(tokenizer, "Sum?\n"), ids(tokenizer, "What?\n")]

    def run(limit):
        decoding = Decoding(60, max_thinking_tokens=limit)
        generator = ModelGenerator(model, tokenizer, decoding, batching=batching)
        ((_, [[first], [second]]),) = generator.run(prompts, [[0, 1]])
        assert (second.text, second.cut_off) == ("The answer is 4.", False)  # it has none
        return first

    assert run(length) == Generated(thoughts, length, cut_off=True)
    enough = run(len(ids(tokenizer, CANONICAL)) - 2)
    assert (enough.text, enough.cut_off) == (CANONICAL, False)


def test_generation_ends_where_thoughts_are_too_long():
    tokenizer = thinking_tokenizer("think")
    prompts = [ids(tokenizer, "Sum?\n"), ids(tokenizer, "Sum? Sum?\n")]
    engine = ModelGenerator(taught(tokenizer, {"Sum?\n": CANONICAL}), tokenizer, Decoding()).engine
    opened = [[*prompt, *ids(tokenizer, "<think>\n")] for prompt in prompts]
    assert {len(row) for row in engine.generate(opened, Decoding(60, max_thinking_tokens=3))} == {3}


def test_a_limit_without_effect_is_refused():
    with pytest.raises(InputError, match="`max_thinking_tokens: 256` has no effect with `max_new_tokens: 256`"):
        Decoding(256, max_thinking_tokens=256)
    with pytest.raises(InputError, match="`max_thinking_tokens` must be at least 1, got 0"):
        Decoding(256, max_thinking_tokens=0)
