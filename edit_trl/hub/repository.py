"""The Hugging Face Hub (L0): what of a folder may go there, and an upload that can go on.

What an upload has brought there stays: a file's content is known by its hash, so the same call after a broken
one sends only what is missing. `huggingface_hub` is slow to import, so that is done where it is used.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import is_hub_id
from edit_trl.hub.refusals import explained, patiently, whoami

RepoType = Literal["model", "dataset"]

Content = Path | bytes

# Everything of a model's folder that is uploaded; all else (checkpoints, optimizer states, pickles, journals)
# stays. Weights are safetensors alone.
WEIGHT_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
)

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "processor_config.json", "preprocessor_config.json"),
)

CARD_FILES = ("README.md", "training_curves.svg")

# Where a folder of this machine may be named; the Hub has no use for it.
_PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path", "tokenizer_file")

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")

_TEXT_FILES = (".json", ".yaml", ".md", ".jinja", ".txt", ".svg")


@dataclass(frozen=True)
class Repository:
    """A repository that may be written to.

    Attributes:
        id: "namespace/name".
        url: Its page.
        private: Whether it is.
        is_new: Whether it was made just now.
    """

    id: str
    url: str
    private: bool
    is_new: bool


def check_repo_id(repo_id: str, option: str = "--repo_id") -> None:
    """Refuse what is no "namespace/name" before anything is read or sent.

    Args:
        repo_id: The id.
        option: What the message calls it.

    Raises:
        InputError: Not such an id; the account that is logged in is named where it is known.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{option} {repo_id!r} is no id of the Hub: {error}") from error
    if "/" not in repo_id:
        name = account()
        known = f"you are logged in as {name!r}: " if name else ""
        raise InputError(f'{option} {repo_id!r} has no namespace; {known}"{name or "your-name"}/{repo_id}"')


def account(token: str | None = None) -> str | None:
    """The name that is logged in; None without a login, or where the Hub cannot be asked."""
    return (whoami(token) or {}).get("name")


def open_repository(
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Repository:
    """A repository that may be written to; made where there is none.

    Args:
        repo_id: "namespace/name".
        repo_type: `model` or `dataset`.
        private: Whether it is to be private. A new one is unless this is False; where it is None, one that
            exists is taken as it is.
        revision: A branch, made where there is none; the main one where None.
        token: The login's own where None.

    Raises:
        InputError: No login, no right to write, no network; or `private` was asked for and it is public.
    """
    from huggingface_hub import CommitOperationAdd

    check_repo_id(repo_id)
    with explained(repo_id, revision, token) as api:
        is_new = not patiently(lambda: api.repo_exists(repo_id, repo_type=repo_type))
        url = patiently(
            lambda: api.create_repo(repo_id, repo_type=repo_type, private=private is not False, exist_ok=True)
        )
        info = patiently(lambda: api.repo_info(repo_id, repo_type=repo_type))
        if private and not info.private:
            raise InputError(
                f"{repo_id} exists and is public, but was to be private; make it private in its settings on "
                "the Hub, choose another, or pass --public"
            )
        if revision not in (None, "main"):
            patiently(lambda: api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True))
        # Asks how a file would be sent, and sends none: whether the token may write is known early.
        card = CommitOperationAdd("README.md", b"---\n---\n")
        api.preupload_lfs_files(repo_id, [card], repo_type=repo_type, revision=revision)
        return Repository(repo_id, str(url), bool(info.private), is_new)


def upload(
    files: Mapping[str, Content],
    repo_id: str,
    *,
    message: str,
    repo_type: RepoType = "model",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload files to a repository as one commit; nothing of it is seen there before all have arrived.

    Args:
        files: Name in the repository -> a file here, or its content.
        repo_id: A repository that exists, see `open_repository`.
        message: Of the commit.
        repo_type: `model` or `dataset`.
        revision: The branch.
        token: The login's own where None.

    Returns:
        The page of the commit.

    Raises:
        InputError: A file that holds a token of the Hub, or the Hub's refusal.
    """
    from huggingface_hub import CommitOperationAdd

    _check_for_tokens(files, token)
    with explained(repo_id, revision, token) as api:
        # Made anew at each try, so that what has arrived meanwhile is seen to be there.
        commit = patiently(
            lambda: api.create_commit(
                repo_id,
                [CommitOperationAdd(name, content) for name, content in sorted(files.items())],
                commit_message=message,
                repo_type=repo_type,
                revision=revision,
            )
        )
    return str(commit.commit_url)


def model_files(folder: Path, base_model: str | None = None) -> dict[str, Content]:
    """What of a model's folder is uploaded: safetensors, configuration, tokenizer and card.

    Args:
        folder: With a model or an adapter.
        base_model: What an adapter's configuration calls its base; as it is there where None, but for a
            folder of this machine, of which only the name is left.

    Returns:
        Name in the repository -> the file, or its content where it named a folder of this machine.

    Raises:
        InputError: A configuration that is not JSON, or a link to a file elsewhere.
    """
    found: dict[str, Content] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not _matches(path.name, (*WEIGHT_FILES, *TOKENIZER_FILES, *CARD_FILES)):
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path} is a link out of its folder; put a copy of the file there")
        found[path.name] = _without_paths(path, base_model) if path.suffix == ".json" else path
    return found


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _without_paths(path: Path, base_model: str | None) -> Content:
    if path.stat().st_size > 1 << 20:
        return path  # a vocabulary or an index
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    named = {key: values[key] for key in _PATH_KEYS if isinstance(values, dict) and values.get(key)}
    shown = {key: value if is_hub_id(value) else Path(value).name for key, value in named.items()}
    if base_model and "base_model_name_or_path" in shown:
        shown["base_model_name_or_path"] = base_model
    if shown == named:
        return path
    return (json.dumps(values | shown, indent=2, ensure_ascii=False) + "\n").encode()


def _check_for_tokens(files: Mapping[str, Content], token: str | None) -> None:
    from huggingface_hub import get_token

    secrets = {secret.encode() for secret in (token, get_token()) if secret}
    for name, content in files.items():
        if not name.endswith(_TEXT_FILES):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if _TOKEN.search(data) or any(secret in data for secret in secrets):
            raise InputError(f"{name} holds a token of the Hub; remove it there before anything is uploaded")
