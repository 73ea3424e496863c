"""Read configs from files as plain data, and construct objects only from a fixed table of classes.

A checkpoint or an exported network may come from an untrusted source. Its config is parsed once, within limits,
and never passed to OmegaConf or Hydra: interpolations stay text, and `_target_` must name a class of `CLASSES`.
"""

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

MAX_CHARACTERS = 1_000_000
"""raincast's configs have about 10,000 characters."""
MAX_DEPTH = 30
"""raincast's configs have about 8 levels."""

CLASSES: Mapping[str, tuple[str, ...]] = {
    "raincast.data.channels": ("Coverage", "DayAngle", "Observed", "RadarDistance", "SeasonAngle", "Sun"),
    "raincast.data.channels.field": ("Field",),
    "raincast.data.datamodule": ("RadarDataModule",),
    "raincast.data.events": ("EventSplit",),
    "raincast.data.radar": ("RadarData",),
    "raincast.data.sampler": ("Sampling",),
    "raincast.data.windows": ("BlockSplit", "DateSplit", "TestAll"),
    "raincast.models.distribution": ("DistributionHead",),
    "raincast.models.encoder_forecaster": ("PyramidEncoderForecaster", "StackedEncoderForecaster"),
    "raincast.models.heads": ("ClassHead", "QuantileHead", "RateHead"),
    "raincast.models.lagrangian": ("LagrangianForecaster",),
    "raincast.models.layers.convgru": ("ConvGRU",),
    "raincast.models.layers.convlstm": ("ConvLSTM",),
    "raincast.models.layers.trajgru": ("TrajGRU",),
    "raincast.models.predrnn": ("STLSTM", "PredRNN"),
    "raincast.transforms": ("DbzScaling", "LinearScaling", "LogScaling", "RateScaling"),
}
"""All classes that a file may name, by module. They only compute, and read archives and fields."""


def read_config(text: Any) -> dict[str, Any]:
    """Parse the YAML `text` to a mapping of plain data. Raises ValueError for anything else.

    Anchors, aliases and tags, which raincast never writes, are refused: 430 bytes of aliases can expand to 10^9
    values.
    """
    check_text(text)
    try:
        found = yaml.load(text, Loader=get_yaml_loader())  # OmegaConf's loader reads 1e-3 as a number
    except yaml.YAMLError as error:
        raise ValueError(f"its config is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("its config is not a mapping of names")
    return found


def differences(old: Any, new: Any, key: str = "", *, common: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings in which two plain configs differ: the dotted key, the old and the new value.

    A key that only one of them has counts as None in the other; with `common` it is left out.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() & new.keys() if common else old.keys() | new.keys()):
            dotted = f"{key}.{name}" if key else name
            yield from differences(old.get(name), new.get(name), dotted, common=common)
    elif old != new:
        yield key, old, new


def check_text(text: Any) -> None:
    """Raise ValueError if untrusted YAML is too long or too deep, or has anchors, aliases or tags."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise ValueError(f"its config is not a string of at most {MAX_CHARACTERS:,} characters")
    try:
        _check_events(text)
    except yaml.YAMLError as error:
        raise ValueError(f"its config is not YAML: {str(error).splitlines()[0]}") from error


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.events.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("its config has YAML anchors or aliases, which raincast does not write")
        if getattr(event, "tag", None) not in (None, "!"):
            raise ValueError(f"its config has the YAML tag {event.tag}, which raincast does not write")
        depth += isinstance(event, yaml.events.CollectionStartEvent)
        depth -= isinstance(event, yaml.events.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"its config is nested deeper than {MAX_DEPTH} levels")


def construct(node: Any) -> Any:
    """Construct the object that plain data describes with `_target_`, using only `CLASSES`.

    Hydra's `instantiate` would resolve interpolations and call any function that `_target_` names. Raises
    ValueError if the class is unknown or rejects its arguments.
    """
    if isinstance(node, list):
        return [construct(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    values = {key: construct(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return values
    target = str(node["_target_"])
    made = known_class(target)
    if node.get("_partial_"):
        return functools.partial(made, **values)
    try:
        return made(**values)
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"{target} cannot be built with its settings: {error}") from error


def known_class(target: str) -> type:
    """Return the class of `CLASSES` called `target`. Raises ValueError if there is none."""
    module, _, name = target.rpartition(".")
    if name not in CLASSES.get(module, ()):
        raise ValueError(
            f"A checkpoint or exported network names {target}, which is not loaded: it is none of the classes "
            "that a file may name (raincast.plain.CLASSES)."
        )
    found: type = getattr(importlib.import_module(module), name)
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` into `below` recursively by mapping; lists are replaced."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both
