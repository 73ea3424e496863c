"""Benchmarks: programs take turns in order, what they measured is written, and all imports exist."""

import ast
import contextlib
import importlib
import json
import threading
from pathlib import Path

import pytest
from running import REPO


def test_two_programs_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import turns

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(turns.os, "_exit", end)
    seen: list[int] = []

    def work(number: int) -> None:
        own = turns.Turns(str(tmp_path), number=number, of=2, turns=3, steps=2)
        with contextlib.suppress(SystemExit):
            while True:
                own.begin_step()
                seen.append(number)
                own.end_step()

    threads = [threading.Thread(target=work, args=[number]) for number in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [0, 0, 1, 1] * (turns.WARM_UP + 3)
    for number in (0, 1):
        measured = json.loads((tmp_path / f"{number}-0.json").read_text())
        assert len(measured["seconds"]) == len(measured["waiting"]) == len(measured["processor"]) == 3
        assert all(
            0 <= waited <= whole for waited, whole in zip(measured["waiting"], measured["seconds"], strict=True)
        )
        assert measured["memory_mib"] > 10


@pytest.mark.parametrize("script", sorted((REPO / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_imports_from_raincast_exists(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raincast"):
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")
