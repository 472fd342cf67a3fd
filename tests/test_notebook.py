"""The notebook of the recipes, run by a kernel of its own on a tiny student."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from edit_trl.evaluation.runs.folder import read_run

NOTEBOOK = Path(__file__).parents[1] / "recipes" / "notebooks" / "edit_in_15_minutes.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook, folder: Path, **environment: str) -> None:
    """Run all cells in a folder, but for the one that installs the package."""
    scripts = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PATH": scripts, "CUDA_VISIBLE_DEVICES": "", **environment}
    client = NotebookClient(
        notebook, timeout=600, skip_cells_with_tag="install", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)


def with_parameters(notebook, **values: object) -> None:
    """Give the parameters of the first cell other values."""
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in values.items():
        cell.source, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", cell.source, flags=re.MULTILINE)
        assert count == 1


def outputs(notebook, cell_id: str) -> tuple[str, dict[str, str]]:
    """The text that a cell prints, and its value by MIME type."""
    [cell] = [cell for cell in notebook.cells if cell.id == cell_id]
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    values = [output.data for output in cell.outputs if output.output_type == "execute_result"]
    return printed, values[-1] if values else {}


def test_every_cell_runs_on_a_tiny_student(notebook, tmp_path, saved_student):
    recipe = "SmolLM2-135M-Instruct/edit/config_lora"
    with_parameters(notebook, STUDENT=str(saved_student), RECIPE=recipe, PAIRS=12, PROBLEMS=3)
    run(notebook, tmp_path)
    out = tmp_path / "edit_in_15_minutes"
    for stage in ("warm_up", "key_steps"):
        assert (out / stage / "adapter_model.safetensors").is_file()
    measured = {name: read_run(out / "measured" / name).record for name in ("base", "warm_up", "key_steps")}
    assert {record.items for record in measured.values()} == {3}
    assert len({record.model_hash for record in measured.values()}) == 3
    assert outputs(notebook, "pairs")[1]["text/plain"].startswith("dual CoTs: 15 rows, 15 pairs")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", outputs(notebook, "compare")[0])  # `!` gives commands a terminal
    comparisons = [line.rstrip() for line in printed.splitlines() if line.startswith("accuracy: ")]
    pairs = [("warm_up", "base"), ("key_steps", "base"), ("key_steps", "warm_up")]
    assert comparisons == [f"accuracy: {other} against {baseline}" for other, baseline in pairs]
    report = outputs(notebook, "report")[1]
    assert report["text/plain"] == "base, key_steps, warm_up: 3 runs with 9 items and 1 training run"
    for value in (outputs(notebook, "pairs")[1], report):
        assert value["text/html"].startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')


def test_without_a_gpu_the_first_cell_says_what_to_do(notebook, tmp_path):
    with pytest.raises(CellExecutionError, match=r"This machine has no GPU. In Colab, choose Runtime > Change runtime"):
        run(notebook, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(codes) >= 9
    assert [cell for cell in codes if cell.outputs or cell.execution_count] == []
    assert codes[0].metadata.tags == ["parameters"]
    assert NOTEBOOK.stat().st_size < 20_000
    # Colab starts it on a GPU.
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]["accelerator"] == "GPU"
