"""The configs: everything composes, and every key reaches an argument."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from running import REPO, compose_config

CONF = REPO / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
CHOICES = [
    f"{group}={path.stem}"
    for group in ("transform", "model", "loss", "optimizer", "metrics", "trainer", "callbacks", "logger")
    for path in sorted((CONF / group).glob("*.yaml"))
]
DATES = [
    f"data.split.{name}=[[2026-01-0{n},2026-01-0{n + 1}]]" for n, name in enumerate(("train", "val", "test"), 1)
]
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_args_"}


def targets(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from targets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from targets(value, f"{where}[{number}]")


def check_signatures(config: Any) -> int:
    """Every key of every `_target_` is an argument of it; returns how many targets there were."""
    found = list(targets(OmegaConf.to_container(config, resolve=False)))
    for where, node in found:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            unknown = set(node) - HYDRA_KEYS - set(parameters)
            assert not unknown, f"{where}: {node['_target_']} takes no {unknown}"
    return len(found)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_keys_match_signatures(experiment: str, tmp_path: Path) -> None:
    config = compose_config("train", tmp_path, f"experiment={experiment}")
    assert check_signatures(config) >= 9
    OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_its_keys_match_signatures(choice: str, tmp_path: Path) -> None:
    assert check_signatures(compose_config("train", tmp_path, choice)) >= 5


def test_split_by_dates_composes(tmp_path: Path) -> None:
    config = compose_config("train", tmp_path, "data/split=dates", *DATES)
    check_signatures(config)
    assert config.data.split.test == [["2026-01-03", "2026-01-04"]]


@pytest.mark.parametrize("command", ["evaluate", "forecast", "ingest"])
def test_every_command_composes(command: str, tmp_path: Path) -> None:
    assert check_signatures(compose_config(command, tmp_path)) >= 1


@pytest.mark.parametrize("source", sorted(p.stem for p in (CONF / "source").glob("*.yaml")))
def test_every_source_composes(source: str, tmp_path: Path) -> None:
    assert check_signatures(compose_config("ingest", tmp_path, f"source={source}")) >= 1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_line_of_an_experiment_has_its_reason(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if not line.lstrip().startswith("#") and not line.rstrip().endswith(":")]
    settings = [
        line
        for line in values
        if line.strip() and not line.lstrip().startswith(("- override", "train:", "val:", "- {"))
    ]
    bare = [line for line in settings if "#" not in line and "[[" not in line]
    assert not bare, f"no reason given: {bare}"


def test_the_2015_network_of_the_config_has_the_published_size(tmp_path: Path) -> None:
    from raincast import build

    config = compose_config("train", tmp_path, "model=convlstm_2015")
    net = build.network(OmegaConf.to_container(config.model))  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == 7_585_296
