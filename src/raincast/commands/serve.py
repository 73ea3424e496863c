"""Live mode: `forecast.py watch=…`, a forecast from every radar file that arrives, and `raincast serve`.

`raincast serve site=FOLDER` shows the page of `forecast.py watch=… site=FOLDER` over HTTP.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from raincast import assembly
from raincast.commands import report

if TYPE_CHECKING:
    from raincast.live import Site

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Serve `cfg.site` until SIGTERM or SIGINT."""
    from raincast.live.serve import Server

    with Server(cfg.site, host=cfg.host, port=cfg.port, stale_minutes=cfg.stale_minutes) as server:
        host, port = server.server_address[:2]
        log.info("http://%s:%s/\nhttp://%s:%s/health", *(host, port, host, port))

        def stop(number: int, _: FrameType | None) -> None:
            # not in this thread: shutdown waits for the loop that this handler interrupts
            threading.Thread(target=server.shutdown, daemon=True).start()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            server.serve_forever()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def watch(cfg: DictConfig) -> Path:
    """Watch `cfg.watch` until stopped; return the folder of forecasts.

    Exits with code 3 if something was wrong.
    """
    if cfg.input is not None:
        raise ValueError(f"input={cfg.input} and watch={cfg.watch}: give only one of them.")
    if cfg.init_time != "latest":
        raise ValueError(f"init_time={cfg.init_time}: with watch=… forecasts start from the frames that arrive.")
    if cfg.for_pysteps and (cfg.live.verify or cfg.site is not None):
        raise ValueError(
            "for_pysteps=true with watch=…: scores and the page are made of files with raincast's own names. Give "
            "live.verify=false and no site, or leave for_pysteps out."
        )
    from raincast.live import Watcher

    settings = assembly.make(cfg.live)
    output, stop = Path(settings.output), Event()
    with stopped_by_signals(stop):  # while the network is loaded, too
        pipeline, outputs = assembly.pipeline_of(cfg), assembly.outputs(cfg)
        watcher = Watcher(
            cfg.watch, assembly.reader(cfg), pipeline, settings, outputs=outputs, stop=stop, site=_site(cfg)
        )
        log.info(
            "watching   %s\nforecasts  %s\nstatus     %s", cfg.watch, *map(report.short, (output, watcher.status))
        )
        code = watcher.run()
    if code:
        log.warning("Some files were bad, or a due forecast is missing: see %s", report.short(watcher.status))
        raise SystemExit(code)
    return output


def _site(cfg: DictConfig) -> "Site | None":
    """Return the page that is kept up to date, if one is requested."""
    if cfg.site is None:
        return None
    from raincast.forecasting.files.locations import read_places
    from raincast.live import Site

    log.info("page       %s", report.short(Path(cfg.site) / "index.html"))
    return Site(
        cfg.site,
        places=read_places(cfg.places) if cfg.places else (),
        hours=cfg.site_hours,
        stale_minutes=cfg.live.max_age_minutes,
        coastlines=cfg.coastlines,
    )


@contextmanager
def stopped_by_signals(stop: Event) -> Iterator[None]:
    """Set `stop` on the first SIGTERM or SIGINT; the second has its usual effect."""

    def ask(number: int, _: FrameType | None) -> None:
        log.info("%s: stopping after the current forecast.", signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])
        stop.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
