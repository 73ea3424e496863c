"""The watcher: looks at a folder again and again, forecasts what is new, verifies it, says how it goes."""

import logging
import os
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from raincast.forecasting import ForecastPipeline, Outputs, forecast_name, write_outputs
from raincast.ingest.readers import Reader
from raincast.live.clock import Clock, SystemClock, seconds_of, text_of, time_of
from raincast.live.folder import Folder
from raincast.live.intake import Intake
from raincast.live.settings import Settings
from raincast.live.status import STOPPED, WAITING, WORKING, Record, read_json, write_json
from raincast.live.verification import Verification
from raincast.system.lock import held
from raincast.version import __version__

log = logging.getLogger(__name__)

STATE, STATUS, LOCK = ".state.json", "status.json", ".watch.lock"
STATE_FORMAT = 1
MOST_TRIES = 8
"""How often a forecast that failed is tried again, waiting twice as long each time."""
DONE, WITH_ERRORS = 0, 3
"""Exit codes: ended as asked; the same, but some file was bad or a forecast failed."""


class Watcher:
    """Forecasts of `pipeline` from the files that arrive in `folder`, into `settings.output`.

    Every good frame gets a forecast while it is fresh, the newest first; docs/live.md says what becomes of others.
    `stop` may be set at any time, from a signal handler: the forecast at hand is finished.
    """

    def __init__(
        self,
        folder: str | Path,
        reader: Reader,
        pipeline: ForecastPipeline,
        settings: Settings,
        *,
        clock: Clock | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self.settings, self.pipeline, self.outputs = settings, pipeline, outputs
        self.source = str(folder)
        self.clock = clock or SystemClock()
        self.output = Path(settings.output)
        self.stop = Event()
        self.record = Record()
        self.intake = Intake(
            Folder(folder, settle_s=settings.settle_s),
            reader,
            self.record,
            step_minutes=pipeline.step_minutes,
            input_steps=pipeline.input_steps,
            max_age_minutes=settings.max_age_minutes,
            seen_hours=settings.skill_hours,
        )
        self.verification = Verification(
            self.output,
            step_minutes=pipeline.step_minutes,
            lead_steps=pipeline.lead_steps,
            thresholds=settings.thresholds,
            hours=settings.skill_hours,
            checkpoint=str(pipeline.attrs.get("checkpoint_sha256", "unknown")),
        )
        self.started = self.clock.now()
        self._refused: dict[np.datetime64, int] = {}
        self._failures: dict[np.datetime64, tuple[int, float]] = {}
        self._unverified: dict[np.datetime64, np.ndarray] = {}
        self._saved: tuple[int, int] | None = None

    @property
    def status(self) -> Path:
        """The file that a monitor reads."""
        return self.output / STATUS

    def run(self) -> int:
        """Go on until asked to stop; the exit code. ValueError where another watcher writes into `output`."""
        lock = self.output / LOCK
        refusal = (
            f"Another watcher writes into {self.output} ({lock} is locked). Stop it, or take another live.output=…"
        )
        with held(lock, refusal):
            return self._run()

    def round(self) -> None:
        """Look at the folder once, and do what there is to do."""
        self._save(WORKING)
        version, num_grids = self.intake.recent.version, self.intake.num_grids
        for _ in self.intake.chunks(self.clock.now(), self.stop.is_set):
            if num_grids != self.intake.num_grids:
                num_grids = self.intake.num_grids
                self._unverified.clear()
                self.verification.begin_anew()
            self._forecast_due()
        if self.stop.is_set():
            return
        self._forecast_due()
        if self.settings.verify and version != self.intake.recent.version:
            self._verify()
        self._retain()

    def _run(self) -> int:
        until = self.settings.until_seconds()
        self._take_up()
        while True:
            self.round()
            ended = self.settings.once and self.intake.folder.num_waiting == 0
            if ended or self.stop.is_set() or (until is not None and self.clock.now() >= until):
                break
            self._save(WAITING)
            self.clock.wait(self.settings.poll_s, self.stop)
        self._save(STOPPED)
        self._tell_of_age()
        bad = self._failures or self._refused or self.intake.num_bad
        return WITH_ERRORS if bad and not self.stop.is_set() else DONE

    def _forecast_due(self) -> None:
        """Forecasts of all fresh frames that have none, the newest first."""
        for time in self.intake.recent.times[::-1]:
            if self.stop.is_set():
                return
            now = self.clock.now()
            tries, not_before = self._failures.get(time, (0, 0.0))
            unchanged = self._refused.get(time) == self.intake.recent.version
            if unchanged or tries >= MOST_TRIES or now < not_before:
                continue
            if self.intake.is_fresh(time, now) and not self._path(time).exists():
                self._forecast(time)

    def _forecast(self, time: np.datetime64) -> None:
        """One forecast, or the reason why there is none."""
        try:
            frames = self.pipeline.frames(self.intake.recent, time, source=self.source)
            forecast = self.pipeline(frames)
        except ValueError as error:
            self._refuse(time, error)
            return
        except Exception as error:  # no memory, a broken GPU: the watcher lives on and tries again
            self._fail(time, error)
            return
        try:
            written = write_outputs(forecast, frames, self.output, self.outputs)
        except Exception as error:  # a full disk
            self._fail(time, error)
            return
        self._refused.pop(time, None)
        self._failures.pop(time, None)
        if self.record.newest_forecast is not None and seconds_of(time) < self.record.newest_forecast:
            self.record.counts["late"] += 1
        written_at = self.clock.now()
        in_time = self.record.succeed(
            init_time=seconds_of(time),
            written=written_at,
            arrived=self.intake.arrived.get(time, written_at),
            deadline_s=self.settings.deadline_s,
            path=written["forecast"],
        )
        log.log(
            logging.INFO if in_time else logging.WARNING,
            "forecast   %s after %.1f s%s",
            written["forecast"].name,
            self.record.latencies[-1],
            "" if in_time else f": the deadline of {self.settings.deadline_s:g} s is missed",
        )
        self._unverified[time] = frames["rain_rate"].values
        self._save(WORKING)

    def _refuse(self, time: np.datetime64, error: ValueError) -> None:
        """What the network does not take: not tried again before another frame has come."""
        if time not in self._refused:
            self.record.counts["refused"] += 1
            self.record.fail(forecast_name(time), str(error), self.clock.now())
            log.warning("refused    %s: %s", forecast_name(time), error)
        self._refused[time] = self.intake.recent.version

    def _fail(self, time: np.datetime64, error: Exception) -> None:
        tries = self._failures.get(time, (0, 0.0))[0] + 1
        self._failures[time] = (tries, self.clock.now() + self.settings.poll_s * 2**tries)
        self.record.counts["failed"] += tries == 1
        self.record.fail(forecast_name(time), f"{type(error).__name__}: {error}", self.clock.now())
        log.error("failed     %s: %s", forecast_name(time), error)

    def _tell_of_age(self) -> None:
        newest, limit = self.record.newest_frame, self.settings.max_age_minutes
        if newest is None:
            log.warning("No frame came to %s.", self.source)
        elif limit is not None and (age := (self.clock.now() - newest) / 60.0) > limit:
            log.warning(
                "The newest frame, of %s, is %.0f min old: too old to be forecast (live.max_age_minutes=%g; null "
                "forecasts from frames of any age).", text_of(newest), age, limit,
            )  # fmt: skip

    def _verify(self) -> None:
        """After the forecasts are out: keep what the references say, and compare what had been said."""
        recent = self.intake.recent
        try:
            for time, past in list(self._unverified.items()):
                self.verification.remember(time, past)
                del self._unverified[time]
            for time in recent.times:
                if self.stop.is_set():
                    return
                if not self.verification.has_scored(time):
                    self.verification.observe(time, recent.frame(time).rain)
            if recent.newest is not None:
                self.verification.forget(recent.newest)
        except Exception as error:  # forecasts matter more than their scores
            self._unverified.clear()
            self.record.fail("verification", f"{type(error).__name__}: {error}", self.clock.now())
            log.error("not verified: %s", error)

    def _retain(self) -> None:
        """Remove the outputs of forecasts older than `keep_hours`."""
        horizon = self.intake.recent.horizon
        for old in [time for time in self._refused if horizon is not None and time < horizon]:
            del self._refused[old]
        if self.settings.keep_hours is None:
            return
        oldest = forecast_name(time_of(self.clock.now() - 3600.0 * self.settings.keep_hours))
        for path in self.output.glob("forecast_*"):
            if path.is_file() and path.name[: len(oldest)] < oldest:
                path.unlink(missing_ok=True)

    def _path(self, time: np.datetime64) -> Path:
        return self.output / f"{forecast_name(time)}.nc"

    def _take_up(self) -> None:
        """Go on from the state that an earlier run left."""
        state = read_json(self.output / STATE)
        if state is None or state.get("format") != STATE_FORMAT or state.get("watch") != self.source:
            return
        self.record = self.intake.record = Record.from_state(state["record"])
        self.intake.from_state(state["intake"])
        self.verification.from_state(state["verification"])
        self.intake.refill()

    def _save(self, doing: str) -> None:
        """The status at every look, the state when something happened."""
        try:
            write_json(self.status, self._status(doing))
            changed = (self.intake.recent.version, self.record.counts.total())
            if doing != WORKING and changed != self._saved:
                write_json(self.output / STATE, self._state())
                self._saved = changed
        except OSError as error:
            log.error("The status cannot be written: %s", error)

    def _state(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "watch": self.source,
            "record": self.record.to_state(),
            "intake": self.intake.to_state(),
            "verification": self.verification.to_state(),
        }

    def _status(self, doing: str) -> dict[str, Any]:
        now = self.clock.now()
        age_minutes = None if self.record.newest_frame is None else (now - self.record.newest_frame) / 60.0
        limit = self.settings.max_age_minutes
        return {
            "state": doing,
            "updated": text_of(now),
            "started": text_of(self.started),
            "pid": os.getpid(),
            "watch": self.source,
            "output": str(self.output),
            "checkpoint": self.pipeline.attrs.get("checkpoint"),
            "checkpoint_sha256": self.pipeline.attrs.get("checkpoint_sha256"),
            "raincast_version": __version__,
            "deadline_s": self.settings.deadline_s,
            "stale": age_minutes is None or (limit is not None and age_minutes > limit),
            **self.record.to_status(now),
            "files_waiting": self.intake.folder.num_waiting,
            "skill": self.verification.summary() if self.settings.verify else None,
        }
