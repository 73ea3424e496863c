"""Checkpoints: plain data that is read without running any code in it."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raincast.plain import construct, merged, read_config
from raincast.system.files import atomic, check_zip
from raincast.version import __version__

if TYPE_CHECKING:
    from raincast.data.radar import RadarData
    from raincast.metrics.probabilistic import Calibration
    from raincast.models.inputs import Inputs


CHECKPOINT_FORMAT = 2

_STATED: Mapping[str, type | tuple[type, ...]] = {
    "config": str,
    "step_minutes": (int, float),
    "input_steps": int,
    "lead_steps": int,
    "channels": list,
    "grid_spacing": list,
    "archive": dict,
    "split_hash": str,
    "loggers": dict,
    "raincast_version": str,
    "torch_version": str,
}
"""Metadata that a checkpoint must have, with their types."""

BOX = "box"
"""Name of the weights that come with raincast, used in place of a checkpoint's path."""

_PARTS = ("model", "head", "transform", "data", "metrics")
"""Nodes that its config must have."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights and metadata of a checkpoint."""

    path: Path
    info: dict[str, Any]
    config: dict[str, Any]
    """The config of the training, resolved when it was written; plain data that is never resolved again."""
    state: dict[str, Any]
    epoch: int
    step: int

    @property
    def inputs(self) -> "Inputs":
        """The inputs of its network."""
        return inputs_of(self.info["channels"])

    @property
    def network(self) -> str:
        """The name of its network's class."""
        return str(self.config["model"]["_target_"]).rpartition(".")[2]

    @property
    def in_box(self) -> bool:
        """True for the weights that come with raincast."""
        return self.path == box_path()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def check_there(path: str | Path) -> None:
    """Raise FileNotFoundError, with a list of those in it or nearby, if `path` is not a file."""
    if not Path(path).is_file():
        inside = list(Path(path).glob("**/*.ckpt")) if Path(path).is_dir() else []
        found = sorted(inside or Path("outputs").glob("**/*.ckpt"), key=lambda p: p.stat().st_mtime)
        nearby = [str(p) for p in found[-4:]]
        hint = (
            f" There are: {', '.join(nearby)}."
            if nearby
            else " checkpoint=box uses the weights that come with raincast."
        )
        what = f"{path} is a folder, not a checkpoint" if Path(path).is_dir() else f"There is no checkpoint {path}"
        raise FileNotFoundError(f"{what}.{hint}")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running any code in it.

    `path` may be `BOX`, or a file of weights written by `benchmarks/pretrain.py` (.npz). Raises FileNotFoundError
    if it does not exist, ValueError if it is damaged or not a checkpoint of raincast.
    """
    if str(path) == BOX:
        path = box_path()
    if Path(path).suffix == ".npz":
        return _of_weights(Path(path))
    check_there(path)
    import torch

    path = Path(path)
    try:
        with path.open("rb") as file:
            check_zip(file)
            raw = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the pickle reader may raise anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged, or not a checkpoint of plain data: {first_line}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("raincast"), dict) or "state_dict" not in raw:
        raise ValueError(f"{path} was not written by raincast. Train a network with: python train.py")
    info = raw["raincast"]
    if not info:
        raise ValueError(
            f"{path} does not state its network: it was trained without metadata. Pass "
            "metadata=raincast.checkpoint.describe(settings, data) to NowcastModule, see docs/python.md."
        )
    if info.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path} has format {info.get('format')}; raincast {__version__} reads {CHECKPOINT_FORMAT}. "
            f"It was written by raincast {info.get('raincast_version')}."
        )
    try:
        return Checkpoint(path, info, _checked(raw), raw["state_dict"], raw["epoch"], raw["global_step"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of raincast: {error}") from error


def _checked(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Check the types of a checkpoint's parts and return its config. Raises KeyError or ValueError."""
    import torch

    info = raw["raincast"]
    wrong = [name for name, kind in _STATED.items() if not isinstance(info.get(name), kind)]
    wrong += [name for name in ("epoch", "global_step") if type(raw.get(name)) is not int]
    counts = ("input_steps", "lead_steps", "step_minutes")
    wrong += [name for name in counts if name not in wrong and info[name] <= 0]
    if "archive" not in wrong and not {"identity", "source", "cell_methods"} <= info["archive"].keys():
        wrong.append("archive")
    if "channels" not in wrong and not all(map(_is_channel, info["channels"])):
        wrong.append("channels")
    if "grid_spacing" not in wrong and not all(type(km) in (int, float) for km in info["grid_spacing"]):
        wrong.append("grid_spacing")
    if wrong:
        raise ValueError(f"its metadata {', '.join(wrong)} are absent or invalid")
    if not all(isinstance(tensor, torch.Tensor) for tensor in raw["state_dict"].values()):
        raise ValueError("its weights are not tensors")
    if not all(re.fullmatch(r"\w[\w-]{0,127}", str(run)) for run in info["loggers"].values()):
        raise ValueError(f"loggers={info['loggers']} are not names of runs")
    config = read_config(info["config"])
    if lacking := [part for part in _PARTS if not isinstance(config.get(part), dict)]:
        raise ValueError(f"its config has no {', '.join(lacking)}")
    return config


def _is_channel(described: Any) -> bool:
    return isinstance(described, dict) and all(isinstance(described.get(key), str) for key in ("name", "role"))


def box_path() -> Path:
    """Return the file of the weights that come with raincast."""
    return Path(__file__).with_name("weights") / "lagrangian.npz"


def _of_weights(path: Path) -> Checkpoint:
    """Read a file of weights as a checkpoint whose archive names the radar networks that it was trained on."""
    from raincast.models.weights import read_weights

    state, described = read_weights(path)
    config = merged(described["config"], {"data": {"archive": "radar networks"}})
    info = {
        "format": CHECKPOINT_FORMAT,
        "raincast_version": __version__,
        "torch_version": str(described.get("torch_version", "unknown")),
        "config": yaml.safe_dump(config, sort_keys=False),
        "step_minutes": 5.0,
        "input_steps": 4,
        "lead_steps": 12,
        "channels": [{"name": "rain", "role": "target"}, {"name": "observed", "role": "past"}],
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
    return Checkpoint(path, info, config, named, epoch=0, step=0)


def describe(settings: Mapping[str, Any] | str, data: "RadarData") -> dict[str, Any]:
    """Return a checkpoint's metadata as plain data, for the argument `metadata` of a NowcastModule.

    `settings` are the nodes "model", "transform" and "head", each with the `_target_` of its class, as in conf/,
    or a whole config as YAML. `construct(settings["model"])` builds the network that they describe. Raises
    ValueError if one of the nodes is absent.
    """
    import torch

    stated = read_config(settings) if isinstance(settings, str) else dict(settings)
    if missing := [key for key in ("model", "transform", "head") if key not in stated]:
        raise ValueError(f"settings lack {', '.join(missing)}: each with the _target_ of its class, as in conf/.")
    if "data" not in stated:  # the part that forecasts and evaluations use
        stated["data"] = {
            "archive": str(data.archive.path),
            "input_steps": data.input_steps,
            "lead_steps": data.lead_steps,
            "max_missing": data.max_missing,
        }
    if "metrics" not in stated:
        stated["metrics"] = {"thresholds": []}
    y, x = data.archive.grid.y, data.archive.grid.x
    return {
        "format": CHECKPOINT_FORMAT,
        "raincast_version": __version__,
        "torch_version": str(torch.__version__),
        "config": yaml.safe_dump(stated, sort_keys=False, allow_unicode=True),
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
    """Write a copy of `checkpoint` that also has `calibration`; return its path. The original is unchanged."""
    import torch

    raw = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    raw["raincast"]["calibration"] = calibration.to_plain()
    with atomic(path, sole=True) as partial:
        torch.save(raw, partial)
    return path


def inputs_of(described: Sequence[Any]) -> "Inputs":
    """Return a network's inputs from the channels that a checkpoint lists."""
    from raincast.models.inputs import Inputs

    scaled = [(c["name"], construct(c["transform"]), c["role"]) for c in described if "transform" in c]
    return Inputs(
        observed=any(channel["role"] == "past" and "transform" not in channel for channel in described),
        past=tuple((name, transform) for name, transform, _ in scaled),
        future=tuple((name, transform) for name, transform, role in scaled if role == "future"),
    )
