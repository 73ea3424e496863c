"""A web server on this machine that serves a folder, well or badly."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """`asked` are (method, path, range) of all requests; `faults` maps a path's end to a list, one entry a request.

    A fault is "break" (the connection ends in the middle), "slow" (no answer), "500", "short" or "long" (another
    number of bytes than the file has, announced as if it were right), or None. Each is used once, the last for ever.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.asked: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, list[str | None]] = {}
        self.ranges = True
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, path: str) -> str | None:
        for end, faults in self.faults.items():
            if path.endswith(end) and faults:
                return faults.pop(0) if len(faults) > 1 else faults[0]
        return None

    def num_bytes(self, end: str) -> int:
        """Bytes that were asked for of a file, in GET requests with a range."""
        spans = [
            re.fullmatch(r"bytes=(\d+)-(\d+)", r or "") for m, p, r in self.asked if m == "GET" and p.endswith(end)
        ]
        return sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((method, self.path, asked))
        file = Path(self.translate_path(self.path))
        if file.is_dir():
            (super().do_GET if method == "GET" else super().do_HEAD)()
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        fault = self.server.fault(self.path) if method == "GET" else self.server.fault(f"{self.path}?HEAD")
        if fault == "500":
            self.send_error(500)
            return
        if fault == "slow":
            self.server.released.wait(20)
            return
        size = len(content) + {"short": -7, "long": 7}.get(fault or "", 0)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "") if self.server.ranges else None
        status, body = 200, content
        if match and fault not in ("short", "long"):
            start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
            if start >= len(content):
                self.send_error(416)
                return
            status, body = 206, content[start:stop]
            size = len(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{hash((len(content), file.stat().st_mtime_ns)):x}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {match[1]}-{int(match[1]) + size - 1}/{len(content)}")
        self.end_headers()
        if method == "GET":
            self.wfile.write(body[: len(body) // 2] if fault == "break" else body[:size])
        if fault == "break":
            self.close_connection = True


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The server, while the block lasts."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
