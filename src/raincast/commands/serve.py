"""`raincast serve site=FOLDER`: the page of `forecast.py watch=… site=FOLDER` over HTTP."""

import logging
import signal
import threading
from types import FrameType

from omegaconf import DictConfig

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
