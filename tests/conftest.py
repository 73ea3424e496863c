"""What all tests share: a tiny archive, configs composed as the commands compose them, a tiny trained network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from raincast.cli import HYDRA_VERSION_BASE, conf_dir

REPO = Path(__file__).resolve().parents[1]

TINY = [
    "experiment=radar",
    "logger=csv",
    "data.input_steps=3",
    "data.lead_steps=3",
    "data.crop=32",
    "data.samples_per_epoch=32",
    "optimizer.lr=1e-2",
    "data.batch_size=4",
    "data.eval_batch_size=1",
    "data.num_workers=0",
    "model.stages=[{conv_channels:4,hidden_channels:8}]",
    "model.head_channels=4",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
]
"""A run of seconds: add data.archive=… and the folders."""

Compose = Callable[..., DictConfig]


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


def compose_config(command: str, run_dir: Path, *overrides: str) -> DictConfig:
    """The config of a command, with its run folder at `run_dir`."""
    GlobalHydra.instance().clear()
    run_dir.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose(command, overrides=[*overrides, f"paths.run_dir={run_dir}"])


@pytest.fixture(scope="session")
def tiny_run(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny network, trained for two epochs."""
    from raincast.commands.train import train

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    longer = ["trainer.max_epochs=6", "data.samples_per_epoch=80", "data.eval_stride=2"]  # until it forecasts rain
    train(compose_config("train", run_dir, *TINY, f"data.archive={tiny_archive}", *longer))
    return run_dir


def run_script(cwd: Path, script: str, *overrides: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT.py overrides` in the folder `cwd`, offline and on one thread."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    return subprocess.run(
        [sys.executable, str(REPO / f"{script}.py"), *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment | {"OMP_NUM_THREADS": "1", "HOME": str(cwd)},
    )
