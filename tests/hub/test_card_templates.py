"""The templates of cards: shipped with the package, and safe by default."""

from importlib.resources import files

import jinja2
import pytest
from huggingface_hub import DatasetCardData

from edit_trl.hub import card_templates
from edit_trl.hub.card_templates import render_card

TEMPLATES = {"model_card.md", "dataset_card.md", "examples.md"}


@pytest.fixture
def rendered(monkeypatch):
    """What a template makes of `x`."""

    def render(source: str, **values) -> str:
        environment = card_templates._environment().overlay(loader=jinja2.DictLoader({"card.md": source}))
        monkeypatch.setattr(card_templates, "_environment", lambda: environment)
        return render_card("card.md", DatasetCardData(tags=["x"]), values)

    return render


def test_templates_are_shipped_with_the_package():
    assert {file.name for file in files("edit_trl.hub").joinpath("templates").iterdir()} == TEMPLATES


def test_what_is_filled_in_is_no_markup(rendered):
    evil = "<b>*x*</b> | [y](z)\n# {{ 7 * 6 }}"
    shown = "&#60;b&#62;&#42;x&#42;&#60;/b&#62; &#124; &#91;y&#93;(z) &#35; {{ 7 &#42; 6 }}"
    assert rendered("*{{ x }}*", x=evil) == f"*{shown}*"
    # Not through a macro, an expression or an item of a loop either.
    source = "{% macro m(y) %}{{ y }}{% endmacro %}{{ m(x) }},{{ x ~ '' }},{% for y in [x] %}{{ y }}{% endfor %}"
    assert rendered(source, x=evil) == f"{shown},{shown},{shown}"


def test_filters_prepare_text_in_a_form_of_their_own(rendered):
    assert rendered("{{ x | code }}", x="a`b|c\n_d_") == "`a'b¦c _d_`"
    assert rendered("{{ x | quoted }}", x='a"\n```') == r'"a\"\n```"'
    assert rendered("{{ x | block([[0, 1]]) }}", x="1 < 2") == "<pre>\n<b>1</b> &lt; 2</pre>"
    assert rendered("{{ x | hub_link }}", x="ada/base") == "[`ada/base`](https://huggingface.co/ada/base)"
    assert rendered("{{ x | hub_link }}", x="/home/ada/base") == "`base`"
    assert rendered("{{ x | json }}", x={"b": "`\n"}) == '{\n  "b": "`\\n"\n}'


def test_the_header_stays_yaml(rendered):
    assert rendered("---\n{{ metadata }}\n---\n") == "---\ntags:\n- x\n---\n"


def test_a_name_that_nothing_fills_in_is_an_error(rendered):
    with pytest.raises(jinja2.UndefinedError, match="naem"):
        rendered("{{ naem }}", name="x")
