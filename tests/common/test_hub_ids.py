import pytest

from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import refuse_missing_folder, refuse_missing_path


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "ada/data.v2", "a_b"])
def test_what_can_be_on_the_hub_is_looked_for_there(name):
    refuse_missing_path(name)
    refuse_missing_folder(name)


@pytest.mark.parametrize(
    "name",
    ["", "data/pairs", "outputs/x", "none.jsonl", "ada/rows.parquet", "./here", "~/rows", "/rows", "a/b/c", "a b"],
)
def test_a_path_that_does_not_exist_is_no_dataset(name):
    with pytest.raises(InputError, match="no such file or folder"):
        refuse_missing_path(name)


@pytest.mark.parametrize("name", ["outputs/student", "./here", "~/model", "/model", "a/b/c", "file.bin"])
def test_a_path_that_is_no_folder_is_no_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.bin").touch()
    with pytest.raises(InputError, match="no such folder"):
        refuse_missing_folder(name)
