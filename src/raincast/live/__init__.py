"""Live mode: forecasts from radar files as they arrive, reports on them, and their verification."""

from raincast.live.settings import Clock, Settings, SystemClock
from raincast.live.site import Site
from raincast.live.watcher import Watcher

__all__ = ["Clock", "Settings", "Site", "SystemClock", "Watcher"]
