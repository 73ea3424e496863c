"""The notebooks: each runs from top to bottom, shows a picture, and is committed without outputs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from running import REPO

import raincast

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> Iterator[Any]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


BEGIN_ANEW = """%reset -f
import os, sys
_ = [sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "raincast"]
os.chdir({folder!r})
os.environ.pop("RAINCAST_INPUT", None)
os.environ.update({environment!r})
del _, os, sys
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncKernelManager]:
    """Of all notebooks: what they import takes seconds. `make docs` runs each in a kernel of its own."""
    settings_dir, manager = tmp_path_factory.mktemp("settings"), AsyncKernelManager(kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):  # nothing lands in the home folder
            patch.setenv(variable, str(settings_dir / variable.lower()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for variable in [name for name in os.environ if name.startswith("RAINCAST_")]:
            patch.delenv(variable)  # as its first reader runs it: on the built-in archive
        run_sync(manager.start_kernel)()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


def execute(path: Path, folder: Path, kernel: AsyncKernelManager, **environment: str) -> Any:
    """Run a notebook in `folder`; a cell that fails raises CellExecutionError with its traceback."""
    notebook = nbformat.read(path, 4)
    begin = BEGIN_ANEW.format(folder=str(folder), environment=environment)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    return NotebookClient(notebook, timeout=280, km=kernel).execute()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each_notebook
def test_a_notebook_runs_and_shows_a_picture(path: Path, tmp_path: Path, kernel: AsyncKernelManager) -> None:
    outputs = [o for cell in code_cells(execute(path, tmp_path, kernel)) for o in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # warnings of libraries would be the first thing that a reader sees
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]


def test_the_forecast_of_files_whose_future_is_not_known(tmp_path: Path, kernel: AsyncKernelManager) -> None:
    """As the newest radar files are: most lead times have no observation to compare with."""
    frames = raincast.open_sample().isel(time=slice(0, 6)).drop_vars("missing_times").load()
    frames.to_netcdf(tmp_path / "own.nc")
    path = next(path for path in NOTEBOOKS if path.stem == "04_files_to_forecast")
    execute(path, tmp_path, kernel, RAINCAST_INPUT=str(tmp_path / "own.nc"))


@each_notebook
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, 4)):
        assert not cell.outputs, f"clear the outputs of {path.name} before committing it"
        assert cell.execution_count is None
