"""The configs of a sweep's trials: their common part, and the search space in Hydra's syntax.

A key of the space is a config key (`optimizer.lr`), a choice of files (`model`), or a key of the items of a list:
`model.stages[*].hidden_channels` is that of all items, `model.stages[0].hidden_channels` that of the first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

if TYPE_CHECKING:
    from raincast.sweeps.trials import Goal

OWN = re.compile(r"[+~]*(sweep|launcher|hydra)([./=@].*)?")
"""Overrides of the sweep itself, which no trial has."""
APART = ("paths", "logger", "trainer.accelerator", "trainer.devices", "data.num_workers")
"""Config keys in which the workers of one study may differ: they depend on the machine, not on what is trained.

Only the name of data.archive counts.
"""


def fixed_overrides(task: Sequence[str]) -> list[str]:
    """Return the overrides that all trials share: those of the command line except the sweep's own."""
    return [override for override in task if not OWN.fullmatch(override)]


def trial_overrides(goals: "Sequence[Goal]", pruner: DictConfig | None, run_dir: Path) -> list[str]:
    """Return the overrides that make a run a trial: its folder, and the callback that reports to the study."""
    callback = {
        "_target_": "raincast.sweeps.callback.TrialCallback",
        "run_dir": "${paths.run_dir}",
        "monitor": "${callbacks.best.monitor}",
        "mode": "${callbacks.best.mode}",
        "goals": [{"_target_": "raincast.sweeps.trials.Goal", "score": g.score, "want": g.want} for g in goals],
        "pruner": OmegaConf.to_container(pruner, resolve=True) if pruner else None,
    }
    return [f"+callbacks.trial={hydra_text(callback)}", f"hydra.run.dir={hydra_text(str(run_dir))}"]


def comparable(cfg: DictConfig) -> str:
    """Return the config that all trials of a study share, as YAML."""
    plain = cfg.copy()
    OmegaConf.set_struct(plain, False)
    for key in APART:
        if OmegaConf.select(plain, key) is not None:
            OmegaConf.update(plain, key, None, merge=False)
    if plain.data.archive is not None:
        plain.data.archive = Path(plain.data.archive).name
    return OmegaConf.to_yaml(plain, resolve=False)


def differing_keys(theirs: Any, mine: Any, prefix: str = "") -> list[str]:
    """Return `key: value there, value here` for each leaf that differs."""
    if not (OmegaConf.is_dict(theirs) and OmegaConf.is_dict(mine)):
        return [] if theirs == mine else [f"{prefix[:-1]}: {_plain(theirs)} there, {_plain(mine)} here"]
    keys = list(dict.fromkeys([*theirs, *mine]))
    nodes = ((key, theirs._get_node(key), mine._get_node(key)) for key in keys)
    return [line for key, a, b in nodes for line in differing_keys(_leaf(a), _leaf(b), f"{prefix}{key}.")]


def _leaf(node: Any) -> Any:
    return node if node is None or OmegaConf.is_config(node) else node._value()


def _plain(value: Any) -> str:
    return str(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def check_sets_nothing_else(cfg: DictConfig, base: DictConfig) -> None:
    """Raise ValueError if a file of conf/sweep/ or conf/launcher/ sets keys that would not reach the trials."""
    rest = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key not in ("sweep", "hydra")})
    keys = [line.partition(":")[0] for line in differing_keys(OmegaConf.create(comparable(base)),
                                                              OmegaConf.create(comparable(rest)))]  # fmt: skip
    if keys:
        raise ValueError(
            f"The sweep's config sets {', '.join(keys)}, which would not reach its trials. Put that into an "
            "experiment (conf/experiment/), and keep only `sweep` and `hydra` in the sweep's."
        )


WORDS = "interval(0, 1), tag(log, interval(1e-4, 1e-2)), int(interval(1, 8)), range(8, 65, step=8), choice(3, 5)"
PLAIN = re.compile(r"[A-Za-z_./][\w./:+-]*")
LIST_KEY = re.compile(r"(?P<list>[\w.]+)\[(?P<index>\*|\d+)\]\.(?P<key>[\w.]+)")


def parse_space(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each key; null means that the key is not searched.

    Raises ValueError with the supported syntax.
    """
    return {key: _distribution(key, text) for key, text in space.items() if text is not None}


def _distribution(key: str, text: Any) -> BaseDistribution:
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if isinstance(value, RangeSweep):
            return _range(value)
        if isinstance(value, ChoiceSweep):
            return CategoricalDistribution([_choice(item) for item in value.list])
    except (HydraException, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"sweep.space: {key}: {text} is not understood ({reason}). Use {WORDS}.") from error
    raise ValueError(f"sweep.space: {key}: {text} is one value, nothing to search. Use {WORDS}.")


def _interval(value: IntervalSweep) -> BaseDistribution:
    log = "log" in value.tags
    start, end = value.start, value.end
    assert start is not None and end is not None
    if isinstance(start, int) and isinstance(end, int):
        return IntDistribution(start, end, log=log)
    return FloatDistribution(float(start), float(end), log=log)


def _range(value: RangeSweep) -> BaseDistribution:
    assert value.start is not None and value.stop is not None
    numbers = list(value.range())
    if not numbers:
        raise ValueError("it is empty")
    low, high, step = numbers[0], numbers[-1], value.step
    if all(isinstance(number, int) for number in (low, high, step)):
        return IntDistribution(int(low), int(high), step=int(step))
    return FloatDistribution(float(low), float(high), step=float(step))


def _choice(item: Any) -> bool | int | float | str:
    """Return an item as Optuna can store it: a number or text; anything else becomes Hydra's text."""
    return item if isinstance(item, bool | int | float) else hydra_text(item)


def hydra_text(value: Any) -> str:
    """Return `value` as written in an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(hydra_text, value)) + "]"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def overrides_of(params: Mapping[str, Any], compose: Callable[[list[str]], DictConfig]) -> list[str]:
    """Return a trial's parameters as overrides; `compose` returns the config of some of them.

    Hydra has no key for an item of a list, so such parameters become the whole list, composed with the others.
    """
    texts = {key: value if isinstance(value, str) else hydra_text(value) for key, value in params.items()}
    plain = [f"{key}={text}" for key, text in texts.items() if not LIST_KEY.fullmatch(key)]
    found = [(match, key) for key in params if (match := LIST_KEY.fullmatch(key))]
    if not found:
        return plain
    config = compose(plain)
    lists: dict[str, list[Any]] = {}
    for match, key in found:
        name = match["list"]
        if name not in lists:
            items = OmegaConf.select(config, name)
            if not OmegaConf.is_list(items):
                raise ValueError(f"sweep.space: {key}: there is no list {name} in the config.")
            lists[name] = list(OmegaConf.to_container(items, resolve=True))  # type: ignore[arg-type]
        _set_item(lists[name], match, _parsed(texts[key]))
    return [*plain, *(f"{name}={hydra_text(items)}" for name, items in lists.items())]


def default_params(
    space: Mapping[str, BaseDistribution], config: DictConfig, choices: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values that `config` itself has for the keys of `space`, as far as they lie in it.

    `choices` has the chosen files by config group, such as `head: distribution`.
    """
    found = {}
    for key, distribution in space.items():
        value = choices[key] if key in choices else _own_value(key, config)
        own = value if isinstance(value, bool | int | float) or value is None else hydra_text(value)
        try:
            inside = own is not None and distribution._contains(distribution.to_internal_repr(own))
        except (ValueError, TypeError):
            inside = False
        if inside:
            found[key] = own
    return found


def _own_value(key: str, config: DictConfig) -> Any:
    """Return a key's value in `config`; for all items of a list, the first item's value if they agree."""
    match = LIST_KEY.fullmatch(key)
    name = key if match is None else match["list"]
    node = OmegaConf.select(config, name)
    value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if match is None or not isinstance(value, list) or not value:
        return value
    chosen = value if match["index"] == "*" else value[int(match["index"]) :][:1]
    values = [OmegaConf.select(OmegaConf.create(item), match["key"]) for item in chosen]
    return values[0] if values and all(other == values[0] for other in values) else None


def _parsed(text: str) -> Any:
    return OverridesParser.create().parse_override(f"key={text}").value()


def _set_item(items: list[Any], match: re.Match[str], value: Any) -> None:
    chosen = range(len(items)) if match["index"] == "*" else [int(match["index"])]
    for number in chosen:
        *way, last = match["key"].split(".")
        node: Any = items[number] if number < len(items) else None
        for word in way:
            node = node.get(word) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            there = ", ".join(items[0]) if items and isinstance(items[0], dict) else "no keys"
            raise ValueError(f"sweep.space: {match[0]}: {match['list']} has {len(items)} items with {there}.")
        node[last] = value
