"""Config → the parts of commands: archive, data, network, metrics, baselines, readers.

Heavy packages are imported inside the functions that need them, so that a mistyped key is reported at once.
"""

import functools
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from raincast.plain import construct
from raincast.system.paths import conf_dir
from raincast.system.remote import as_path

if TYPE_CHECKING:
    from torch import nn

    from raincast.data.channels.declared import Channels
    from raincast.data.datamodule import RadarDataModule
    from raincast.data.radar import RadarData
    from raincast.evaluation import Metrics
    from raincast.forecaster import Forecaster
    from raincast.ingest.readers import Reader
    from raincast.models.heads import Head
    from raincast.models.inputs import Inputs

log = logging.getLogger(__name__)


def make(node: Any, **arguments: Any) -> Any:
    """Build the object that a config's `_target_` names; dataclasses are kept, lists become lists."""
    return instantiate(node, _convert_="object", **arguments)


def archive_path(
    cfg: DictConfig,
    progress: Callable[[int, int], None] | None = None,
    *,
    archive: str | None = None,
) -> Path:
    """Return `archive`, else the archive of `cfg.data`, else the built-in one, which is built on first use."""
    if archive or cfg.data.archive is not None:
        return as_path(archive or cfg.data.archive)
    from raincast.synthetic import build_builtin_archive
    from raincast.system.lock import waited_for

    path = Path(cfg.paths.data_dir) / "builtin"
    log.warning(
        "No archive is configured, so this run uses the built-in archive of synthetic storms in %s.\n"
        "To train on radar instead: python ingest.py files='…' archive=data/NAME, then add data.archive=data/NAME",
        path,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # the other processes of a run, and other runs, wait here until the archive is built
    with waited_for(path.with_name(".builtin.lock")):
        build_builtin_archive(path, progress=progress)
    return path


def datamodule(cfg: DictConfig, archive: Path) -> "RadarDataModule":
    """Build `cfg.data` on `archive` for training by Lightning.

    Raises ValueError if its class is neither RadarData nor a RadarDataModule. A function is called as it is.
    """
    from raincast.data.datamodule import RadarDataModule
    from raincast.data.radar import RadarData

    settings: Any = make(cfg.data, archive=str(archive), _partial_=True)
    kind = RadarDataModule if settings.func is RadarData else settings.func
    if isinstance(kind, type) and not issubclass(kind, RadarDataModule):
        raise ValueError(
            f"data._target_={cfg.data._target_}: training needs raincast.data.radar.RadarData, or a subclass of "
            "raincast.data.datamodule.RadarDataModule."
        )
    made: RadarDataModule = kind(*settings.args, **settings.keywords)
    return made


def data_of(data: Mapping[str, Any], archive: Path) -> "RadarData":
    """Build the data of a checkpoint's settings (plain data) on `archive`; raises ValueError if it is not any."""
    from raincast.data.radar import RadarData

    made = construct({**data, "archive": str(archive)})
    if not isinstance(made, RadarData) or not hasattr(made.split, "ranges"):
        raise ValueError(f"The data of a checkpoint must be a RadarData with a split, found {data}.")
    return made


PAIRS = (
    "head=distribution loss=distribution, head=ordinal loss=ordinal, head=softmax loss=softmax or ordinal, "
    "head=quantiles loss=quantiles, head=rate loss=balanced"
)
"""Heads with the losses of conf/loss/ that fit them."""


def _missing(error: InterpolationKeyError) -> str:
    """Return the key, such as head.thresholds, that the loss takes from the head."""
    found = re.search(r"'([^']+)' not found", str(error))
    return found[1] if found else str(error).splitlines()[0]


def head(cfg: DictConfig) -> "Head":
    """Build the head of `cfg.head`; raises ValueError if `cfg.loss` does not belong to it."""
    try:
        OmegaConf.to_container(cfg.loss, resolve=True)
    except InterpolationKeyError as error:
        raise ValueError(
            f"{cfg.loss._target_} does not belong to {cfg.head._target_}, which has no {_missing(error)}. "
            f"Pairs that fit: {PAIRS}. Choose the head with head=… and leave loss=… out: each head sets its "
            "own loss."
        ) from error
    made: Head = make(cfg.head)
    return made


def network(model: Mapping[str, Any], *, num_channels: int = 1, inputs: "Inputs | None" = None) -> "nn.Module":
    """Build the network of a model config with the input channels of `inputs` (rain by default).

    Its output channels are those of its head.
    """
    built: nn.Module = make(_with_channels(model, num_channels, inputs))
    return built


def _with_channels(
    model: Mapping[str, Any],
    num_channels: int,
    inputs: "Inputs | None",
    find: Callable[[str], Any] = get_object,
) -> dict[str, Any]:
    """Return `model` with its numbers of channels; raises ValueError for other numbers or unsupported channels.

    `find` returns the class of a name.
    """
    seen, known = (inputs.num_channels, len(inputs.future)) if inputs else (1, 0)
    for key, number, whose, source in (
        ("out_channels", num_channels, f"the head reads {num_channels}", "the head"),
        ("in_channels", seen, f"data.channels and the rain are {seen}", "data.channels"),
    ):
        if model.get(key, number) != number:
            raise ValueError(
                f"model.{key}={model[key]}, but {whose} channels. Leave model.{key} out (~model.{key}): it "
                f"follows from {source}."
            )
    numbers = {"out_channels": num_channels, "in_channels": seen}
    if known:
        target = str(model["_target_"])
        if "future_channels" not in inspect.signature(find(target)).parameters:
            raise ValueError(
                f"{target.rpartition('.')[2]} takes no channels that are known in advance; data.channels has "
                f"{known}. Give them the role past, or use another network, such as model=convlstm."
            )
        numbers["future_channels"] = known
    return {**model, **numbers}


def channels(cfg: DictConfig) -> "Channels":
    """Return the channels that `cfg.data.channels` declares; no file is opened."""
    from raincast.data.channels.declared import Channels

    declared = OmegaConf.to_container(cfg.data.channels, resolve=True) if cfg.data.get("channels") else {}
    return Channels(make(declared))


def check_crop(data: "RadarData", net: "nn.Module", crop: int | None) -> None:
    """Raise ValueError unless a training crop is a multiple of the network's stride; whole frames are padded."""
    stride = int(getattr(net, "stride", 1))
    if crop is None or crop % stride == 0 or data.crop == data.archive.grid.shape:
        return
    below, above = crop // stride * stride, (crop // stride + 1) * stride
    better = f"{below} or {above}" if below else str(above)
    raise ValueError(
        f"data.crop={crop} is not a multiple of the network's stride {stride}: part of every crop would be "
        f"padding. Use data.crop={better}."
    )


def metrics(cfg: DictConfig, data: "RadarData") -> "Metrics":
    """Build the settings of `cfg.metrics` without the goal.

    Raises ValueError if these windows do not allow them.
    """
    from raincast.evaluation import Scoring

    settings = mapping(OmegaConf.to_container(cfg.metrics, resolve=True))
    for key in ("goal", "goal_mode"):
        settings.pop(key, None)
    made: Metrics = make({"_target_": "raincast.evaluation.Metrics", **settings})
    grid, meaning, step = data.archive.grid, data.archive.meaning, data.archive.step_minutes
    if made.accumulations and meaning.is_averaged and meaning.minutes != step:
        raise ValueError(
            f"metrics.accumulations={list(made.accumulations)}: {data.archive.path} holds {meaning}, one frame "
            f"every {step:g} min. They do not add up to depths: set metrics.accumulations=[]."
        )
    Scoring(made, data.archive.step_minutes, grid.pixel_km).check(data.lead_steps, data.eval_crop)
    return made


def check_baselines(cfg: DictConfig, names: list[str]) -> None:
    """Raise ValueError if `cfg.baseline` lacks any of `names`."""
    unknown = [name for name in names if name not in cfg.baseline]
    if unknown:
        raise ValueError(f"baselines: {', '.join(unknown)} unknown; there are {', '.join(cfg.baseline)}.")


def baselines(cfg: DictConfig, names: list[str]) -> "list[Forecaster]":
    """Build the baselines of `cfg.baseline` called `names`."""
    check_baselines(cfg, names)
    return [make(cfg.baseline[name]) for name in names]


def baseline_makers(cfg: DictConfig) -> "dict[str, Callable[[], Forecaster]]":
    """Return constructors of `cfg.baselines` that also work in other processes, by name.

    Raises ValueError if one is unknown or wrong.
    """
    made = baselines(cfg, list(cfg.baselines))
    nodes = [mapping(OmegaConf.to_container(cfg.baseline[name], resolve=True)) for name in cfg.baselines]
    return {one.name: functools.partial(make, node) for one, node in zip(made, nodes, strict=True)}


def reader(cfg: DictConfig) -> "Reader":
    """Build the reader of `cfg.source`, which limits and cleans its frames as `cfg.quality` says."""
    from raincast.ingest.quality import Cleaned
    from raincast.ingest.readers import Limited

    made: Reader = Cleaned(Limited(make(cfg.source), cfg.max_megapixels), make(cfg.quality))
    return made


def reader_named(source: str = "auto", **settings: Any) -> "Reader":
    """Build the reader of conf/source/`source`.yaml with `settings` and the default limits of forecasts.

    Raises ValueError for an unknown source, and for settings without one.
    """
    from raincast.ingest.quality import Cleaned, Quality
    from raincast.ingest.readers import Auto

    folder = conf_dir() / "source"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if source not in known:
        raise ValueError(f"source={source!r} is unknown; there are {', '.join(known)}.")

    def made(name: str, **own: Any) -> Any:
        return make(OmegaConf.merge(OmegaConf.load(folder / f"{name}.yaml"), own))

    if source != "auto":
        return Cleaned(made(source, **settings), Quality())
    if settings:
        raise ValueError(f'{", ".join(settings)}: settings belong to one format. Name it: source="cf" …')
    listed: Any = OmegaConf.select(OmegaConf.load(folder / "auto.yaml"), "defaults")
    names = [str(entry).partition("@")[0] for entry in listed if entry != "_self_"]
    return Cleaned(Auto({name: made(name) for name in names}), Quality())


def mapping(container: Any) -> dict[str, Any]:
    """Return a container of OmegaConf as a mapping."""
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
