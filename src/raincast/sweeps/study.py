"""The study that all workers of a sweep share: next trials, their outcomes, and the detection of dead workers.

A trial belongs to a worker. While it lives, a worker holds the lock of a file in the sweep's folder, and regularly
writes the time into the study. Workers on the same machine therefore see at once that it is dead, and those on
other machines after a while. Its trial then counts as failed, and the same parameters are tried again.
"""

import contextlib
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from raincast.sweeps.trials import Goal
from raincast.system.lock import is_held, waited_for

log = logging.getLogger(__name__)

SURPLUS, TRIED_AGAIN, REASON, WORKER, CURVE = "surplus", "tried_again", "reason", "worker", "curve"
RETRY_OF, RETRIES, DEFAULT = "retry_of", "retries", "default"
"""User attributes of trials."""
BASE, SPACE = "base", "space"
"""User attributes of the study: the config that all trials share, and the space that was searched."""

LINK = "RAINCAST_TRIAL"
"""Environment variable with `process_link` as JSON; not a config key, since it may hold a password."""


def open_storage(where: str) -> optuna.storages.BaseStorage:
    """Open a database URL (sqlite:///…, postgresql://…), redis://…, or otherwise the path of a journal file."""
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend, JournalStorage

    if where.startswith(("redis://", "rediss://")):
        return JournalStorage(JournalRedisBackend(where))
    if "://" in where:
        return optuna.storages.RDBStorage(where)
    Path(where).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(where))


def without_password(where: str) -> str:
    """Return a storage for display: everything before the host's @ is left out."""
    scheme, found, rest = where.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else where


@dataclass(frozen=True)
class Curve:
    """Address of a running trial's validation scores: a study, and the storage's id of a trial in it."""

    study: str
    trial_id: int


class Sweep:
    """One worker's access to the shared study.

    `goals` are the study's directions; trials are pruned by the first. Optuna prunes only in studies with one
    goal. With several, a second study, `NAME (pruning)`, holds the curves of the first goal. `budget` is the
    number of trials that all workers run together; trials that died with their worker and were tried again do not
    count.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        goals: Sequence[Goal],
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        folder: Path,
        budget: int,
        retries: int = 1,
        dead_after_minutes: float = 5.0,
    ) -> None:
        self.goals, self.folder, self.budget, self.retries = list(goals), folder, budget, retries
        self.dead_after_minutes = dead_after_minutes
        self.worker = uuid.uuid4().hex[:8]
        self.fixed = frozenset[str]()
        """The overrides that all trials share, as this worker was given them."""
        backend = open_storage(storage)
        self.study = _create(backend, name, [goal.direction for goal in goals], sampler)
        self.curves = self.study
        if len(goals) > 1:
            self.curves = _create(backend, f"{name} (pruning)", [goals[0].direction], None)
        self._silent = threading.Event()

    def agree(self, base: str, space: Mapping[str, BaseDistribution]) -> str | None:
        """Record what the trials share, or return the recorded config of the study if it differs.

        Raises ValueError if a choice has other values than before, which Optuna does not allow.
        """
        attrs = self.study.user_attrs
        if BASE not in attrs:
            self.study.set_user_attr(BASE, base)
        elif attrs[BASE] != base:
            return str(attrs[BASE])
        for key, text in attrs.get(SPACE, {}).items():
            old = optuna.distributions.json_to_distribution(text)
            categories = (
                isinstance(old, CategoricalDistribution),
                isinstance(space.get(key), CategoricalDistribution),
            )
            if key in space and any(categories) and old != space[key]:
                raise ValueError(
                    f"sweep.space: {key} had {old} in this study and cannot become {space[key]}: choices cannot "
                    "change. Start another study with sweep.study=NAME."
                )
        known = attrs.get(SPACE, {}) | {
            key: optuna.distributions.distribution_to_json(value) for key, value in space.items()
        }
        if known != attrs.get(SPACE):
            self.study.set_user_attr(SPACE, known)
        return None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Signal to the other workers, within the block, that this worker is alive."""
        path = self._lock_path(self.worker)
        path.parent.mkdir(parents=True, exist_ok=True)
        beat = threading.Thread(target=self._beat, daemon=True)
        with waited_for(path):
            beat.start()
            try:
                yield
            finally:
                self._silent.set()
                beat.join()
        path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # the database may be unreachable for a moment
                self.study.set_user_attr(f"{WORKER} {self.worker}", time.time())
            if self._silent.wait(min(60.0, 60.0 * self.dead_after_minutes / 5)):
                return

    def recover(self) -> list[int]:
        """Give up the trials of dead workers and enqueue them again; return their numbers."""
        given_up = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker: Any = trial.user_attrs.get(WORKER)
            if _is_worker(worker) and self._is_dead(worker) and self.give_up(trial, "its worker was killed"):
                given_up.append(trial.number)
        return given_up

    def _is_dead(self, worker: Mapping[str, Any]) -> bool:
        if worker["id"] == self.worker:
            return False
        lock = self._lock_path(worker["id"])
        held = is_held(lock) if worker["host"] == socket.gethostname() and lock.exists() else None
        if held is not None:
            return not held
        seen = self.study.user_attrs.get(f"{WORKER} {worker['id']}", worker["began"])
        return time.time() - float(seen) > 60 * self.dead_after_minutes

    def _lock_path(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker}.lock"

    def begin_with(self, params: Mapping[str, Any], space: Collection[str]) -> None:
        """Enqueue the config's own values for keys of `space` as the first trial, unless the study has begun."""
        if params and not self.study.get_trials(deepcopy=False):
            drawn = [key for key in space if key not in params]
            note = "the config's own values" + (f" but for {', '.join(drawn)}" if drawn else "")
            self.study.enqueue_trial(dict(params), user_attrs={DEFAULT: note})

    def next(self, space: Mapping[str, BaseDistribution]) -> Trial | None:
        """Return the next trial, with a value for each key of `space`; None when all have been given out."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting and self.num_counted() >= self.budget:
            return None
        trial = self.study.ask(dict(space))
        # two workers may ask for the last trial at once: the one with the higher number is surplus
        if self.num_counted(below=trial.number) >= self.budget:
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr(WORKER, {"id": self.worker, "host": socket.gethostname(), "began": time.time()})
        if self.curves is not self.study:
            trial.set_user_attr(CURVE, self.curves.ask().number)
        return trial

    def num_begun(self) -> int:
        """Return the number of trials of the budget that have begun."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(counts(trial) and trial.state != TrialState.WAITING for trial in trials)

    def num_counted(self, below: int | None = None) -> int:
        """Return the number of trials of the budget that are given out.

        With `below`, only smaller numbers count.
        """
        trials = self.study.get_trials(deepcopy=False)
        return sum(counts(trial) and (below is None or trial.number < below) for trial in trials)

    def curve(self, trial: Trial) -> Curve:
        """Return where the process of `trial` reports."""
        if self.curves is self.study:
            return Curve(self.study.study_name, trial._trial_id)
        number = trial.user_attrs[CURVE]
        return Curve(self.curves.study_name, self.curves.get_trials(deepcopy=False)[number]._trial_id)

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        """Record that the trial ran to its end."""
        self._tell(trial, TrialState.COMPLETE, values)

    def prune(self, trial: Trial) -> None:
        """Record that the trial was ended early as a poor one."""
        self._tell(trial, TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str) -> None:
        """Record that the trial has no result."""
        trial.set_user_attr(REASON, reason)
        self._tell(trial, TrialState.FAIL)

    def give_up(self, trial: Trial | FrozenTrial, reason: str) -> bool:
        """Mark a trial whose worker died as failed, and enqueue its values again.

        Returns False if another worker was faster. It is tried again `retries` times, then it counts as failed.
        """
        attrs = trial.user_attrs
        left = self.retries - int(attrs.get(RETRIES, 0))
        try:
            self.study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
            if left > 0:
                self.study._storage.set_trial_user_attr(trial._trial_id, TRIED_AGAIN, True)
            self._tell(trial, TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        if left > 0:
            again = {RETRY_OF: trial.number, RETRIES: int(attrs.get(RETRIES, 0)) + 1}
            again |= {DEFAULT: attrs[DEFAULT]} if DEFAULT in attrs else {}
            self.study.enqueue_trial(trial.params, user_attrs=again)
        return True

    def _tell(self, trial: Trial | FrozenTrial, state: TrialState, values: Sequence[float] | None = None) -> None:
        self.study.tell(trial.number, values if values is None else list(values), state=state)
        if self.curves is not self.study and CURVE in trial.user_attrs:
            number = trial.user_attrs[CURVE]
            end = values[:1] if values is not None else None
            self.curves.tell(number, end, state=state, skip_if_finished=True)


def _is_worker(said: Any) -> bool:
    """Whether a trial names a worker as a Sweep does: a study may hold what others wrote, and its id is a path."""
    return (
        isinstance(said, dict)
        and re.fullmatch(r"[0-9a-f]{8}", str(said.get("id"))) is not None
        and isinstance(said.get("began"), int | float)
        and "host" in said
    )


def values_of(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return a trial's values of the parameters of `space`. Raises ValueError for other values or keys.

    A trial that waits in a study may come from others, with any keys and values, and they become overrides.
    """
    if params.keys() - space.keys():
        raise ValueError(f"it has values of {', '.join(sorted(params.keys() - space.keys()))}, not in sweep.space")
    for key, distribution in space.items():
        try:
            inside = distribution._contains(distribution.to_internal_repr(params[key]))
        except (ValueError, TypeError, KeyError):
            inside = False
        if not inside:
            raise ValueError(f"its {key}={params.get(key)!r} is not in sweep.space ({distribution})")
    return dict(params)


def counts(trial: FrozenTrial) -> bool:
    """Return True if a trial counts towards the budget: neither surplus nor replaced by another."""
    return not (trial.user_attrs.get(SURPLUS) or trial.user_attrs.get(TRIED_AGAIN))


def _create(
    storage: optuna.storages.BaseStorage,
    name: str,
    directions: list[str],
    sampler: optuna.samplers.BaseSampler | None,
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=list[Any](directions), sampler=sampler, load_if_exists=True
    )
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise ValueError(
            f"The study {name} has {len(found)} goals ({', '.join(found)}), sweep.goals has {len(directions)} "
            f"({', '.join(directions)}). Start another study with sweep.study=NAME."
        )
    return study


def process_link(storage: str, curve: Curve) -> dict[str, Any]:
    """Return what a trial's process needs, besides its config, to report to the study."""
    return {"storage": storage, "study": curve.study, "trial_id": curve.trial_id, "parent": os.getpid()}
