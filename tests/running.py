"""How tests run the commands: tiny configs, composed in this process or run as scripts."""

import os
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from raincast.cli import HYDRA_VERSION_BASE, conf_dir

REPO = Path(__file__).resolve().parents[1]

TINY = [
    "experiment=convlstm",
    "logger=csv",
    "baselines=[persistence]",
    "callbacks.pictures.every_n_epochs=0",
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


def compose_config(command: str, run_dir: Path, *overrides: str) -> DictConfig:
    """The config of a command, with its run folder at `run_dir`."""
    GlobalHydra.instance().clear()
    run_dir.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose(command, overrides=[*overrides, f"paths.run_dir={run_dir}"])


def run_script(cwd: Path, script: str, *overrides: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT.py overrides` in the folder `cwd`, offline and on one thread."""
    return run_command(cwd, sys.executable, str(REPO / f"{script}.py"), *overrides, timeout=timeout)


def run_command(cwd: Path, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """A command in the folder `cwd`, offline and on one thread."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment | {"OMP_NUM_THREADS": "1", "HOME": str(cwd)},
    )
