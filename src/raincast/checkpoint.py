"""Checkpoints: plain data that is read without running anything that stands in it."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raincast.system.files import atomic
from raincast.version import __version__

if TYPE_CHECKING:
    from raincast.data.datamodule import RadarDataModule
    from raincast.metrics.calibration import Calibration
    from raincast.models.inputs import Inputs


CHECKPOINT_FORMAT = 2


BOX = "box"
"""The name of the weights that come with raincast, in the place of a checkpoint's path."""


SAFE_MODULES = ("raincast.models.", "raincast.transforms.", "torch.nn.")
"""Where the classes that a checkpoint may name have to live: they compute, and do nothing else."""


DATA_MODULES = ("raincast.data.", "raincast.transforms.")
"""The same of its data config, which evaluate.py builds: they read archives and the files of channels."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint's weights and what it says of itself."""

    path: Path
    info: dict[str, Any]
    config: DictConfig
    state: dict[str, Any]
    epoch: int
    step: int

    @property
    def inputs(self) -> "Inputs":
        """What its network sees."""
        inputs = inputs_of(self.info["channels"])
        # before channels could be declared, the network's own config asked for the mask
        if self.info["channels"] == ["rain"] and self.config.model.get("in_channels") == 2:
            return dataclasses.replace(inputs, observed=True)
        return inputs

    @property
    def sha256(self) -> str:
        """The hash of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running anything that stands in it; FileNotFoundError or ValueError else.

    `path` may be `BOX`, or a file of weights that `benchmarks/pretrain.py` wrote (.npz).
    """
    if str(path) == BOX:
        path = box_path()
    if Path(path).suffix == ".npz":
        return _of_weights(Path(path))
    import pickle

    import torch

    path = Path(path)
    if not path.is_file():
        nearby = sorted(str(p) for p in Path("outputs").glob("**/*.ckpt"))[-4:]
        hint = f" There are: {', '.join(nearby)}." if nearby else " Train one with: python train.py"
        raise FileNotFoundError(f"There is no checkpoint {path}.{hint}")
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = (str(error).splitlines() or ["no reason given"])[0]
        raise ValueError(f"{path} is damaged, or no checkpoint of plain data: {first_line}") from error
    if not isinstance(raw, dict) or "raincast" not in raw or "state_dict" not in raw:
        raise ValueError(f"{path} was not written by raincast. Train a network with: python train.py")
    info = raw["raincast"]
    if not {"format", "config"} <= set(info):
        raise ValueError(
            f"{path} does not say of which network its weights are: it was trained without metadata. Pass "
            "metadata=raincast.checkpoint.describe(settings, data) to NowcastModule, see docs/python.md."
        )
    if info["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path} has format {info['format']}; raincast {__version__} reads {CHECKPOINT_FORMAT}. "
            f"It was written by raincast {info['raincast_version']}."
        )
    return Checkpoint(
        path,
        info,
        DictConfig(OmegaConf.create(info["config"])),
        raw["state_dict"],
        raw["epoch"],
        raw["global_step"],
    )


def box_path() -> Path:
    """The file of the weights that come with raincast."""
    return Path(__file__).with_name("weights") / "lagrangian.npz"


def _of_weights(path: Path) -> Checkpoint:
    """Weights alone, as a checkpoint that names the radar networks that they were trained on."""
    from raincast.models.weights import read_weights

    state, described = read_weights(path)
    config = OmegaConf.create(described["config"])
    config.data.archive = "radar networks"
    info = {
        "format": CHECKPOINT_FORMAT,
        "raincast_version": __version__,
        "torch_version": str(described.get("torch_version", "unknown")),
        "config": OmegaConf.to_yaml(config),
        "step_minutes": 5.0,
        "input_steps": 4,
        "lead_steps": 12,
        "channels": ["rain", {"name": "observed", "role": "past"}],
        "grid_spacing": [],
        "archive": {
            "identity": ", ".join(described["networks"]),
            "more": [],
            "source": "several radar networks",
            "cell_methods": "unknown",
        },
        "split_hash": "none",
        "loggers": {},
    }
    named = {f"network.{name}": value for name, value in state.items()}
    return Checkpoint(path, info, DictConfig(config), named, epoch=0, step=0)


def describe(settings: Mapping[str, Any] | str, data: "RadarDataModule") -> dict[str, Any]:
    """What a checkpoint says of itself, as plain data: the `metadata` of a NowcastModule.

    `settings` are the nodes "model", "transform" and "head", each with the `_target_` of its class, as in conf/,
    or a whole config as YAML. `construct(settings["model"])` builds the network that they describe.
    """
    import torch

    text = settings if isinstance(settings, str) else OmegaConf.to_yaml(OmegaConf.create(dict(settings)))
    stated = OmegaConf.create(text)
    if missing := [key for key in ("model", "transform", "head") if key not in stated]:
        raise ValueError(f"settings lack {', '.join(missing)}: each with the _target_ of its class, as in conf/.")
    y, x = data.archive.grid.y, data.archive.grid.x
    return {
        "format": CHECKPOINT_FORMAT,
        "raincast_version": __version__,
        "torch_version": str(torch.__version__),
        "config": text,
        "step_minutes": data.archive.step_minutes,
        "input_steps": data.input_steps,
        "lead_steps": data.lead_steps,
        "channels": data.channels.describe(),
        "grid_spacing": [float(abs(axis[1] - axis[0])) if axis.size > 1 else 0.0 for axis in (y, x)],
        "archive": {
            "identity": data.archive.identity,
            "more": [source.archive.identity for source in data.sources[1:]],
            "source": str(data.archive.attrs.get("source", "unknown")),
            "cell_methods": str(data.archive.rain_attrs.get("cell_methods", "unknown")),
        },
        "split_hash": data.split_hash,
        "loggers": {},
    }


def write_calibrated(checkpoint: Checkpoint, calibration: "Calibration", path: Path) -> Path:
    """A copy of `checkpoint`, which stays as it is, that also holds `calibration`; returns its path."""
    import torch

    raw = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    raw["raincast"]["calibration"] = calibration.to_plain()
    with atomic(path, sole=True) as partial:
        torch.save(raw, partial)
    return path


def inputs_of(described: Sequence[Any]) -> "Inputs":
    """What a network sees, of the channels as a checkpoint lists them."""
    from raincast.models.inputs import Inputs

    named = [
        channel for channel in described if isinstance(channel, Mapping)
    ]  # older checkpoints: their names alone
    scaled = [(c["name"], construct(c["transform"]), c["role"]) for c in named if "transform" in c]
    return Inputs(
        observed=any(channel["role"] == "past" and "transform" not in channel for channel in named),
        past=tuple((name, transform) for name, transform, _ in scaled),
        future=tuple((name, transform) for name, transform, role in scaled if role == "future"),
    )


def check_data(checkpoint: Checkpoint) -> None:
    """ValueError where the data config of a checkpoint names what is not raincast's own: Hydra would call it."""

    def walk(node: Any) -> None:
        if isinstance(node, dict) and "_target_" in node:
            _safe_class(str(node["_target_"]), DATA_MODULES)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(OmegaConf.to_container(checkpoint.config.data, resolve=True))


def construct(node: Any, *, modules: tuple[str, ...] = SAFE_MODULES) -> Any:
    """Build what a checkpoint's config names, from classes of `modules` alone.

    Hydra's `instantiate` would call any function that `_target_` names; this calls constructors of classes
    that are defined in raincast's models and transforms or in torch.nn, with plain arguments.
    """
    if isinstance(node, list):
        return [construct(item, modules=modules) for item in node]
    if not isinstance(node, dict):
        return node
    values = {
        key: construct(value, modules=modules)
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return values
    made = _safe_class(str(node["_target_"]), modules)
    return functools.partial(made, **values) if node.get("_partial_") else made(**values)


def _safe_class(target: str, modules: tuple[str, ...]) -> Callable[..., Any]:
    module_name, _, name = target.rpartition(".")
    if f"{module_name}.".startswith(modules):
        found = getattr(importlib.import_module(module_name), name, None)
        if inspect.isclass(found) and f"{found.__module__}.".startswith(modules):
            return found
    raise ValueError(
        f"The checkpoint names {target}, which is none of {', '.join(m[:-1] for m in modules)}: it is not loaded."
    )
