"""Conversations as text: what a template refuses is said with its words, and what it leaves out is not lost."""

import pytest

from edit_trl.common.errors import InputError
from edit_trl.models.chat_templates import check_template, is_chat_model, render, share_template

QUESTION = [{"role": "user", "content": "What is 1 + 2?"}]

# As that of SmolVLM and Idefics 3: a text is read letter by letter, and none has a type.
IN_PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
# As that of Mistral and Gemma.
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ m['content'] }};{% endfor %}"
)


def test_a_template_is_what_the_tokenizer_makes_of_it(tokenizer):
    for add in (False, True):
        expected = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=add, tokenize=False)
        assert render(tokenizer, QUESTION, add_generation_prompt=add) == expected


def test_a_template_that_rewrites_a_question_is_used(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    assert render(tokenizer, QUESTION) == "WHAT IS 1 + 2?"


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (ALTERNATING, QUESTION * 2, r"refuses the messages \(user, user\): Conversation roles must alternate; change"),
        ("{{ messages[0]['content'] + 1 }}", QUESTION, "refuses the messages .*concatenate str"),
        ("{{ messages[0]['content'] }}{{ 1 / 0 }}", QUESTION, "refuses the messages .*division by zero"),
        ("{{ no_such_function() }}", QUESTION, "refuses the messages .*'no_such_function' is undefined"),
        (
            "x{% for m in messages %}y{% endfor %}",
            QUESTION,
            "leaves out what the messages say: 'What is 1 .*becomes 'xy'",
        ),
        (IN_PARTS, QUESTION, "leaves out what the messages say"),
        ("{{ messages | length }}\n{% if x %}", QUESTION, "is broken in line 2: Unexpected end of template"),
        ("\ud800{{ messages[0]['content'] }}", QUESTION, "surrogates not allowed"),
    ],
)
def test_what_a_template_does_not_take_is_said(tokenizer, template, messages, says):
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=says):
        render(tokenizer, messages)


def test_a_template_is_checked_without_the_messages_it_will_get(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('Give me a system message') }}"
    check_template(tokenizer)
    tokenizer.chat_template = None
    check_template(tokenizer)
    for broken in ("{% if x %}", "\ud800"):
        tokenizer.chat_template = broken
        with pytest.raises(InputError, match="chat template"):
            check_template(tokenizer)


def test_the_template_of_a_processor_is_its_tokenizers_too(tokenizer):
    from transformers import ProcessorMixin

    class Processor(ProcessorMixin):
        attributes = ("tokenizer",)
        tokenizer_class = "AutoTokenizer"

        def __init__(self, tokenizer=None, chat_template=None):
            super().__init__(tokenizer, chat_template=chat_template)

    own = tokenizer.chat_template
    assert share_template(tokenizer) is tokenizer
    assert share_template(Processor(tokenizer)).chat_template == own
    assert share_template(Processor(tokenizer, ALTERNATING)).chat_template == ALTERNATING


def test_a_chat_model_is_told_by_its_files_or_its_name(tmp_path):
    for name, expected in (("org/Qwen3-Instruct", True), ("gemma-3-1b-it", True), ("x/some-chat-7b", True)):
        assert is_chat_model(name) is expected
    assert not is_chat_model("org/exit-base")
    base, chat = tmp_path / "Some-Instruct", tmp_path / "base"
    for folder, config in ((base, "{}"), (chat, '{"chat_template": "x"}')):
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(config)
    assert not is_chat_model(str(base))
    assert is_chat_model(str(chat))
    (base / "chat_template.jinja").write_text("x")
    assert is_chat_model(str(base))
