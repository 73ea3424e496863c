"""The notebooks: each runs from top to bottom, shows a picture, and is committed without outputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from running import REPO

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> Iterator[Any]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


@pytest.fixture(scope="module")
def settings_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all notebooks, so that matplotlib looks for fonts once."""
    return tmp_path_factory.mktemp("settings")


def execute(path: Path, folder: Path, settings_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in `folder`; a cell that fails raises CellExecutionError with its traceback."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):  # nothing lands in the home folder
        monkeypatch.setenv(variable, str(settings_dir / variable.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=280, kernel_name="python3", resources=resources).execute()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each_notebook
def test_a_notebook_runs_and_shows_a_picture(
    path: Path, tmp_path: Path, settings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAINCAST_ARCHIVE", raising=False)  # as its first reader runs it: on the built-in archive
    outputs = [o for cell in code_cells(execute(path, tmp_path, settings_dir, monkeypatch)) for o in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # warnings of libraries would be the first thing that a reader sees
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]


@each_notebook
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, 4)):
        assert not cell.outputs, f"clear the outputs of {path.name} before committing it"
        assert cell.execution_count is None
