"""The checkpoint from which a training run resumes, and checks that it belongs to the same run."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.plain import differences
from raincast.system.files import write_text
from raincast.system.lock import is_first_process

if TYPE_CHECKING:
    from torch import nn

    from raincast.models.inputs import Inputs

log = logging.getLogger(__name__)

COMPARED = ("model", "head", "transform", "loss", "data.input_steps", "data.lead_steps", "data.crop")
"""Settings that must not change."""
NOT_COMPARED = ("checkpoint", "resume", "paths", "callbacks", "logger", "name")
"""Settings that may change without a warning."""
FINISHED = "finished.json"


@contextmanager
def alone(cfg: DictConfig) -> Iterator[None]:
    """Lock a run folder that the same command would use again; raises ValueError if another process has it.

    The system releases the lock of a process that dies. Raises ValueError also if `name` is taken by another run.
    """
    if not _has_own_folder(cfg) or not is_first_process():
        yield
        return
    from raincast.system.lock import held

    folder = Path(cfg.paths.run_dir)
    if cfg.resume is None and assembly.last_checkpoint(cfg).exists():
        raise ValueError(
            f"{folder} already holds a run. resume=auto continues it; another name= starts another run."
        )
    refusal = f"Another process is training in {folder}. Wait until it ends, or give this run another name=."
    with held(folder / ".train.lock", refusal):
        yield


def _has_own_folder(cfg: DictConfig) -> bool:
    return cfg.resume is not None or cfg.name is not None


def find(cfg: DictConfig) -> assembly.Checkpoint | None:
    """Return the checkpoint to resume from, or None; later checkpoints are saved in its folder.

    `resume=auto` takes the newest undamaged one of this run's folder, and starts from scratch if there is none.
    Raises ValueError for contradictory settings.
    """
    if cfg.resume not in (None, "auto"):
        raise ValueError(f"resume={cfg.resume}: give auto, or null. To resume from a file, use checkpoint=….")
    if cfg.checkpoint is not None and cfg.warm_start is not None:
        raise ValueError(
            "checkpoint= resumes a run, warm_start= starts one with the weights of another: give one of them."
        )
    if cfg.resume == "auto":
        if cfg.checkpoint is not None:
            raise ValueError(
                f"checkpoint={cfg.checkpoint} and resume=auto both say where to resume: give one of them."
            )
        from raincast.training.durable.continuing import newest_whole

        last = assembly.last_checkpoint(cfg)
        newest = newest_whole(last, last.with_name("previous.ckpt"))
        cfg.checkpoint = str(newest) if newest else None
    if cfg.checkpoint is None:
        return None
    checkpoint = assembly.read_checkpoint(cfg.checkpoint)  # reports what is wrong with it
    cfg.callbacks.best.dirpath = str(checkpoint.path.parent)
    log.info("Resuming after step %d, from %s", checkpoint.step, checkpoint.path)
    return checkpoint


def warm_start(cfg: DictConfig, net: "nn.Module", info: dict[str, Any]) -> None:
    """Load the weights of `cfg.warm_start`, log which, and warn of possible mismatches."""
    from raincast.training.warm_start import warm_start

    old = assembly.read_checkpoint(cfg.warm_start)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in old.state.items() if k.startswith(prefix)}
    seen = [_seen(inputs) for inputs in (old.inputs, assembly.inputs_of(info["channels"]))]
    done = warm_start(net, weights, old_channels=seen[0], channels=seen[1])
    log.info("Warm start from %s:\n  %s", old.path, done)
    if old.config["transform"] != OmegaConf.to_container(cfg.transform, resolve=True):
        log.warning("Its weights were learned with another transform: they stand for other rates here.")
    if old.info["step_minutes"] != info["step_minutes"]:
        steps = (old.info["step_minutes"], info["step_minutes"])
        log.warning("Its weights were learned on steps of %g minutes; here they are %g.", *steps)


def _seen(inputs: "Inputs") -> list[str]:
    return ["rain", *(["observed"] if inputs.observed else []), *(name for name, _ in inputs.past)]


def check(cfg: DictConfig, info: dict[str, Any], old: assembly.Checkpoint | None) -> None:
    """Raise ValueError if this run differs from the checkpoint's in an essential setting; log other changes."""
    if old is None:
        return
    seen, given = old.inputs, assembly.inputs_of(info["channels"])
    mine = assembly.read_config(assembly.config_text(cfg))
    both = [(key, _selected(old.config, key), _selected(mine, key)) for key in COMPARED]
    reasons = [f"{key}: {there} there, {here} here" for key, there, here in both if there != here]
    if seen != given:
        reasons.append(f"data.channels: {seen} there, {given} here")
    if old.info["split_hash"] != info["split_hash"]:
        reasons.append("the windows of train, val and test (data.archive or data.split)")
    if reasons:
        raise ValueError(
            f"{cfg.checkpoint} cannot be resumed as this run. Different are: " + "; ".join(reasons) + ". "
            "Give the overrides with which it was started."
        )
    _check_length(cfg, old)
    was, now = ({k: v for k, v in config.items() if k not in NOT_COMPARED} for config in (old.config, mine))
    changed = [f"{key} {before}, now {found}" for key, before, found in differences(was, now)]
    if changed:
        log.warning("Changed since the run was started: %s", "; ".join(changed))


def _check_length(cfg: DictConfig, old: assembly.Checkpoint) -> None:
    """Raise ValueError if the run would end before the point that it has reached."""
    for key, limit, reached in (
        ("max_epochs", cfg.trainer.max_epochs, old.epoch + 1),
        ("max_steps", cfg.trainer.max_steps, old.step),
    ):
        if limit not in (None, -1) and limit < reached:
            raise ValueError(
                f"trainer.{key}={limit}: the run of {old.path} has already reached {reached}. "
                f"Give {reached} or more."
            )


def _selected(config: Any, key: str) -> Any:
    """Return the value at a dotted key of plain data; None if there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def logger_ids(cfg: DictConfig, old: assembly.Checkpoint | None) -> dict[str, str]:
    """Return the ids of logger runs to continue: from the checkpoint, or from a run killed before its first."""
    if old is not None:
        ids: dict[str, str] = old.info["loggers"]
        return ids
    path = Path(cfg.paths.run_dir) / "loggers.json"
    if cfg.resume is None or not path.is_file():
        return {}
    try:
        noted: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # truncated by a kill
        return {}
    return noted


def note_logger_ids(cfg: DictConfig, ids: dict[str, str]) -> None:
    """Save the ids for a run killed before its first checkpoint."""
    if _has_own_folder(cfg) and ids and is_first_process():
        (Path(cfg.paths.run_dir) / "loggers.json").write_text(json.dumps(ids), encoding="utf-8")


def _identity(cfg: DictConfig) -> str:
    """Return a hash that changes with anything that determines the run."""
    whole: Any = OmegaConf.to_container(cfg, resolve=False)
    plain = {key: value for key, value in whole.items() if key not in (*NOT_COMPARED, "hydra")}
    plain["callbacks"] = {key: value for key, value in whole["callbacks"].items() if key != "best"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def note_finished(cfg: DictConfig, metrics: dict[str, float], *, best: Path, last: Path) -> None:
    """Record that nothing is left to do."""
    note = {"config": _identity(cfg), "metrics": metrics, "best": str(best), "last": str(last)}
    write_text(Path(cfg.paths.run_dir) / FINISHED, json.dumps(note, indent=1), sole=True)


def finished(cfg: DictConfig) -> dict[str, Any] | None:
    """Return the record of `note_finished` if this run is over, so that it is not trained again; else None."""
    path = Path(cfg.paths.run_dir) / FINISHED
    if cfg.resume is None or not path.is_file():
        return None
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # truncated by a kill or a power cut
        return None
    if note["config"] != _identity(cfg):
        return None
    # the folder may have been moved since
    checkpoints = Path(cfg.callbacks.last.dirpath)
    note |= {key: str(checkpoints / Path(note[key]).name) for key in ("best", "last")}
    log.info("This run is finished: %s. To train it again, give it another name=.", os.path.relpath(path.parent))
    return note
