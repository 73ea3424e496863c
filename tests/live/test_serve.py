"""The page over HTTP: what is served, what is not, and who asks oddly."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from test_site import INIT, LEADS, place, show

from raincast.live import Site
from raincast.live.serve import Handler, Server
from raincast.live.settings import seconds_of

now = seconds_of(INIT) + 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "secret.txt").write_text("secret")
    show(Site(folder / "site", places=[place(3, 2)], coastlines=False))
    (folder / "site" / "maps" / "link.png").symlink_to(folder / "secret.txt")
    with Server(folder / "site", port=0, now=lambda: now) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    connection = HTTPConnection(*server.server_address[:2], timeout=30)
    try:
        connection.putrequest(method, path, skip_host=False)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_files_of_the_page(server: Server) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/forecast.json", "application/json"),
        ("/forecast.js?1", "text/javascript"),
    ):
        status, content, headers = ask(server, path)
        assert (
            status == 200
            and headers["Content-Type"].startswith(kind)
            and int(headers["Content-Length"]) == len(content)
        )
    first = next((server.folder / "maps").glob("forecast_*.png"))
    assert ask(server, f"/maps/{first.name}")[1] == first.read_bytes()
    assert ask(server, "/forecast.json", "HEAD")[1] == b""


@pytest.mark.parametrize(
    "path",
    ["/maps/", "/maps", "/../secret.txt", "/maps/../../secret.txt", "/%2e%2e/secret.txt", "/maps/link.png", "//secret.txt",
     "/.newest.npz", "/forecast.nc/..", "/maps/a%00.png", "//[::1", "*", "/maps/" + "a" * 5000 + ".png"],
)  # fmt: skip
def test_nothing_else_is_served(server: Server, path: str) -> None:
    status, content, _ = ask(server, path)
    assert status in (400, 404) and b"secret" not in content.replace(path.encode(), b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "X" * 300])
def test_nothing_is_taken(server: Server, method: str) -> None:
    assert ask(server, "/forecast.json", method)[0] == 501


def test_any_point(server: Server) -> None:
    point = place(3, 2).point
    assert point is not None
    status, content, _ = ask(server, f"/at?lat={point[1]}&lon={point[0]}")
    (said,) = json.loads(content)["places"]
    assert status == 200 and said["state"] == "rain" and said["rain_in_minutes"] == 10
    assert said["rate_mm_h"] == json.loads(ask(server, "/forecast.json")[1])["places"][0]["rate_mm_h"]
    assert json.loads(ask(server, "/at?lat=-80&lon=0")[1])["places"][0]["state"] == "outside"
    for query in (
        "",
        "lat=52",
        "lat=a&lon=b",
        "lat=nan&lon=1",
        "lat=1e400&lon=1",
        "lat=91&lon=1",
        "&&&&",
        "lat=1&lon=1&a=1&b=1&c=1",
    ):
        assert ask(server, f"/at?{query}")[0] == 400, query


def test_health_tells_a_monitor(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, content, _ = ask(server, "/health")
    assert status == 200 and json.loads(content) == {
        "status": "ok",
        "init_time": "2026-01-31T12:00:00Z",
        "age_s": 60,
    }
    monkeypatch.setattr(server, "now", lambda: now + 21 * 60)
    status, content, _ = ask(server, "/health")
    assert status == 503 and json.loads(content)["status"] == "stale"
    monkeypatch.setattr(server, "now", lambda: now - 3600)
    assert ask(server, "/health")[0] == 503
    with Server(tmp_path, port=0) as empty:
        assert empty.health()[0] == 503
    with pytest.raises(FileNotFoundError, match="site="):
        Server(tmp_path / "absent")


@pytest.mark.parametrize(
    "sent",
    [b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
     b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a" * 70_000 + b"\r\n\r\n"],
)  # fmt: skip
def test_malformed_requests_are_refused_and_the_server_goes_on(
    server: Server, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 < Handler.timeout < 30  # s that the rest of a line is waited for; here less
    monkeypatch.setattr(Handler, "timeout", 1)
    with socket.create_connection(server.server_address[:2], timeout=30) as client:
        try:
            client.sendall(sent)
            answer = client.recv(1000)
        except ConnectionError:
            answer = b""
    assert not answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    assert ask(server, "/health")[0] == 200


def test_who_sends_a_letter_now_and_then_keeps_no_place(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """More such clients than are answered at once: others are answered all the same."""
    assert 10 < Server.longest_s < 120
    monkeypatch.setattr(server, "longest_s", 1.0)
    slow = [socket.create_connection(server.server_address[:2], timeout=30) for _ in range(40)]
    ended = threading.Event()

    def trickle() -> None:
        while not ended.wait(0.2):
            for client in slow:
                with contextlib.suppress(OSError):
                    client.sendall(b"G")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert ask(server, "/health")[0] == 200
    finally:
        ended.set()
        thread.join()
        for client in slow:
            client.close()


def test_a_hundred_clients_at_once(server: Server) -> None:
    def one(number: int) -> tuple[int, Any]:
        point = place(3, 2).point
        path = f"/at?lat={point[1]}&lon={point[0]}" if number % 4 == 0 else "/forecast.json"
        status, content, _ = ask(server, path)
        return status, len(json.loads(content)["valid_times"])

    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(one, range(100))) == [(200, LEADS)] * 100
