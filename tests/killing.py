"""Training runs in processes that are killed: forked from one that has imported everything, so a start is cheap."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from running import compose_config, server, undrawn


def run(
    run_dir: Path,
    overrides: list[str],
    *,
    kill_after: float | None = None,
    writes: tuple[Path, int] | None = None,
    prepare: Callable[[], None] | None = None,
) -> int | None:
    """Train in a process of its own, killed after `kill_after` seconds if it lives so long; its exit code.

    With `writes`, a file and a number, the seconds count from when it was written as often, else from the start.
    """
    path, left = writes or (run_dir, 0)
    before = _written(path)
    process = server().Process(target=_train, args=(compose_config("train", run_dir, *overrides), prepare))
    process.start()
    while left > 0 and process.is_alive():
        time.sleep(0.01)
        if (now := _written(path)) not in (None, before):
            before, left = now, left - 1
    process.join(kill_after)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def kill_command(
    run_dir: Path, command: str, overrides: list[str], *, kill_after: float | None = None
) -> int | None:
    """`command` in a process of its own, killed after `kill_after` seconds if it lives so long; its exit code."""
    process = server().Process(target=_command, args=(run_dir, command, overrides))
    process.start()
    process.join(kill_after)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def _command(run_dir: Path, command: str, overrides: list[str]) -> None:
    with undrawn():
        importlib.import_module(f"raincast.commands.{command}").run(compose_config(command, run_dir, *overrides))


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # not yet, or for the moment in which another takes its place
        return None


def _train(cfg: DictConfig, prepare: Callable[[], None] | None) -> None:
    from raincast.commands.train import train

    if prepare is not None:
        prepare()
    with undrawn():
        train(cfg)


def kill_in_step(number: int, how: int = signal.SIGKILL) -> None:
    """Send this process a signal within its training step `number`, counted from 1."""
    from raincast.training.module import NowcastModule

    step = NowcastModule.training_step
    calls = 0

    def dying(self: NowcastModule, *args: object) -> object:
        nonlocal calls
        calls += 1
        loss = step(self, *args)  # type: ignore[arg-type]
        if calls == number:
            os.kill(os.getpid(), how)
        return loss

    NowcastModule.training_step = dying  # type: ignore[assignment,method-assign]


def kill_in_write(number: int) -> None:
    """Die with the checkpoint `number` of this process half-written."""
    import torch

    save = torch.save
    calls = 0

    def dying(state: object, file: object, *args: object) -> None:
        nonlocal calls
        calls += 1
        save(state, file, *args)  # type: ignore[arg-type]
        if calls == number:
            file.truncate(1000)  # type: ignore[attr-defined]
            file.flush()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = dying  # type: ignore[assignment]
