"""The licence of a base model, as its own card states it; a licence is never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.markdown import one_line

# Licences that forbid sharing derivatives.
FORBIDS_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-4.0")


@dataclass(frozen=True)
class Licence:
    """The licence in a card's metadata.

    Attributes:
        id: `license`; "other" if it is unknown, not one of the Hub's, or forbids sharing derivatives.
        name: `license_name`.
        link: `license_link`.
        why: A sentence for the reader of the card: the origin of the licence, or why it is "other".
    """

    id: str
    name: str | None
    link: str | None
    why: str


@cache
def read_licence(base_model: str, revision: str | None = None) -> Licence:
    """Read a base model's licence from its README.md or its card on the Hub; "" is a model made in memory."""
    if not base_model:
        return licence_of({}, "it was made in memory", "of this one")
    local = Path(base_model).expanduser()
    if local.is_dir():
        return licence_of(_local_metadata(local), "its README.md", local.name)
    if is_hub_id(base_model):
        metadata, error = _hub_metadata(base_model, revision)
        return licence_of(metadata, error or "its card on the Hub", base_model)
    return licence_of({}, f"there is no {local.name} any more", local.name)


def licence_of(metadata: dict[str, Any], source: str, base_model: str) -> Licence:
    """Return the licence of a model trained from `base_model`, whose card has `metadata`.

    `source` says where the metadata was read, or why it could not be read.
    """
    other = f'The licence is given as "other" because the base model {base_model}'
    stated = metadata.get("license")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if not stated or not isinstance(stated, str):
        several = ", ".join(map(str, stated)) if isinstance(stated, list) else ""
        reason = f"names several licences ({several})" if several else "states no licence"
        why = f"{other} {reason} ({source}). Find out what its terms allow before you share this."
        return Licence("other", "unknown", None, why)
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", stated):
        return Licence("other", "unknown", None, f"{other} states no valid name of a licence ({source}).")
    name, link = (one_line(metadata[key]) if metadata.get(key) else None for key in ("license_name", "license_link"))
    if stated.lower() in FORBIDS_DERIVATIVES:
        why = f"{other} has the licence {stated}, which does not allow sharing what was made from it."
        return Licence("other", stated, link, why)
    if link and not link.startswith("https://"):
        link = f"https://huggingface.co/{base_model}/blob/main/{link}" if is_hub_id(base_model) else None
    full_name = f"{stated} ({name})" if name else stated
    why = f"The licence, {full_name}, is that of the base model {base_model} ({source})."
    return Licence(stated, name, link, why)


def _local_metadata(folder: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    readme = folder / "README.md"
    try:
        return (metadata_load(readme) or {}) if readme.is_file() else {}
    except (ValueError, YAMLError, RecursionError):  # metadata that is not YAML, or too deep for its parser
        return {}


def _hub_metadata(base_model: str, revision: str | None) -> tuple[dict[str, Any], str | None]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        card = HfApi().model_info(base_model, revision=revision, timeout=20).card_data
    except (HTTPError, OSError) as error:  # refused, deleted or no network; the new card says so
        return {}, f"its card on the Hub could not be read: {type(error).__name__}"
    return (card.to_dict() if card else {}), None
