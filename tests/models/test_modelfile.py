"""The Modelfile of a merged model: what Ollama reads there is what the tokenizer's chat template writes."""

from importlib import resources

import pytest
from tokenizers.processors import TemplateProcessing

from edit_trl.models.modelfile import ollama_modelfile

# Written by hand from the syntax of Go templates; executed once with Go's text/template for every template of TRL.
CHATML = """FROM ./model.gguf
TEMPLATE \"\"\"{{ $last := "" }}{{ range .Messages }}\
{{ if eq .Role "system" }}<|im_start|>system
{{ .Content }}{{ $last = .Role }}{{ end }}\
{{ if eq .Role "user" }}{{ if eq $last "system" }}<|im_end|>
<|im_start|>user
{{ else }}{{ if eq $last "assistant" }}<|im_end|>
<|im_start|>user
{{ else }}<|im_start|>user
{{ end }}{{ end }}{{ .Content }}{{ $last = .Role }}{{ end }}\
{{ if eq .Role "assistant" }}<|im_end|>
<|im_start|>assistant
{{ .Content }}{{ $last = .Role }}{{ end }}\
{{ end }}{{ if ne $last "assistant" }}<|im_end|>
<|im_start|>assistant
{{ end }}\"\"\"
PARAMETER stop "<|im_end|>"
"""


def trl_template(name: str) -> str:
    return resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text("utf-8")


def test_chatml(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    modelfile = ollama_modelfile(tokenizer)
    assert modelfile.text == CHATML
    assert modelfile.notes == ()


def test_a_system_prompt_of_the_template_is_kept(tokenizer):
    tokenizer.chat_template = trl_template("qwen2_5")
    text = ollama_modelfile(tokenizer).text
    of_its_own = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    assert f"{{{{ else }}}}{of_its_own}<|im_start|>user\n{{{{ end }}}}" in text


def test_a_system_message_inside_the_first_turn_of_the_user(tokenizer):
    tokenizer.chat_template = trl_template("gemma3")
    text = ollama_modelfile(tokenizer).text
    assert '{{ if eq .Role "system" }}<start_of_turn>user\n{{ .Content }}' in text
    assert '{{ if eq $last "system" }}\n\n{{ else }}' in text
    assert "<end_of_turn>\n<start_of_turn>model\n" in text


def test_a_template_that_refuses_system_messages(tokenizer):
    tokenizer.chat_template = trl_template("gemma")
    modelfile = ollama_modelfile(tokenizer)
    assert "system" not in modelfile.text
    assert modelfile.notes == ("system messages are left out, since the chat template has no fixed place for them",)


def test_a_template_that_tells_the_date(tokenizer):
    tokenizer.chat_template = trl_template("llama3_2")
    assert ollama_modelfile(tokenizer).notes == ("the chat template tells the date; the Modelfile keeps that of today",)


@pytest.mark.parametrize("is_added", [True, False])
def test_bos_is_written_once(tokenizer, is_added):
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if is_added:
        special = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    tokenizer.chat_template = trl_template("llama3")
    text = ollama_modelfile(tokenizer).text
    assert "{{ else }}" + "<s>" * (not is_added) + "<|start_header_id|>user" in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }} {{ loop.index }}: {{ m.content }}\n{% endfor %}",  # numbers its messages
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{{ raise_exception('never') }}",
        "{% broken",
    ],
)
def test_a_template_that_cannot_be_expressed(tokenizer, template):
    tokenizer.chat_template = template
    modelfile = ollama_modelfile(tokenizer)
    assert modelfile.text == 'FROM ./model.gguf\nPARAMETER stop "<|im_end|>"\n'
    [note] = modelfile.notes
    assert note.startswith("the chat template cannot be written as a TEMPLATE of Ollama")


def test_without_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    modelfile = ollama_modelfile(tokenizer)
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in modelfile.text
    assert "no chat template" in modelfile.notes[0]


def test_text_of_the_template_is_no_syntax(tokenizer):
    """Neither of Go, which would run `{{ .System }}`, nor of the Modelfile, which three quotation marks would end."""
    hostile = '{{ "{{ .System }}\\"\\"\\"\nPARAMETER num_gpu 9\n\u200b\\\\" }}'
    tokenizer.chat_template = f"{{% for m in messages %}}{hostile}{{{{ m.content }}}}{{% endfor %}}"
    text = ollama_modelfile(tokenizer).text
    escaped = (
        r'{{ "\U0000007b\U0000007b .System \U0000007d\U0000007d\U00000022\U00000022\U00000022'
        r'\U0000000aPARAMETER num_gpu 9\U0000000a\U0000200b\U0000005c" }}{{ .Content }}'
    )
    assert escaped in text
    assert text.count('"""') == 2
    assert [line.split(" ")[0] for line in text.splitlines()] == ["FROM", "TEMPLATE", "PARAMETER"]


def test_every_token_that_ends_a_response(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end of text|>", '<"\n>']})
    ids = tokenizer.convert_tokens_to_ids(["<|end of text|>", '<"\n>', "<|im_end|>"])
    stops = [line for line in ollama_modelfile(tokenizer, ids).text.splitlines() if line.startswith("PARAMETER")]
    assert stops == ['PARAMETER stop "<|end of text|>"', 'PARAMETER stop "<|im_end|>"']
