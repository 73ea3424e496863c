"""Serve the folder of a page over HTTP, read-only: its files, `/at` for any point, `/health` for monitors."""

import contextlib
import json
import logging
import math
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecasting.files.locations import Location
from raincast.live.outlook import Located, outlook
from raincast.live.site import FORECAST, NEWEST

log = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Number of requests answered at once; others wait in the system's queue."""
TIMEOUT_S = 10
"""Longest time in seconds that a read from or a write to a client may take."""
LONGEST_S = 60
"""Longest time in seconds for a whole request, so that slow clients do not block others."""
AHEAD_STEPS = 2
"""Steps ahead of the clock beyond which either a frame's time or the clock must be wrong."""
FILES = re.compile(r"/(index\.html|forecast\.(?:json|js|nc)|maps/[A-Za-z0-9_.]{1,80}\.png)")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".js": "text/javascript; charset=utf-8",
    ".nc": "application/x-netcdf",
    ".png": "image/png",
}


class Refused(Exception):
    """A request that is answered with an error status and a reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Points:
    """Forecasts at any point, read from `folder` by one thread at a time, because HDF5 is not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._known: tuple[Any, xr.Dataset, Any] | None = None

    def at(self, lat: float, lon: float) -> dict[str, Any]:
        """Return the content of forecast.json for one point in degrees; raises Refused without a forecast."""
        with self._lock:
            forecast, newest = self._load()
        located = Located.of(Location(f"{lat:g},{lon:g}", (lon, lat)), schema.grid_of(forecast))
        return outlook(forecast, newest, [located])

    def _load(self) -> tuple[xr.Dataset, Any]:
        path = self.folder / FORECAST
        try:
            found = path.stat()
            key = found.st_ino, found.st_mtime_ns
            if self._known is None or self._known[0] != key:
                with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as file:
                    forecast = file.load()
                self._known = key, forecast, self._newest(forecast)
        except (OSError, ValueError) as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "there is no forecast yet") from error
        return self._known[1], self._known[2]

    def _newest(self, forecast: xr.Dataset) -> Any:
        """Return the observation at init_time; None if the stored one is of another time."""
        try:
            with np.load(self.folder / NEWEST, allow_pickle=False) as file:
                same = file["time"] == forecast[schema.INIT_TIME].values.astype("datetime64[ns]")
                return file["rain"] if same else None
        except (OSError, ValueError, KeyError):
            return None


class Server(ThreadingHTTPServer):
    """Serve `folder`; `/health` answers 503 if the newest frame is older than `stale_minutes`."""

    daemon_threads = True
    request_queue_size = 256
    longest_s: float = LONGEST_S

    def __init__(
        self,
        folder: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        stale_minutes: float = 20.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"site={folder} is no folder: make it with forecast.py watch=… site={folder}.")
        self.stale_minutes, self.now = stale_minutes, now
        self.points = Points(self.folder)
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__((host, port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, once few enough are running."""
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the request within the time limit, then free its place."""
        limit = threading.Timer(self.longest_s, _hang_up, (request,))
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log one line for a client that disconnected or sent an unexpected request."""
        log.info("a request from %s failed", client_address[0], exc_info=log.isEnabledFor(logging.DEBUG))

    def health(self) -> tuple[HTTPStatus, dict[str, Any]]:
        """Return the status code and content of `/health`."""
        try:
            said = json.loads((self.folder / "forecast.json").read_text(encoding="utf-8"))
            init_time = np.datetime64(str(said["init_time"]).removesuffix("Z"), "s")
        except (OSError, ValueError, KeyError):
            return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "no forecast"}
        age_s = self.now() - float(init_time.astype(np.int64))
        word = "stale" if age_s > 60 * self.stale_minutes else "ok"
        if age_s < -60 * AHEAD_STEPS * float(said["step_minutes"]):
            word = "ahead of the clock"  # either is wrong, so the age of the data is unknown
        status = HTTPStatus.OK if word == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {"status": word, "init_time": said["init_time"], "age_s": round(age_s)}


def _hang_up(request: socket.socket) -> None:
    """Close a connection, which ends the wait of the thread that reads from it."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answer GET and HEAD requests only."""

    server: Server
    timeout = TIMEOUT_S
    server_version, sys_version = "raincast", ""

    def do_GET(self) -> None:
        """Send a file, the forecast at a point, or the health."""
        try:
            status, kind, content = self._find()
        except Refused as refused:
            status, kind = refused.status, TYPES[".json"]
            content = json.dumps({"error": str(refused)}).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, form: str, *arguments: Any) -> None:
        """Write to the log, with control characters of the client escaped."""
        log.debug("%s %s", self.address_string(), ascii(form % arguments))

    def _find(self) -> tuple[HTTPStatus, str, bytes]:
        try:
            asked = urlsplit(self.path)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no address") from error
        if asked.path == "/health":
            status, state = self.server.health()
            return status, TYPES[".json"], json.dumps(state).encode()
        if asked.path == "/at":
            found = self.server.points.at(**_point(asked.query))
            return HTTPStatus.OK, TYPES[".json"], json.dumps(found, allow_nan=False).encode()
        match = FILES.fullmatch("/index.html" if asked.path == "/" else asked.path)
        if match is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such file")
        path = self.server.folder / match[1]
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise Refused(HTTPStatus.NOT_FOUND, "there is no such file")
            return HTTPStatus.OK, TYPES[path.suffix], path.read_bytes()
        except OSError as error:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such file") from error


def _point(query: str) -> dict[str, float]:
    """Parse `lat` and `lon` of a query, in degrees; raises Refused for anything else."""
    try:
        given = parse_qs(query, strict_parsing=True, max_num_fields=4)
        lat, lon = (float(given[name][0]) for name in ("lat", "lon"))
    except (ValueError, KeyError, OverflowError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "ask as /at?lat=52.1&lon=5.18, in degrees") from error
    if not (math.isfinite(lat) and math.isfinite(lon) and -90 <= lat <= 90 and -180 <= lon <= 360):
        raise Refused(HTTPStatus.BAD_REQUEST, "lat is -90 to 90, lon -180 to 360 degrees")
    return {"lat": lat, "lon": lon}
