"""Checkpoints of untrained networks, which cost the same as trained ones."""

from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import raincast
from raincast import assembly
from raincast.cli import HYDRA_VERSION_BASE, conf_dir


def write_checkpoint(
    path: Path,
    overrides: Sequence[str],
    *,
    input_steps: int,
    lead_steps: int,
    step_minutes: float = 5.0,
    grid_spacing: Sequence[float] = (1000.0, 1000.0),
) -> int:
    """Write a checkpoint of the network that `train.py overrides` would train; return its number of parameters."""
    own = [f"data.input_steps={input_steps}", f"data.lead_steps={lead_steps}", f"paths.run_dir={path.parent}"]
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("train", overrides=[*overrides, *own])
    torch.manual_seed(0)
    head = assembly.head(cfg)
    channels = assembly.channels(cfg).describe()
    network = assembly.network(
        OmegaConf.to_container(cfg.model, resolve=True),
        num_channels=head.num_channels,
        inputs=assembly.inputs_of(channels),
    )
    info = {
        "format": assembly.CHECKPOINT_FORMAT,
        "raincast_version": raincast.__version__,
        "torch_version": str(torch.__version__),
        "config": assembly.config_text(cfg),
        "step_minutes": step_minutes,
        "input_steps": input_steps,
        "lead_steps": lead_steps,
        "channels": channels,
        "grid_spacing": list(grid_spacing),
        "archive": {"identity": "none", "more": [], "source": "none", "cell_methods": "time: point"},
        "split_hash": "none",
        "loggers": {},
    }
    state = {f"network.{name}": weights for name, weights in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"raincast": info, "state_dict": state, "epoch": 0, "global_step": 0}, path)
    return sum(weights.numel() for weights in network.parameters())
