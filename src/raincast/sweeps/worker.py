"""`python train.py -m sweep=optuna`: a worker of a sweep, which takes trials from the shared study.

Hydra launches the workers (launcher=…), and each runs this. On another machine, the same command starts another
worker.
"""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raincast import assembly
from raincast.plain import check_text
from raincast.sweeps.space import (
    check_sets_nothing_else,
    comparable,
    differing_keys,
    fixed_overrides,
    trial_overrides,
)

if TYPE_CHECKING:
    import optuna

    from raincast.sweeps.trials import Goal

log = logging.getLogger(__name__)

RunTrial = Callable[[Sequence[str], Path, Mapping[str, str]], int]


def run(cfg: DictConfig, run_trial: RunTrial | None = None) -> float:
    """Run trials until the study has `sweep.trials`.

    Return the best value of the first goal (NaN if there is none).
    """
    _check_packages()
    from raincast.sweeps.trials import run_process

    worker = Worker(cfg, run_trial or run_process)
    with _leave_on_sigterm(), worker.sweep.at_work():
        try:
            worker.work()
        finally:
            worker.report(last=True)
    return worker.best_value()


def _check_packages() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError('sweep=optuna needs the package optuna: pip install -e ".[sweep]"') from None


@contextmanager
def _leave_on_sigterm() -> Iterator[None]:
    """Leave the trial to another worker on SIGTERM, with which a cluster asks for its node back."""
    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )

    def leave(*_: Any) -> None:
        raise SystemExit("Stopped by SIGTERM; the same command continues.")

    if mine:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Worker:
    """One worker: it composes the config of each trial, runs it, and reports the outcome to the study."""

    def __init__(self, cfg: DictConfig, run_trial: RunTrial) -> None:
        from raincast.sweeps.space import default_params
        from raincast.sweeps.study import Sweep
        from raincast.sweeps.trials import check_goals

        self.cfg, self.run_trial = cfg, run_trial
        self.folder = Path(cfg.sweep.dir)
        self.goals = [_goal(score) for score in cfg.sweep.goals]
        check_goals(self.goals, prunes=cfg.sweep.pruner is not None)
        self.fixed = fixed_overrides(HydraConfig.get().overrides.task)
        self.base = compose("train", self.fixed)
        check_sets_nothing_else(cfg, self.base)
        self.space = self._space()
        self.sweep: Sweep = Sweep(
            cfg.sweep.storage,
            cfg.sweep.study,
            self.goals,
            sampler=self._sampler(0),
            folder=self.folder,
            budget=cfg.sweep.trials,
            retries=cfg.sweep.retries,
            dead_after_minutes=cfg.sweep.dead_after_minutes,
        )
        self.sweep.fixed = frozenset(self.fixed)
        self._agree()
        if cfg.sweep.default_first:
            own = default_params(self.space, self.base, HydraConfig.get().runtime.choices)
            self.sweep.begin_with(own, self.space)
        self._reported = time.monotonic()

    def _space(self) -> dict[str, "optuna.distributions.BaseDistribution"]:
        from raincast.sweeps.space import parse_space

        space = parse_space(dict(self.cfg.sweep.space))
        given = {override.lstrip("+~").partition("=")[0] for override in self.fixed}
        for key in [key for key in space if key in given or key.partition("[")[0] in given]:
            log.info("%s is given on the command line, so it is not searched.", key)
            del space[key]
        if not space:
            raise ValueError("sweep.space has nothing to search; give, for example, "
                             "'+sweep.space={optimizer.lr:\"tag(log, interval(1e-4, 1e-2))\"}'.")  # fmt: skip
        return space

    def _sampler(self, num_trials: int) -> "optuna.samplers.BaseSampler":
        """Return the sampler for the trial after `num_trials`; with a seed, its draws are reproducible.

        Otherwise a restarted worker would draw the first trials again. A quasi-random sequence is shared by all
        workers and advances by itself, so it keeps its seed.
        """
        from optuna.samplers import QMCSampler

        own = self.cfg.sweep.sampler
        sampler: optuna.samplers.BaseSampler = assembly.make(own)
        if own.get("seed") is None or isinstance(sampler, QMCSampler):
            return sampler
        where = (int(own.seed), int(self.cfg.sweep.worker), num_trials)
        return assembly.make(own, seed=int(np.random.SeedSequence(where).generate_state(1)[0]))  # type: ignore[no-any-return]

    def _agree(self) -> None:
        """Raise ValueError for a study of another config, whose scores are not comparable."""
        mine = comparable(self.base)
        theirs = self.sweep.agree(mine, self.space)
        if theirs is not None:
            check_text(theirs)  # a study may come from another source
            keys = differing_keys(OmegaConf.create(theirs), OmegaConf.create(mine))
            raise ValueError(
                f"The study {self.cfg.sweep.study} in {_shown(self.cfg.sweep.storage)} is of another config: "
                f"{'; '.join(keys)}. Give the overrides it was started with, or start another: sweep.study=NAME."
            )

    def work(self) -> None:
        """Run one trial after the other."""
        log.info("Sweep %s: %d of %d trials have begun, in %s", self.cfg.sweep.study, self.sweep.num_begun(),
                 self.cfg.sweep.trials, _shown(self.cfg.sweep.storage))  # fmt: skip
        failures = 0
        while True:
            for number in self.sweep.recover():
                log.info("trial %d  its worker was killed: it is tried again", number)
            if self.cfg.sweep.sampler.get("seed") is not None:
                self.sweep.study.sampler = self._sampler(len(self.sweep.study.get_trials(deepcopy=False)))
            trial = self.sweep.next(self.space)
            if trial is None:
                return
            failures = 0 if self._one(trial) else failures + 1
            self.report()
            if failures >= self.cfg.sweep.max_failures:
                raise ValueError(
                    f"{failures} trials failed one after the other, the last with: {self._reason(trial.number)} "
                    f"See {self._run_dir(trial.number)}; or raise sweep.max_failures."
                )

    def _one(self, trial: "optuna.trial.Trial") -> bool:
        """Run one trial; return False if it failed."""
        from raincast.sweeps import trials
        from raincast.sweeps.space import overrides_of
        from raincast.sweeps.study import LINK, process_link, values_of

        shown = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
        log.info("trial %d  %s", trial.number, shown)
        run_dir, began = self._run_dir(trial.number), time.monotonic()
        try:
            overrides = [*self.fixed, *overrides_of(values_of(trial.params, self.space), self._compose)]
            trial.set_user_attr("overrides", overrides)
            trial.set_user_attr("run_dir", str(run_dir))
            more = [
                *self._logger_overrides(overrides, trial.number),
                *trial_overrides(self.goals, self.cfg.sweep.pruner, run_dir),
            ]
            link = process_link(_absolute(self.cfg.sweep.storage), self.sweep.curve(trial))
            environment = {LINK: json.dumps(link)} | self._device()
            code = self.run_trial(trials.trial_command([*overrides, *more]), run_dir, environment)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            self.sweep.fail(trial, " ".join(str(error).split())[:500])
            log.warning("trial %d  failed: %s", trial.number, self._reason(trial.number))
            return False
        except BaseException:
            self.sweep.give_up(trial, "its worker was stopped")
            raise
        return self._tell(trial, run_dir, code, time.monotonic() - began)

    def _tell(self, trial: "optuna.trial.Trial", run_dir: Path, code: int, seconds: float) -> bool:
        from raincast.sweeps import trials

        if code == trials.ASKED_TO_LEAVE:
            self.sweep.give_up(trial, "it was asked to leave")
            log.info("trial %d  was asked to leave: it is tried again", trial.number)
            return True
        found = trials.read_outcome(run_dir)
        trial.set_user_attr("seconds", round(seconds, 1))
        trial.set_user_attr("epochs", found.epochs)
        trial.set_user_attr(
            "metrics", {key: value for key, value in found.metrics.items() if math.isfinite(value)}
        )
        if code != 0 or found.state in (trials.FAILED, trials.RUNNING):
            reason = found.reason or (
                trials.why_it_died(code, run_dir) if code else "it ended before a validation"
            )
            self.sweep.fail(trial, reason)
            log.warning("trial %d  failed after %.0f s: %s", trial.number, seconds, reason)
            return False
        if found.state == trials.PRUNED:
            self.sweep.prune(trial)
            log.info("trial %d  pruned after %d epochs, %.0f s", trial.number, found.epochs, seconds)
            return True
        try:
            values = [goal.value(found.metrics) for goal in self.goals]
        except ValueError as error:
            self.sweep.fail(trial, str(error))
            log.warning("trial %d  failed: %s", trial.number, error)
            return False
        self.sweep.complete(trial, values)
        shown = "  ".join(f"{goal.score} {value:.4g}" for goal, value in zip(self.goals, values, strict=True))
        log.info("trial %d  %s  (best %.4g)  %.0f s", trial.number, shown, self.best_value(), seconds)
        return True

    def _compose(self, overrides: list[str]) -> DictConfig:
        return compose("train", [*self.fixed, *overrides])

    def _logger_overrides(self, overrides: list[str], number: int) -> list[str]:
        """Make each trial a wandb run of its own, all in one group.

        Raises if the trial's config does not compose.
        """
        from raincast.sweeps.space import hydra_text

        config = compose("train", overrides)
        wandb = config.logger.get("wandb")
        names = (
            {} if wandb is None else {"group": self.cfg.sweep.study, "name": f"{self.cfg.sweep.study}-{number}"}
        )
        return [
            f"logger.wandb.{key}={hydra_text(value)}" for key, value in names.items() if wandb.get(key) is None
        ]

    def _device(self) -> dict[str, str]:
        gpus = self.cfg.sweep.gpus
        return {} if gpus is None else {"CUDA_VISIBLE_DEVICES": str(gpus[self.cfg.sweep.worker % len(gpus)])}

    def _run_dir(self, number: int) -> Path:
        return self.folder.resolve() / "trials" / f"{number:04d}"

    def _reason(self, number: int) -> str:
        return str(self.sweep.study.get_trials(deepcopy=False)[number].user_attrs.get("reason", ""))

    def best_value(self) -> float:
        """Return the best value of the first goal so far, NaN before the first complete trial."""
        from optuna.trial import TrialState

        values = [t.values[0] for t in self.sweep.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        best = max if self.goals[0].want == "max" else min
        return best(values, default=math.nan)

    def report(self, last: bool = False) -> None:
        """Write the table after each trial, the page once a minute; at the end both, and log what to type next."""
        from raincast.sweeps.report import say_at_end, write_report

        page = last or time.monotonic() - self._reported > 60
        self._reported = time.monotonic() if page else self._reported
        found = write_report(self.sweep, self.folder, storage=_shown(self.cfg.sweep.storage), page=page)
        if last:
            say_at_end(found, self.folder)


def _goal(score: str) -> "Goal":
    """Return a goal with the direction in which its score improves; raises ValueError if it has none."""
    from raincast.sweeps.trials import LATENCY, Goal
    from raincast.training.skill import better

    direction = "min" if score == LATENCY else better(score)
    if direction is None:
        raise ValueError(
            f"sweep.goals: {score} cannot rank trials, since it is best at 1: take "
            f"{score.replace('bias', 'bias_error')}."
        )
    return Goal(score, direction)


def _absolute(storage: str) -> str:
    return storage if "://" in storage else str(Path(storage).resolve())


def _shown(storage: str) -> str:
    from raincast.sweeps.study import without_password

    return without_password(storage)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
