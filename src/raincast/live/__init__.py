"""Forecasts while radar files arrive: what is new is forecast, reported, and verified by what comes after."""

from raincast.live.clock import Clock, SystemClock
from raincast.live.settings import Settings
from raincast.live.site import Site
from raincast.live.watcher import Watcher

__all__ = ["Clock", "Settings", "Site", "SystemClock", "Watcher"]
