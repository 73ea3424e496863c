"""A check of the composed config: every key is known, and every value has the expected type.

Keys next to a `_target_` are arguments of the class or function that it names, and its signature has their types.
`SETTINGS` has the types of all other keys. pydantic compares values strictly, as those of a JSON document: a list
may be a tuple, a string a path, a whole number a number; nothing else is converted.
"""

import difflib
import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

Names = Sequence[str]
Numbers = Sequence[float]
Rectangle = Sequence[float]
Node = Mapping[str, Any]
Device = str

SETTINGS: dict[str, Any] = {
    # several commands
    "checkpoint": str | None,
    "seed": int,
    "baselines": Names,
    "device": Device,
    "workers": int | None,
    "overwrite": bool,
    "lead_steps": int | None,
    "paths.data_dir": str,
    "paths.output_dir": str,
    "paths.run_dir": str,
    "metrics.goal": str,
    "metrics.goal_mode": Literal["max", "min"],
    # train
    "name": str | int | None,
    "resume": str | None,
    "warm_start": str | None,
    "ema": float | None,
    "compile": str | None,
    "recompute": bool,
    "tf32": bool,
    "sweep.study": str,
    "sweep.dir": str,
    "sweep.storage": str,
    "sweep.trials": int,
    "sweep.workers": int,
    "sweep.worker": int,
    "sweep.gpus": Sequence[int] | None,
    "sweep.default_first": bool,
    "sweep.retries": int,
    "sweep.max_failures": int,
    "sweep.dead_after_minutes": float,
    "sweep.goals": Names,
    "sweep.space": Node,
    # evaluate
    "compare": Names | None,
    "split": Literal["test", "val", "train", "all"],
    "calibrate": bool,
    "rates_by": Names | Literal["area", "csi", "mean", "matched"] | None,
    "members": int | None,
    "list_windows": str | None,
    "unfinished": str,
    "confidence": float,
    "resamples": int,
    "resampling_seed": int,
    "data.archive": str | None,
    "data.lead_steps": int | None,
    "data.split": Node | None,
    "data.eval_crop": int | None,
    "data.eval_stride": int | None,
    "data.eval_batch_size": int | None,
    "data.num_workers": int | None,
    "data.seed": int,
    # forecast
    "input": str | Names | None,
    "nwp": str | Names | None,
    "watch": str | None,
    "init_time": str,
    "every": int,
    "folder": str,
    "exceedance": Numbers | None,
    "calibrated": bool,
    "max_missing": int | None,
    "other_grid": bool,
    "reach": bool,
    "memory_gib": float | None,
    "tile_overlap": int,
    "channels": Node,
    "precision": Literal["float32", "bf16"],
    "formats": Sequence[Literal["netcdf", "zarr", "geotiff", "png"]],
    "for_pysteps": bool,
    "animation": Literal["gif", "mp4", False],
    "pictures": bool,
    "time_zone": str | None,
    "coastlines": bool,
    "places": str | None,
    "site": str | None,
    "site_hours": float,
    "max_megapixels": float,
    # serve
    "host": str,
    "port": int,
    "stale_minutes": float,
    # ingest
    "replace": bool,
    "max_off_step": float,
    "encoding": Literal["zstd", "zlib"],
    "files": str | Names | None,
    "archive": str | None,
    "inspect": str | None,
    "report": str | None,
    "audit": str | None,
    "max_rate": float,
    "min_rate": float,
    "speck_pixels": int,
    "clutter_maps": str | None,
    "clutter_share": float,
    "grid.crop": Sequence[int] | None,
    "grid.coarsen": int,
    "grid.reproject": str | None,
    "grid.spacing": float | None,
    "grid.bounds": Rectangle | None,
    "attrs": Node,
    "scheduler": str | None,
    # export
    "format": Literal["netcdf", "zarr", "onnx", "torch"],
    "path": str | None,
    "step_minutes": float | None,
    "pixel_km": float | None,
    "size": Sequence[int] | None,
    # summary
    "batch_size": int,
    "input_steps": int,
    "height": int | None,
    "width": int | None,
    "optimizer_slots": int,
}
"""Types of keys that no `_target_` takes, by full name."""

SEEDS = (0, 2**32 - 1)  # numpy's legacy generator takes no others
BOUNDS: dict[str, tuple[float, float]] = {
    "seed": SEEDS,
    "data.seed": SEEDS,
    "data.input_steps": (1, math.inf),
    "data.lead_steps": (1, math.inf),
    "data.batch_size": (1, math.inf),
    "data.eval_batch_size": (1, math.inf),
    "data.eval_stride": (1, math.inf),
    "data.crop": (1, math.inf),
    "data.eval_crop": (1, math.inf),
    "data.samples_per_epoch": (1, math.inf),
    "data.max_missing": (0, math.inf),
    "data.num_workers": (0, math.inf),
    "optimizer.lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "trainer.max_epochs": (-1, math.inf),
    "trainer.max_steps": (-1, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "lead_steps": (1, math.inf),
    "max_missing": (0, math.inf),
    "every": (1, math.inf),
    "tile_overlap": (0, math.inf),
    "resamples": (1, math.inf),
    "grid.coarsen": (1, math.inf),
    "speck_pixels": (0, math.inf),
    "port": (0, 65535),
}
"""Least and largest values of numbers whose users would report them late, or not by their key."""

BUILT = {"metrics": "raincast.evaluation.Metrics"}
"""Nodes that are arguments of something that the config does not name."""
OPEN = ("callbacks", "logger", "baseline")
"""Nodes that may have any children."""
ALSO_NULL = ("data.archive", "default_data.archive")
"""Arguments that a command fills in."""
GLOBAL = ("experiment", "debug", "launcher")
"""Groups whose files set keys of the whole config."""


def check(
    cfg: DictConfig,
    *,
    skip: Sequence[str] = (),
    known: Collection[str] = (),
    choices: Mapping[str, Any] | None = None,
) -> None:
    """Raise a ValueError that lists every unknown key and every value of an unexpected type or out of bounds.

    `skip` lists nodes that the command does not use. `known` lists keys that need no type. `choices` are Hydra's,
    group → chosen file.
    """
    for group in GLOBAL:
        if isinstance(cfg.get(group), DictConfig):
            name = (choices or {}).get(group, "NAME")
            raise ValueError(
                f"conf/{group}/{name}.yaml would set nothing: its first line must be '# @package _global_'."
            )
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:  # keys that others refer to are missing: their user reports it
        plain = OmegaConf.to_container(cfg, resolve=False)
    left = {key: value for key, value in plain.items() if key not in ("hydra", *skip)}
    if faults := list(_faults(left, known)):
        raise ValueError("\n  ".join(faults))


def _faults(
    node: Mapping[str, Any], known: Collection[str], where: str = "", target: str | None = None
) -> Iterator[str]:
    """Yield a message for each fault in `node`, which holds the arguments of `target` if there is one."""
    target = node.get("_target_", target)
    hints, takes_all = _signature(target) if target else ({}, where in OPEN or not _has_settings(where))
    for key, value in node.items():
        if key.startswith("_") and key.endswith("_"):
            continue
        full = f"{where}.{key}" if where else key
        expected = hints.get(key, SETTINGS.get(full, Any))
        if not (takes_all or key in hints or full in SETTINGS or full in known or _is_node(full, value)):
            yield _unknown(full, key, target, hints)
        elif (isinstance(value, str) and (value == "???" or "${" in value)) or (
            full in ALSO_NULL and value is None
        ):
            continue  # missing keys and interpolations are reported elsewhere
        elif isinstance(value, dict) and ("_target_" in value or expected in (Any, Node) or _holds_targets(value)):
            yield from _faults(value, known, full, BUILT.get(full))
        elif not _fits(value, expected):
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{full}={shown}: give {_words(expected)}.{_hint(full, value, expected)}"
        elif full in BOUNDS and value is not None and not (bounds := BOUNDS[full])[0] <= value <= bounds[1]:
            end = f"at least {bounds[0]}" if bounds[1] == math.inf else f"from {bounds[0]} to {bounds[1]}"
            yield f"{full}={value}: give {_words(expected)}, {end}."


def _holds_targets(node: Mapping[str, Any]) -> bool:
    return all(isinstance(one, dict) and "_target_" in one for one in node.values())


def _has_settings(where: str) -> bool:
    """Return True if the keys of a node are listed; those of the top level are."""
    return not where or any(key.startswith(f"{where}.") for key in SETTINGS)


def _is_node(full: str, value: Any) -> bool:
    """Return True if a value is a node of the config, rather than an unknown key."""
    return isinstance(value, dict) and ("_target_" in value or full in OPEN or _has_settings(full))


def _signature(target: str) -> tuple[dict[str, Any], bool]:
    """Return the arguments of a `_target_` with their types, and whether it takes any others, too."""
    try:
        made = get_object(target)
        parameters = inspect.signature(made).parameters
    except (ImportError, ValueError, TypeError):  # a missing extra: its user reports it
        return {}, True
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {}, True
    try:
        hints = get_type_hints(made.__init__ if inspect.isclass(made) else made)
    except NameError:  # names imported only for type checkers
        hints = {}
    return {name: hints.get(name, Any) for name in parameters}, False


def _fits(value: Any, expected: Any) -> bool:
    """Return True if a plain `value` has the type; types without a pydantic schema need a node with a _target_."""
    if expected is Any:
        return True
    if get_origin(expected) in (Union, types.UnionType):
        return any(_fits(value, member) for member in get_args(expected))
    plain = (str, int, float, bool, Path, types.NoneType, list, dict, tuple)
    if get_origin(expected) is Callable or (inspect.isclass(expected) and expected not in plain):
        return isinstance(value, dict | list)
    try:
        TypeAdapter(expected).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        return False
    except PydanticUserError:  # a list or mapping of what a _target_ builds
        return isinstance(value, dict | list)
    return True


def _words(expected: Any) -> str:
    """Describe a type in plain words."""
    words = {
        str: "a text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false",
        types.NoneType: "null",
    }  # fmt: skip
    if expected in words:
        return words[expected]
    origin, members = get_origin(expected), get_args(expected)
    if origin is Literal:
        return " or ".join(json.dumps(one) if not isinstance(one, str) else one for one in members)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(member) for member in members))
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping {key: value}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each {_words(members[0]).removeprefix('each ')}"
    return "a node with a _target_"


def _hint(key: str, value: Any, expected: Any) -> str:
    """Return what to type, if that is easily guessed."""
    wanted = _words(expected)
    if "a list" in wanted and not isinstance(value, list | dict) and _fits([value], expected):
        return f" Type {key}=[{value}]."
    if wanted == "a node with a _target_" and isinstance(value, str):
        return f" To choose a file of conf/{key.replace('.', '/')}/ type {key.replace('.', '/')}={value}."
    if wanted == "a text" and isinstance(value, int | float):
        return f" Quoted twice it is one: '{key}=\"{value}\"'."
    return ""


def _unknown(full: str, key: str, target: str | None, hints: Mapping[str, Any]) -> str:
    if target is None:
        near = difflib.get_close_matches(full, SETTINGS, n=2)
        return f"{full}: nothing reads this key." + (f" Did you mean {' or '.join(near)}?" if near else "")
    near = difflib.get_close_matches(key, hints, n=2)
    found = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(hints)}."
    return f"{full}: {target.rpartition('.')[2]} has no such key. {found}"
