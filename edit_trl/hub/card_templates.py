"""Cards from templates, which escape every value for Markdown and HTML by default."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.markdown import code, marked_block, text

if TYPE_CHECKING:
    from huggingface_hub import CardData

EDIT_CITATION = """\
@inproceedings{dai2025capture,
    title        = {Capture the Key in Reasoning to Enhance CoT Distillation Generalization},
    author       = {Dai, Chengwei and Li, Kun and Zhou, Wei and Hu, Songlin},
    year         = 2025,
    booktitle    = {Annual Meeting of the Association for Computational Linguistics},
    eprint       = {2405.19737},
}"""


def render_card(template: str, metadata: CardData, values: Mapping[str, Any]) -> str:
    """Fill in a card.

    Args:
        template: File name of the template.
        metadata: The YAML header, `{{ metadata }}` in the template.
        values: Every other name in the template. Strings are escaped.

    Returns:
        The text of the card.

    Raises:
        jinja2.UndefinedError: The template uses a name that is not in `values`.
    """
    prepared = {"metadata": Markup(metadata.to_yaml()), "edit_citation": Markup(EDIT_CITATION)}
    return _environment().get_template(template).render({**values, **prepared})


@cache
def _environment() -> Environment:
    # `ModelCard.from_template` of huggingface_hub escapes nothing and takes no environment. Jinja's autoescape covers
    # HTML only; `finalize` runs before it and escapes everything but `Markup` for Markdown too.
    environment = Environment(
        loader=PackageLoader("edit_trl.hub"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(text(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "block": _block,
        "code": lambda value: Markup(code(value)),
        "hub_link": _hub_link,
        "json": lambda value: Markup(json.dumps(value, indent=2, sort_keys=True, default=str)),
        "quoted": lambda value: Markup(json.dumps(value, ensure_ascii=False)),
    }
    environment.tests["hub_id"] = is_hub_id
    return environment


def _block(content: str, spans: Sequence[Sequence[int]] = ()) -> Markup:
    return Markup(marked_block(content, spans))


def _hub_link(name: str, kind: str = "") -> Markup:
    """Format a model or dataset: as a link if it is "namespace/name" on the Hub, as the last part if it is a path."""
    if not name:
        return Markup("a model made in memory")
    if not is_hub_id(name):
        return Markup(code(Path(name).name))
    return Markup(f"[{code(name)}](https://huggingface.co/{kind}{name})" if "/" in name else code(name))
