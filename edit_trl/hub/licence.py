"""The licence of a base model, as its own card states it; none is guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.markdown import one_line

# Their terms forbid sharing what was made from the work.
FORBIDS_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-4.0")


@dataclass(frozen=True)
class Licence:
    """The licence in a card's metadata.

    Attributes:
        id: `license`; "other" if it is unknown, not one of the Hub's, or forbids sharing derivatives.
        name: `license_name`.
        link: `license_link`.
        why: A sentence for the reader: where the licence comes from, or why it is "other".
    """

    id: str
    name: str | None
    link: str | None
    why: str


@cache
def read_licence(base_model: str, revision: str | None = None) -> Licence:
    """Read the licence that a base model's card states.

    Args:
        base_model: A folder, whose README.md is read, or an id on the Hub; empty for a model made in memory.
        revision: Revision of a model on the Hub.
    """
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
    """The licence of a model that was trained from another.

    Args:
        metadata: Metadata of the base model's card.
        source: Where the metadata was read, or why it could not be read.
        base_model: The base model's name.
    """
    stated = metadata.get("license")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if not stated or not isinstance(stated, str):
        several = isinstance(stated, list) and stated
        reason = f"names several licences ({', '.join(map(str, stated))})" if several else "states no licence"
        why = f'The licence is given as "other" because the base model {base_model} {reason} ({source}). '
        return Licence("other", "unknown", None, why + "Find out what its terms allow before you share this.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", stated):
        why = f'The licence is given as "other" because what the base model {base_model} states ({source}) '
        return Licence("other", "unknown", None, why + "is no name of a licence.")
    name, link = (one_line(metadata[key]) if metadata.get(key) else None for key in ("license_name", "license_link"))
    if stated.lower() in FORBIDS_DERIVATIVES:
        why = f'The licence is given as "other" because that of the base model {base_model}, {stated}, does '
        return Licence("other", stated, link, why + "not allow sharing what was made from it.")
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
    except (ValueError, YAMLError):  # metadata that is not YAML
        return {}


def _hub_metadata(base_model: str, revision: str | None) -> tuple[dict[str, Any], str | None]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        info = HfApi().model_info(base_model, revision=revision, timeout=20)
    except (HTTPError, OSError) as error:  # refused, deleted, or no network: the new card says so
        return {}, f"its card on the Hub could not be read: {type(error).__name__}"
    return (info.card_data.to_dict() if info.card_data else {}), None
