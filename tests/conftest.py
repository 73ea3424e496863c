"""What all tests share: the real radar files, a tiny archive, a tiny trained network."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import running
from running import REPO, TINY, compose_config

if "PYTEST_XDIST_WORKER" in os.environ:
    # a worker a core already: more threads, here or in the commands that tests start, would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# or each command that a test starts would compile all of raincast anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LONGEST = (
    "test_export", "ingest/test_damaged", "commands/test_many_processes", "test_notebooks",
    "commands/test_other_commands", "live/test_watcher", "forecasting/test_box", "commands/test_channels_commands",
    "commands/test_train_command", "commands/test_kills", "ingest/test_cluster", "ingest/test_workers",
    "sweeps/test_sweep_command", "test_cli", "forecasting/test_python", "evaluation/test_engine",
    "live/test_replay", "training/test_module", "commands/test_evaluation_page", "test_packaging", "test_conf",
    "ingest/test_ingest_zarr", "ingest/test_ingest_archive", "training/test_execution",
    "commands/test_ingest_command", "forecasting/test_parallel", "test_baselines_evolution",
    "commands/test_multirun", "attacks/test_checkpoints", "commands/test_demo", "commands/test_training_log",
    "plotting/test_pictures", "training/test_debugging", "models/test_sequence", "models/test_lagrangian",
)  # fmt: skip
"""Files of tests that take longest, by the seconds they took."""


def pytest_configure(config: pytest.Config) -> None:
    """Files are given to the workers in the order of the collection, not by their number of tests."""
    config.option.loadscopereorder = False
    gc.disable()  # until all is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker begins one when the others are about to end."""
    tests = Path(__file__).parent
    places = {(tests / name).with_suffix(".py"): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the garbage collector does not look at it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def warned_of_nothing() -> None:
    """What is said once a process is said once a test."""
    from raincast.archive import packing

    packing._said.clear()


@pytest.fixture
def undrawn() -> Iterator[None]:
    """`running.undrawn` for a test; a fixture of a session or a module draws."""
    with running.undrawn():
        yield


@pytest.fixture(scope="session")
def radar_dir() -> Path:
    """The folder of real radar files: $RAINCAST_RADAR, or shared/radar beside the checkout."""
    path = Path(os.environ.get("RAINCAST_RADAR", REPO.parent / "shared" / "radar"))
    if not path.is_dir():
        pytest.skip(f"needs the real radar files, and {path} is no folder (set RAINCAST_RADAR)")
    return path


@pytest.fixture(scope="session")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of 36 frames of 32×32 pixels of the built-in archive's rain."""
    from raincast.synthetic import build_builtin_archive

    path = tmp_path_factory.mktemp("archives") / "tiny"
    build_builtin_archive(path, num_days=3, frames_per_day=36, size=32)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny network, trained for two epochs."""
    from raincast.commands.train import train

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    # until it forecasts rain
    longer = ["trainer.max_epochs=30", "trainer.check_val_every_n_epoch=10", "data.eval_stride=2"]
    train(compose_config("train", run_dir, *TINY, f"data.archive={tiny_archive}", *longer))
    return run_dir
