"""Repositories of the Hugging Face Hub: the files that may be uploaded, and resumable uploads.

The Hub identifies file contents by their hash, so repeating a broken upload sends only the missing files.
`huggingface_hub` is slow to import, so it is imported where it is used.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.json_text import read_json_file
from edit_trl.hub.refusals import explained, patiently, whoami

RepoType = Literal["model", "dataset"]

Content = Path | bytes

# The only files of a model's folder that are uploaded: no checkpoints, optimizer states, pickles or journals. Weights
# are uploaded as safetensors only.
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

# Written by `edit-trl merge`, for Ollama.
SERVING_FILES = ("Modelfile",)

# Keys whose value may be a path on this machine.
_PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path", "tokenizer_file")

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")

_TEXT_FILES = (".json", ".yaml", ".md", ".jinja", ".txt", ".svg", *SERVING_FILES)


@dataclass(frozen=True)
class Repository:
    """A repository with write access: its page, and whether only its owner can see it."""

    url: str
    private: bool


def check_repo_id(repo_id: str, option: str = "--repo_id") -> None:
    """Check that an id, which was given as `option`, is "namespace/name".

    Raises:
        InputError: The id is invalid or has no namespace. The message suggests the account that is logged in.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{option} {repo_id!r} is no id of the Hub: {error}") from error
    if "/" not in repo_id:
        name = account()
        login = f"you are logged in as {name!r}: " if name else ""
        raise InputError(f'{option} {repo_id!r} has no namespace; {login}"{name or "your-name"}/{repo_id}"')


def account(token: str | None = None) -> str | None:
    """Return the account that is logged in; None without a login, or if the Hub cannot be reached."""
    return (whoami(token) or {}).get("name")


def check_revision(revision: str | None) -> None:
    """Check the name of a branch, by git's rules.

    Raises:
        InputError: It is no such name.
    """
    if revision is not None and not re.fullmatch(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))\w[\w./-]*(?<![./])", revision):
        raise InputError(f"--revision {revision!r} is no name of a branch; use letters, digits, `-`, `_`, `.` and `/`")


def open_repository(
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Repository:
    """Create a repository unless it exists, and check write access.

    Args:
        repo_id: "namespace/name".
        repo_type: `model` or `dataset`.
        private: A new repository is private unless this is False. True refuses an existing public repository.
        revision: A branch, created if it does not exist; None for the main branch.
        token: Token of the Hub; None for that of the login.

    Raises:
        InputError: There is no login, write access or network; or the repository is public and must not be.
    """
    from huggingface_hub import CommitOperationAdd

    check_repo_id(repo_id)
    with explained(repo_id, revision, token) as api:
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
        # This asks how a file would be sent, without sending it, and fails if the token may not write.
        card = CommitOperationAdd("README.md", b"---\n---\n")
        api.preupload_lfs_files(repo_id, [card], repo_type=repo_type, revision=revision)
        return Repository(str(url), bool(info.private))


def upload(
    files: Mapping[str, Content],
    repo_id: str,
    *,
    message: str,
    obsolete: Iterable[str] = (),
    repo_type: RepoType = "model",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload files to an existing repository as one commit, which becomes visible when all files have arrived.

    Args:
        files: Paths or contents, by name in the repository.
        repo_id: "namespace/name"; see `open_repository`.
        message: The commit message.
        obsolete: Names of files to remove from the repository, if they are there.
        repo_type: `model` or `dataset`.
        revision: The branch; None for the main branch.
        token: Token of the Hub; None for that of the login.

    Returns:
        URL of the commit.

    Raises:
        InputError: A file contains a token of the Hub, or the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _check_for_tokens(files, token)
    target: dict[str, Any] = {"repo_type": repo_type, "revision": revision}
    with explained(repo_id, revision, token) as api:
        removed = [name for name in obsolete if patiently(partial(api.file_exists, repo_id, name, **target))]
        kept = sorted(files.items())
        # Each try needs new operations; with old ones, the client does not ask which files have arrived.
        commit = patiently(
            lambda: api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(name, content) for name, content in kept),
                    *(CommitOperationDelete(name) for name in removed),
                ],
                commit_message=message,
                **target,
            )
        )
    return str(commit.commit_url)


def model_files(folder: Path, base_model: str | None = None) -> dict[str, Content]:
    """Select the files of a model or adapter to upload: safetensors, configuration, tokenizer, card and Modelfile.

    Args:
        folder: Folder of the model or adapter.
        base_model: Id to write into an adapter's configuration as its base model; None to keep the one there.

    Returns:
        The files by their name in the repository. Paths on this machine in a configuration are reduced to their last
        part; such a file is returned as its content.

    Raises:
        InputError: A configuration is not JSON, or a file is a link out of the folder.
    """
    patterns = (*WEIGHT_FILES, *TOKENIZER_FILES, *CARD_FILES, *SERVING_FILES)
    files: dict[str, Content] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path} is a link out of its folder; put a copy of the file there")
        files[path.name] = _without_paths(path, base_model) if path.suffix == ".json" else path
    return files


def _without_paths(path: Path, base_model: str | None) -> Content:
    if path.stat().st_size > 1 << 20:
        return path  # a vocabulary or an index
    values = read_json_file(path, finite=False)
    paths = {key: values[key] for key in _PATH_KEYS if isinstance(values, dict) and values.get(key)}
    names = {key: value if is_hub_id(value) else Path(value).name for key, value in paths.items()}
    if base_model and "base_model_name_or_path" in names:
        names["base_model_name_or_path"] = base_model
    if names == paths:
        return path
    return (json.dumps(values | names, indent=2, ensure_ascii=False) + "\n").encode()


def _check_for_tokens(files: Mapping[str, Content], token: str | None) -> None:
    from huggingface_hub import get_token

    secrets = {secret.encode() for secret in (token, get_token()) if secret}
    for name, content in files.items():
        if not name.endswith(_TEXT_FILES):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if _TOKEN.search(data) or any(secret in data for secret in secrets):
            raise InputError(f"{name} holds a token of the Hub; remove it before anything is uploaded")
