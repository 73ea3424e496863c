"""The watcher: forecasts from the new frames of a folder, verifies earlier forecasts, and writes its status."""

import contextlib
import logging
import os
import re
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import xarray as xr

from raincast.forecasting import ForecastPipeline, Outputs, forecast_name, is_complete, write_outputs
from raincast.ingest.readers import Reader
from raincast.live.folder import Folder
from raincast.live.intake import Intake
from raincast.live.settings import Clock, Settings, SystemClock, seconds_of, text_of, time_of
from raincast.live.site import PAST_MINUTES, Site
from raincast.live.status import STOPPED, WAITING, WORKING, Record, read_json, write_json
from raincast.live.verification import Verification
from raincast.system.files import Sight, remove
from raincast.system.lock import held
from raincast.version import __version__

log = logging.getLogger(__name__)

STATE, STATUS, LOCK = ".state.json", "status.json", ".watch.lock"
STATE_FORMAT = 2
SHOWN_AGAIN_S = 15.0
"""Seconds after which writing the page is tried again."""
OUTPUTS_OF = re.compile(r"forecast_\d{8}T\d{4}(?!\d)")
"""Beginning of the names of a forecast's files and folders."""
MOST_TRIES = 8
"""Number of attempts at a forecast that fails; the delay doubles each time."""
DONE, WITH_ERRORS = 0, 3
"""Exit codes: ended as asked, without errors; or some file was bad, or a forecast failed."""


class Watcher:
    """Forecast by `pipeline` from the files that arrive in `folder`, into `settings.output`.

    Each good, fresh frame gets a forecast, the newest first; docs/live.md lists how other frames are treated.
    `stop` may be set at any time, also by a signal handler: the current forecast is finished first.
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
        stop: Event | None = None,
        site: Site | None = None,
    ) -> None:
        self.settings, self.pipeline, self.outputs = settings, pipeline, outputs
        self.source = str(folder)
        self.clock = clock or SystemClock()
        self.output = Path(settings.output)
        self.stop = stop or Event()
        self.site = site
        self.record = Record()
        self.intake = Intake(
            Folder(folder, settle_s=settings.settle_s),
            reader,
            self.record,
            step_minutes=pipeline.step_minutes,
            input_steps=pipeline.input_steps,
            max_age_minutes=settings.max_age_minutes,
            seen_hours=settings.skill_hours,
            kept_minutes=0.0 if site is None else PAST_MINUTES,
        )
        self.verification = Verification(
            self.output,
            step_minutes=pipeline.step_minutes,
            lead_steps=pipeline.lead_steps,
            thresholds=settings.thresholds,
            hours=settings.skill_hours,
            checkpoint=str(pipeline.attrs.get("checkpoint_sha256", "unknown")),
            sprog_pixels=settings.sprog_pixels,
        )
        self.started = self.clock.now()
        self._refused: dict[np.datetime64, int] = {}
        self._failures: dict[np.datetime64, tuple[int, float]] = {}
        self._unverified: dict[np.datetime64, np.ndarray] = {}
        self._missed: set[np.datetime64] = set()
        """Init times whose forecast failed or was refused, and does not exist: they determine the exit code."""
        self._counted: dict[str, set[np.datetime64]] = {"forecast": set(), "refused": set(), "failed": set()}
        """Init times that were counted, as far back as frames are kept, so that a restart counts none twice."""
        self._whole: dict[np.datetime64, Sight] = {}
        self._taken_over: set[np.datetime64] = set()
        self._state_written: float | None = None
        self._verified: int | None = None
        self._shown_again_at = 0.0
        self._saved: tuple[int, int] | None = None

    @property
    def status(self) -> Path:
        """Path of the status file, for monitors."""
        return self.output / STATUS

    def run(self) -> int:
        """Run until asked to stop; return the exit code. ValueError if another watcher writes into `output`."""
        lock = self.output / LOCK
        refusal = (
            f"Another watcher writes into {self.output} ({lock} is locked). Stop it, or take another live.output=…"
        )
        with held(lock, refusal):
            return self._run()

    def round(self) -> None:
        """Look at the folder once: forecast, verify, and update the page."""
        self._save(WORKING)
        num_grids = self.intake.num_grids
        for _ in self.intake.chunks(self.clock.now(), self.stop.is_set):
            if num_grids != self.intake.num_grids:
                num_grids = self.intake.num_grids
                self._unverified.clear()
                self.verification.begin_anew()
            self._forecast_due()
            self._verify()
            self._save_state()  # a killed run resumes from here
        if self.stop.is_set():
            return
        self._forecast_due()
        self._show_newest()
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
        bad = self._missed or self.intake.num_bad
        return WITH_ERRORS if bad and not self.stop.is_set() else DONE

    def _forecast_due(self) -> None:
        """Forecast from all fresh frames without a forecast, the newest first."""
        for time in self.intake.recent.times[::-1]:
            if self.stop.is_set():
                return
            now = self.clock.now()
            tries, not_before = self._failures.get(time, (0, 0.0))
            unchanged = self._refused.get(time) == self.intake.recent.version
            # the delay does not grow if the clock is set back
            waits = now < not_before <= now + self.settings.poll_s * 2**tries
            if self._is_there(time):
                self._take_over(time)
            elif not (unchanged or waits or tries >= MOST_TRIES) and self.intake.is_fresh(time, now):
                self._forecast(time)

    def _is_there(self, time: np.datetime64) -> bool:
        """Return True if the forecast is complete; one truncated by a power cut, for example, is made again."""
        path = self._path(time)
        try:
            sight = Sight.of(path)
        except OSError:
            return False
        if self._whole.get(time) != sight:
            try:
                if not is_complete(path, self.verification.checkpoint, self.pipeline.lead_steps):
                    return False
            except ValueError:  # of another network: it is not replaced
                pass
            self._whole[time] = sight
        return True

    def _take_over(self, time: np.datetime64) -> None:
        """Take over an existing forecast, once: count it if a killed run wrote it, and verify it like others."""
        if time in self._taken_over:
            return
        self._taken_over.add(time)
        path = self._path(time)
        written = path.stat().st_mtime
        if time not in self._counted["forecast"]:
            self._counted["forecast"].add(time)
            if self._state_written is not None and written >= self._state_written:
                self._count_late(time)
                self.record.recover(init_time=seconds_of(time), written=written, path=path)
        if self.settings.verify and not self.verification.remembers(time):
            with contextlib.suppress(ValueError):  # its input frames are no longer kept
                frames = self.pipeline.frames(self.intake.recent, time, source=self.source)
                self._unverified[time] = frames["rain_rate"].values

    def _count_late(self, time: np.datetime64) -> None:
        newest = self.record.newest_forecast
        self.record.counts["late"] += newest is not None and seconds_of(time) < newest

    def _forecast(self, time: np.datetime64) -> None:
        """Make one forecast, or record why there is none."""
        try:
            frames = self.pipeline.frames(self.intake.recent, time, source=self.source)
            forecast = self.pipeline(frames)
        except ValueError as error:
            self._refuse(time, error)
            return
        except Exception as error:  # out of memory, a broken GPU: the watcher continues and tries again
            self._fail(time, error)
            return
        try:
            written = write_outputs(forecast, frames, self.output, self.outputs)
        except Exception as error:  # a full disk
            self._fail(time, error)
            return
        self._refused.pop(time, None)
        self._failures.pop(time, None)
        self._missed.discard(time)
        self._counted["forecast"].add(time)
        self._taken_over.add(time)
        self._count_late(time)
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
        self._show_newest()
        self._save(WORKING)

    def _show_newest(self) -> None:
        """Show the newest forecast on the page, unless it is shown already.

        It is read from its file, so that the page, `forecast.json` and `/at` agree.
        """
        newest, now = self.record.newest_forecast, self.clock.now()
        waits = now < self._shown_again_at <= now + SHOWN_AGAIN_S
        if self.site is None or newest is None or waits or self.site.shown == newest:
            return
        time, recent = time_of(newest), self.intake.recent
        if time not in recent or not self.intake.is_fresh(time, now) or not self._is_there(time):
            return
        past = {t: recent.frame(t).rain for t in recent.times if t <= time}
        skill = self.verification.summary() if self.settings.verify else None
        try:
            with xr.open_dataset(self._path(time), engine="netcdf4", decode_timedelta=True) as file:
                forecast = file.load()
            self.site.update(forecast, past, file=self._path(time), skill=skill)
        except Exception as error:  # the forecast exists nevertheless
            self._shown_again_at = now + SHOWN_AGAIN_S
            self.record.fail("site", f"{type(error).__name__}: {error}", now)
            log.error("the page is not up to date: %s", error)

    def _refuse(self, time: np.datetime64, error: ValueError) -> None:
        """Record input that the network does not accept; it is tried again only after another frame."""
        self._missed.add(time)
        if time not in self._counted["refused"]:
            self._counted["refused"].add(time)
            self.record.counts["refused"] += 1
            self.record.fail(forecast_name(time), str(error), self.clock.now())
            log.warning("refused    %s: %s", forecast_name(time), error)
        self._refused[time] = self.intake.recent.version

    def _fail(self, time: np.datetime64, error: Exception) -> None:
        tries = self._failures.get(time, (0, 0.0))[0] + 1
        self._failures[time] = (tries, self.clock.now() + self.settings.poll_s * 2**tries)
        self._missed.add(time)
        if time not in self._counted["failed"]:
            self._counted["failed"].add(time)
            self.record.counts["failed"] += 1
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
        """Store the reference forecasts, and compare earlier forecasts with the new observations."""
        recent = self.intake.recent
        if not self.settings.verify or (recent.version == self._verified and not self._unverified):
            return
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
        self._verified = recent.version

    def _retain(self) -> None:
        """Remove the outputs of forecasts older than `keep_hours`."""
        horizon = self.intake.recent.horizon
        if horizon is not None:
            for known in (self._refused, self._failures, self._whole):
                for old in [time for time in known if time < horizon]:
                    del known[old]
            for times in (self._taken_over, *self._counted.values()):
                times -= {time for time in times if time < horizon}
        if self.settings.keep_hours is None:
            return
        oldest = forecast_name(time_of(self.clock.now() - 3600.0 * self.settings.keep_hours))
        for path in self.output.glob("forecast_*"):
            if (name := OUTPUTS_OF.match(path.name)) is not None and name[0] < oldest:
                remove(path)  # a file, or a folder: Zarr, GeoTIFFs, pictures

    def _path(self, time: np.datetime64) -> Path:
        return self.output / f"{forecast_name(time)}.nc"

    def _take_up(self) -> None:
        """Restore the state of an earlier run."""
        state = read_json(self.output / STATE)
        if state is None or state.get("format") != STATE_FORMAT or state.get("watch") != self.source:
            return
        self._state_written = (self.output / STATE).stat().st_mtime
        self._counted = {what: {time_of(ms / 1000) for ms in times} for what, times in state["counted"].items()}
        self.record = self.intake.record = Record.from_state(state["record"])
        self.intake.from_state(state["intake"])
        self.verification.from_state(state["verification"])
        self.intake.refill()
        self._saved = self._done()

    def _save(self, doing: str) -> None:
        """Write the status at every look, and the state if anything has changed."""
        try:
            write_json(self.status, self._status(doing))
            if doing != WORKING or self._saved is None:
                self._save_state()
        except OSError as error:
            log.error("The status cannot be written: %s", error)

    def _save_state(self) -> None:
        if self._done() == self._saved:
            return
        try:
            write_json(self.output / STATE, self._state())
            self._saved = self._done()
        except OSError as error:
            log.error("The state cannot be written: %s", error)

    def _done(self) -> tuple[int, int]:
        """Return a value that changes with any work done."""
        return self.intake.recent.version, self.record.counts.total()

    def _state(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "watch": self.source,
            "counted": {
                what: sorted(round(seconds_of(time) * 1000) for time in times)
                for what, times in self._counted.items()
            },
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
