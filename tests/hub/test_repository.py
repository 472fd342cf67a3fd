"""Uploads through the real client to a Hub on loopback, and everything that can go wrong with them."""

import json

import huggingface_hub.constants
import pytest
from hub_server import READ_TOKEN, WRITE_TOKEN
from huggingface_hub import hf_hub_download

import edit_trl.hub.refusals
from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import is_hub_id
from edit_trl.hub.repository import check_repo_id, model_files, open_repository, upload

WEIGHTS = bytes(range(256)) * 400  # 100 kB


@pytest.fixture
def serve(serve_hub):
    return serve_hub


@pytest.fixture
def files(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(WEIGHTS)
    return {"model.safetensors": weights, "README.md": b"---\ntags: []\n---\n# A model\n"}


def push(files, repo_id="ada/student", **options) -> str:
    opening = {name: options.pop(name) for name in ("private",) if name in options}
    open_repository(repo_id, **opening, **options)
    return upload(files, repo_id, message="A model", **options)


def refused(call, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# What goes well


@pytest.mark.parametrize("part_size", [None, 30_000], ids=["one part", "several parts"])
def test_uploads_files_and_downloads_the_same_bytes(serve, files, part_size):
    hub = serve(part_size=part_size)
    url = push(files)
    repo = hub.repos["model", "ada/student"]
    assert repo.private
    assert repo.files == {"model.safetensors": WEIGHTS, "README.md": files["README.md"]}
    assert url.endswith(repo.sha("main"))
    assert hub.count("PUT", "/lfs/") == (1 if part_size is None else 4)
    assert repo.commits == [("main", "A model", ["README.md", "model.safetensors"])]
    with open(hf_hub_download("ada/student", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS


def test_what_is_there_is_not_sent_again(serve, files):
    hub = serve()
    push(files)
    push(files)
    repo = hub.repos["model", "ada/student"]
    assert hub.received == len(WEIGHTS)
    assert len(repo.commits) == 1  # nothing was new
    push(files | {"README.md": b"---\ntags: [trl]\n---\n"})
    assert hub.received == len(WEIGHTS)
    assert repo.commits[-1][2] == ["README.md"]


def test_public_only_when_asked_for(serve, files):
    hub = serve()
    push(files, "ada/open", private=False)
    assert not hub.repos["model", "ada/open"].private
    assert open_repository("ada/open").private is False  # one that exists is taken as it is
    refused(lambda: open_repository("ada/open", private=True), "exists and is public")


def test_a_branch_is_made(serve, files):
    hub = serve()
    push(files, revision="seed-1")
    repo = hub.repos["model", "ada/student"]
    assert set(repo.branches["seed-1"]) == {"model.safetensors", "README.md"}
    assert repo.files == {}


def test_a_dataset(serve):
    hub = serve()
    push({"dual.parquet": WEIGHTS}, "ada/rows", repo_type="dataset")
    assert hub.repos["dataset", "ada/rows"].files == {"dual.parquet": WEIGHTS}


# What passes by itself is waited for


def test_waits_as_long_as_it_is_told(serve, files, monkeypatch):
    hub, waits = serve(), []
    monkeypatch.setattr(edit_trl.hub.refusals.time, "sleep", waits.append)
    hub.fail("POST", "/repos/create", 429, headers={"Retry-After": "7"})
    limit = {"RateLimit": '"api";r=0;t=42', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.fail("POST", "/commit/", 429, headers=limit)
    push(files)
    assert waits == [7.0, 42.0]
    assert "model.safetensors" in hub.repos["model", "ada/student"].files


def test_a_wait_of_hours_is_not_waited_for(serve, files):
    serve().fail("POST", "/commit/", 429, headers={"Retry-After": "7200"})
    refused(lambda: push(files), "HTTP 429", "run the same command again")


@pytest.mark.parametrize("status", [500, 503, "reset"])
def test_trouble_that_passes(serve, files, status):
    hub = serve()
    hub.fail("POST", "/commit/", status, times=2)
    push(files)
    repo = hub.repos["model", "ada/student"]
    assert repo.files["model.safetensors"] == WEIGHTS
    assert len(repo.commits) == 1


def test_trouble_that_stays(serve, files):
    hub = serve()
    hub.fail("POST", "/commit/", 503, times=99)
    refused(lambda: push(files), "the Hub is in trouble (HTTP 503, asked 5 times)", "run the same command again")
    assert hub.count("POST", "/commit/") == 5
    hub.faults.clear()
    push(files)  # the same command again
    assert hub.received == len(WEIGHTS)
    assert hub.repos["model", "ada/student"].files["model.safetensors"] == WEIGHTS


def test_an_upload_that_broke_goes_on(serve, files, tmp_path, monkeypatch):
    """One file arrives, the next one's connection is reset for good: the second try sends only that one."""
    hub = serve()
    other = tmp_path / "other.safetensors"
    other.write_bytes(WEIGHTS[::-1])
    files = {"model-00001-of-00002.safetensors": files["model.safetensors"]}
    push(files)
    files |= {"model-00002-of-00002.safetensors": other}
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail("PUT", "/lfs/", "reset", times=99)
    refused(lambda: push(files), "the upload to ada/student broke", "what has arrived is not sent again")
    assert "model-00002-of-00002.safetensors" not in hub.repos["model", "ada/student"].files
    hub.faults.clear()
    push(files)
    assert hub.received == 2 * len(WEIGHTS)
    assert hub.repos["model", "ada/student"].files["model-00002-of-00002.safetensors"] == WEIGHTS[::-1]


def test_a_reset_half_way_is_sent_again_by_the_client(serve, files, monkeypatch):
    hub = serve(part_size=30_000)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail("PUT", r"/lfs/\w+/3", "reset")
    push(files)
    assert hub.repos["model", "ada/student"].files["model.safetensors"] == WEIGHTS


# Refusals


def test_a_token_without_write_access(serve, files, monkeypatch):
    hub = serve()
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    for there in (False, True):
        if there:
            hub.add("ada/student", {})
        refused(
            lambda: push(files),
            "the token 'my-read' of 'ada' (role: read) may not write to ada/student",
            "you must use a write token",
        )
    assert hub.received == 0


def test_another_ones_namespace(serve, files):
    serve()
    refused(lambda: push(files, "bob/student"), "'my-write' of 'ada' (role: write) may not write to bob/student")


def test_an_unknown_token(serve, files, monkeypatch):
    serve()
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    refused(lambda: push(files), "does not know this token", "hf auth login")


def test_no_token(serve, files, monkeypatch, tmp_path):
    serve()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(lambda: push(files), "no login for ada/student", "HF_TOKEN")


def test_an_id_without_a_namespace(serve, monkeypatch):
    hub = serve()
    refused(lambda: check_repo_id("student"), "has no namespace", "logged in as 'ada': \"ada/student\"")
    hub.fail("GET", "whoami", 503, times=99)
    monkeypatch.setattr("huggingface_hub.HfApi._whoami_cache", {}, raising=False)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    refused(lambda: check_repo_id("student"), '"your-name/student"')


@pytest.mark.parametrize("repo_id", ["a/b/c", "ada/", "ada/a b", "../student", "ada/x--y"])
def test_an_id_that_is_none(repo_id):
    refused(lambda: check_repo_id(repo_id), "--repo_id", "is no id of the Hub")


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict(serve, files, status):
    serve().fail("POST", "/commit/", status)
    refused(lambda: push(files), "someone else changed ada/student meanwhile", "run the same command again")


def test_a_repository_that_went_away(serve, files):
    serve()
    refused(lambda: upload(files, "ada/nobody", message="x"), "there is no ada/nobody")


def test_offline(files, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(lambda: push(files), "HF_HUB_OFFLINE")


def test_no_network(files, monkeypatch, serve):
    serve()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(lambda: push(files), "the upload to ada/student broke")


@pytest.mark.parametrize("secret", [WRITE_TOKEN, "hf_" + "a" * 34])
def test_a_token_in_a_file_is_not_uploaded(serve, files, secret):
    hub = serve()
    open_repository("ada/student")
    files["recipe.yaml"] = f"hub_token: {secret}".encode()
    refused(lambda: upload(files, "ada/student", message="x"), "recipe.yaml holds a token")
    assert hub.repos["model", "ada/student"].files == {}


# What of a folder goes there


def test_what_of_a_folder_is_uploaded(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    run = tmp_path / "run"
    (run / "checkpoint-10").mkdir(parents=True)
    goes = ("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md")
    stays = ("training_args.bin", "optimizer.pt", "trainer_state.json", "run.json", "card.json", "items.jsonl")
    stays += ("pytorch_model.bin", "adapter_model.bin", "journal.sqlite", ".env", "notes.md")
    for name in (*goes, *stays, "checkpoint-10/model.safetensors"):
        (run / name).write_text("{}")
    config = {"base_model_name_or_path": str(base), "r": 4}
    (run / "adapter_config.json").write_text(json.dumps(config))
    found = model_files(run)
    assert set(found) == {*goes, "adapter_config.json"}
    assert json.loads(found["adapter_config.json"]) == {"base_model_name_or_path": "base", "r": 4}
    named = model_files(run, base_model="ada/base")["adapter_config.json"]
    assert json.loads(named)["base_model_name_or_path"] == "ada/base"


def test_ids_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert is_hub_id("HuggingFaceTB/SmolLM2-135M")
    for name in (None, "", "gpt2", "/home/ada/model", "../model", "a/b/c", "~/model"):
        assert not is_hub_id(name), name
