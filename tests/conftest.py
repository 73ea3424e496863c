"""What all tests share: the real radar files, a tiny archive, a tiny trained network."""

import os
from pathlib import Path

import pytest
from running import REPO, TINY, compose_config

if "PYTEST_XDIST_WORKER" in os.environ:
    # a worker a core already: more threads, here or in the commands that tests start, would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


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
