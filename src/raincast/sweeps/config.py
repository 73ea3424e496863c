"""The configs of a sweep's trials: what they share, where two differ, and what makes a run a trial."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from raincast.sweeps.goals import Goal

OWN = re.compile(r"[+~]*(sweep|launcher|hydra)([./=@].*)?")
"""Overrides of the sweep itself: no trial has them."""
APART = ("paths", "logger", "trainer.accelerator", "trainer.devices", "data.num_workers")
"""Config keys in which the workers of one study may differ: where they are, not what they train. Of data.archive
the name alone counts."""


def fixed_overrides(task: Sequence[str]) -> list[str]:
    """What the command line says of every trial: all but what is of the sweep itself."""
    return [override for override in task if not OWN.fullmatch(override)]


def trial_overrides(goals: "Sequence[Goal]", pruner: DictConfig | None, run_dir: Path) -> list[str]:
    """What makes a training run a trial: its folder, and the callback that reports to the study."""
    from raincast.sweeps.space import hydra_text

    callback = {
        "_target_": "raincast.sweeps.callback.TrialCallback",
        "run_dir": "${paths.run_dir}",
        "monitor": "${callbacks.best.monitor}",
        "mode": "${callbacks.best.mode}",
        "goals": [{"_target_": "raincast.sweeps.goals.Goal", "score": g.score, "want": g.want} for g in goals],
        "pruner": OmegaConf.to_container(pruner, resolve=True) if pruner else None,
    }
    return [f"+callbacks.trial={hydra_text(callback)}", f"hydra.run.dir={hydra_text(str(run_dir))}"]


def comparable(cfg: DictConfig) -> str:
    """The config that all trials of a study share, as YAML."""
    plain = cfg.copy()
    OmegaConf.set_struct(plain, False)
    for key in APART:
        if OmegaConf.select(plain, key) is not None:
            OmegaConf.update(plain, key, None, merge=False)
    if plain.data.archive is not None:
        plain.data.archive = Path(plain.data.archive).name
    return OmegaConf.to_yaml(plain, resolve=False)


def differing_keys(theirs: Any, mine: Any, prefix: str = "") -> list[str]:
    """`key: value there, value here`, for each leaf that differs."""
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
    """A file of conf/sweep/ or conf/launcher/ that sets keys of the run would not reach the trials."""
    rest = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key not in ("sweep", "hydra")})
    keys = [line.partition(":")[0] for line in differing_keys(OmegaConf.create(comparable(base)),
                                                              OmegaConf.create(comparable(rest)))]  # fmt: skip
    if keys:
        raise ValueError(
            f"The sweep's config sets {', '.join(keys)}, which would not reach its trials: put that into an "
            "experiment (conf/experiment/), and leave `sweep` and `hydra` in the sweep's."
        )
