"""Forecasts from many init times, over processes and devices; after an interruption, the same call resumes.

Finished forecasts are files in the folder, each written atomically; no other state is kept. The processes are
those of `system.pool`: they take one init time after the other, and none outlives the process that started them.
"""

import ctypes
import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecasting.files.outputs import Outputs, forecast_path
from raincast.forecasting.gaps import NoInput
from raincast.forecasting.hindcast import forecast_one, is_complete
from raincast.forecasting.memory import BASE_GIB, free_gib
from raincast.forecasting.pipeline import ForecastPipeline
from raincast.forecasting.series import Series, Times
from raincast.system.engine import ALONE_SECONDS, Teller, run_here, run_there
from raincast.system.faults import MachineError
from raincast.system.files import remove
from raincast.system.lock import held
from raincast.system.pool import ProcessDied, Progress, Tick, num_cores, worker_number

log = logging.getLogger(__name__)

TRIES_AT_START = 3
"""Number of failures before the first success after which the cause is not a single file."""
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that end all forecasts: disk full, quota exceeded, read-only."""
LOCK = ".forecast.lock"


@dataclass(frozen=True, eq=False)
class HindcastWork:
    """Everything that a process needs to forecast.

    It is sent to other processes, which open network and series once. `pipeline(device, gib)` loads the network
    for a device and the memory that a forecast may take; `source` is the name of the series. Process number n
    works on `devices[n % len(devices)]`.
    """

    pipeline: Callable[[str, float | None], ForecastPipeline]
    series: Callable[[], Series]
    folder: Path
    outputs: Outputs
    source: str
    devices: tuple[str, ...] = ("cpu",)
    gib: float | None = None
    overwrite: bool = False


@dataclass
class HindcastOutcome:
    """Results by init time: the methods of the forecasts that were made, and the reasons for the others.

    `without` has the times without any input frame; `failed` has those that should have a forecast.
    """

    methods: dict[np.datetime64, str] = field(default_factory=dict)
    num_kept: int = 0
    without: dict[np.datetime64, str] = field(default_factory=dict)
    failed: dict[np.datetime64, Exception] = field(default_factory=dict)

    def note(self, init_time: np.datetime64, result: str | Exception) -> None:
        """Record a method or an error; re-raise errors that would end all other forecasts, too."""
        if isinstance(result, str):
            self.methods[init_time] = result
        elif isinstance(result, NoInput):
            self.without[init_time] = str(result)
        elif isinstance(result, MachineError) or getattr(result, "errno", None) in HOPELESS:
            raise result
        else:
            self.failed[init_time] = result
            if not self.methods and not self.num_kept and len(self.failed) >= TRIES_AT_START:
                raise next(iter(self.failed.values()))


def forecast_all(
    work: HindcastWork,
    due: Times,
    pipeline: ForecastPipeline,
    series: Series,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> HindcastOutcome:
    """Make the forecasts from the times of `due` that the folder lacks.

    With `workers=None` this process begins, with `pipeline` and `series`; if it takes long, one process per core
    or GPU continues. `workers=1` stays in this process. On a CPU the processes share its threads, and there are
    only as many as fit into `work.gib` without smaller tiles than one alone would need. If one init time fails,
    the others are still forecast. Raises ValueError if another process forecasts into the folder; raises the error
    itself if the first ones all fail, or the disk is full.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be a whole number from 1, or null for one per core.")
    with _alone_in(work.folder):
        made_by = (
            pipeline.attrs.get("checkpoint_sha256"),
            pipeline.lead_steps,
            pipeline.attrs.get("forecast_config"),
        )
        todo = [
            time for time in due if work.overwrite or not is_complete(forecast_path(work.folder, time), *made_by)
        ]
        outcome = HindcastOutcome(num_kept=due.size - len(todo))
        tell = Teller(outcome.num_kept, due.size, progress, "forecasts made")
        shape: tuple[int, ...] = ()

        def forecast(init_time: np.datetime64, tick: Tick) -> str:
            nonlocal shape
            made = _forecast(work, pipeline, series, init_time, tick)
            shape = made[schema.RAIN].shape[1:]
            return _method(made)

        seconds = {None: ALONE_SECONDS, 1: None}.get(workers, 0.0)
        left = run_here(forecast, todo, outcome.note, tell, seconds=seconds, enough=lambda: bool(outcome.methods))
        if left:
            number = min(_num_processes(work, pipeline, shape, workers), len(left))
            if number == 1:
                run_here(forecast, left, outcome.note, tell)
            else:
                _run_there(work, number, left, outcome, tell)
        return outcome


def devices_of(device: str) -> tuple[str, ...]:
    """Return the devices named by auto, cpu, cuda or cuda:1: all visible GPUs, or one of them."""
    if device not in ("auto", "cuda"):
        return (device,)
    import torch

    if not torch.cuda.is_available():
        return ("cpu",) if device == "auto" else (device,)
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))


def _num_processes(
    work: HindcastWork, pipeline: ForecastPipeline, shape: tuple[int, ...], workers: int | None
) -> int:
    if work.devices != ("cpu",):
        return workers or len(work.devices)
    asked = workers or num_cores()
    one = pipeline.memory.in_one_pass(pipeline.footprint, shape, pipeline.lead_steps, pipeline.num_maps)
    gib = _gib_of(work)
    fitting = max(1, int((gib - BASE_GIB) / one))
    if fitting < asked:
        log.info(
            "%d×%d pixels take %.1f GiB per process, %.1f are allowed: %d at a time (memory_gib=…).",
            *shape, one, gib, fitting,
        )  # fmt: skip
    return min(asked, fitting)


def _gib_of(work: HindcastWork) -> float:
    return work.gib or free_gib("cpu") / 2


@dataclass(frozen=True)
class _Task:
    work: HindcastWork
    init_time: np.datetime64
    threads: int


def _run_there(
    work: HindcastWork, number: int, todo: Sequence[np.datetime64], outcome: HindcastOutcome, tell: Teller
) -> None:
    import torch

    if work.devices == ("cpu",):
        # this process only waits and keeps what it has loaded; the rest of the memory is for the others
        work = replace(work, gib=(_gib_of(work) - BASE_GIB) / number)
    threads = max(1, torch.get_num_threads() // number)
    _give_back_memory()

    def note(task: _Task, result: str | Exception) -> None:
        if isinstance(result, ProcessDied):  # without a result
            tell.more(1)
        outcome.note(task.init_time, result)

    tasks = [_Task(work, init_time, threads) for init_time in todo]
    run_there(_forecast_there, tasks, note, tell, processes=number)


_opened: tuple[ForecastPipeline, Series] | None = None
"""The pipeline and series of a process of the pool."""


def _forecast_there(task: _Task, tick: Tick) -> str | Exception:
    """Make a forecast in a process of the pool; return its method or an error."""
    global _opened
    work = task.work
    if _opened is None:
        logging.basicConfig(level=logging.ERROR)  # the waiting process reports
        _share_threads(task.threads)
        device = work.devices[worker_number() % len(work.devices)]
        _opened = work.pipeline(device, work.gib), work.series()
    try:
        return _method(_forecast(work, *_opened, task.init_time, tick))
    except FileExistsError:  # finished just before its process died
        return "network"
    except (OSError, ValueError, MemoryError) as error:
        return error
    except Exception as error:  # its class may not be picklable
        return RuntimeError(f"{type(error).__name__}: {error}")


def _forecast(
    work: HindcastWork, pipeline: ForecastPipeline, series: Series, init_time: np.datetime64, tick: Tick
) -> xr.Dataset:
    try:
        forecast, _ = forecast_one(
            pipeline, series, init_time, work.folder, work.outputs, source=work.source, overwrite=work.overwrite
        )
    finally:
        tick(1)
    return forecast


def _method(forecast: xr.Dataset) -> str:
    return str(forecast.attrs["forecast_method"])


def _share_threads(number: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(number)
    cv2.setNumThreads(number)


def _give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps everything that a forecast took."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder, and remove partial files of killed processes."""
    refusal = f"Another command forecasts a range into {folder}: wait for it, or take another folder=…"
    with held(folder / LOCK, refusal):
        try:
            _remove_half_written(folder)
            yield
        finally:
            _remove_half_written(folder)


def _remove_half_written(folder: Path) -> None:
    for path in folder.glob(".forecast_*.partial"):
        writer = re.search(r"\.(\d+)(?:\.\d+)?\.partial$", path.name)  # process and thread, see `atomic`
        if writer and _is_alive(int(writer[1])):
            continue  # a single forecast, which takes no lock
        remove(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
