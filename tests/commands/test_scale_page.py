"""The page on training at scale: its commands compose, and each trainer is what it says."""

import re
import shlex
from pathlib import Path

import pytest
from running import REPO, compose_config

PAGE = (REPO / "docs" / "training_at_scale.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:python|torchrun|srun)[^#\n]*? ?train\.py([^#\n]*)", PAGE, re.MULTILINE)
KEYS = re.findall(r"`((?:trainer|ema|compile|recompute|tf32)[\w.]*=[\w.-]+)`", PAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_compose(command: str, tmp_path: Path) -> None:
    compose_config("train", tmp_path, *shlex.split(command))


def test_the_page_has_commands_and_keys() -> None:
    assert len(COMMANDS) >= 7 and len(set(KEYS)) >= 6


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_the_keys_exist(key: str, tmp_path: Path) -> None:
    compose_config("train", tmp_path, key)


def test_processes_are_those_of_torchrun_or_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = compose_config("train", tmp_path, "trainer=ddp").trainer
    assert (alone.devices, alone.num_nodes, alone.strategy) == ("auto", 1, "ddp")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    started = compose_config("train", tmp_path, "trainer=fsdp").trainer
    assert (started.devices, started.num_nodes) == (4, 2)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_NNODES", "3")
    queued = compose_config("train", tmp_path, "trainer=slurm").trainer
    assert (queued.devices, queued.num_nodes) == (8, 3)
    assert compose_config("train", tmp_path, "trainer=ddp_bf16").trainer.precision == "bf16-mixed"
