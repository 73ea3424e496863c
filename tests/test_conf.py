"""The configs: everything composes, and every key reaches an argument."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import OmegaConf
from running import REPO, TINY, compose_config

from raincast import plain
from raincast.assembly.typed import check
from raincast.cli import HYDRA_VERSION_BASE, conf_dir

CONF = REPO / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
CHOICES = [
    f"{group}={path.stem}"
    for group in (
        "transform",
        "model",
        "head",
        "loss",
        "optimizer",
        "curriculum",
        "metrics",
        "trainer",
        "callbacks",
        "logger",
        "debug",
        "sweep",
    )
    for path in sorted((CONF / group).glob("*.yaml"))
]
CHOICES += [f"data/channels=[{path.stem}]" for path in sorted((CONF / "data" / "channels").glob("*.yaml"))]
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
    check(config)
    return len(found)


@pytest.mark.parametrize("group", ["model", "head", "transform", "data", "data/split", "data/channels"])
def test_a_checkpoint_may_name_every_class_of_the_configs_that_it_holds(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        for _, node in targets(OmegaConf.to_container(OmegaConf.load(path))):
            assert inspect.isclass(plain.known_class(node["_target_"]))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_keys_match_signatures(experiment: str, tmp_path: Path) -> None:
    config = compose_config("train", tmp_path, f"experiment={experiment}")
    assert check_signatures(config) >= 9
    OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_its_keys_match_signatures(choice: str, tmp_path: Path) -> None:
    assert check_signatures(compose_config("train", tmp_path, choice)) >= 5


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        ("rate", "BalancedLoss"),
        ("softmax", "ClassLoss"),
        ("ordinal", "OrdinalLoss"),
        ("quantiles", "QuantileLoss"),
    ],
)
def test_a_head_brings_its_loss_and_the_network_its_channels(head: str, loss: str, tmp_path: Path) -> None:
    from raincast import assembly

    config = compose_config("train", tmp_path, "experiment=convlstm", f"head={head}")
    assert config.loss._target_ == f"raincast.losses.{loss}"
    made = assembly.head(config)
    small = OmegaConf.to_container(config.model, resolve=True) | {"head_channels": 2}  # type: ignore[operator]
    net = assembly.network(small, num_channels=made.num_channels)
    module = assembly.module(config, net, made, {"lead_steps": 2, "step_minutes": 5.0})
    loss_of = module.loss
    assert net(torch.zeros(1, 2, 1, 16, 16), 2).shape == (1, 2, made.num_channels, 16, 16)
    assert getattr(loss_of, "num_channels", 1) == made.num_channels


def test_the_numbers_of_a_head_stand_once(tmp_path: Path) -> None:
    config = compose_config("train", tmp_path, "head=ordinal", "head.thresholds=[1,5]")
    assert config.loss.thresholds == [1, 5]
    config = compose_config("train", tmp_path, "head=quantiles", "head.levels=[0.2,0.8]")
    assert config.loss.levels == [0.2, 0.8]
    # the classes of one are those of the other: only the loss differs
    assert (
        compose_config("train", tmp_path, "head=ordinal", "loss=softmax").loss._target_
        == "raincast.losses.ClassLoss"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["head=rate", "loss=quantiles"],
            r"QuantileLoss does not belong to .*RateHead, which has no head\.levels\. .*head=…",
        ),
        (
            ["head=quantiles", "loss=ordinal"],
            r"QuantileHead, which has no head\.thresholds\. .*head=quantiles loss=quantiles",
        ),
        (["head=quantiles", "loss=balanced"], r"BalancedLoss compares 1 channels, but QuantileHead\(.*\) gives 7"),
        (["head=softmax", "+model.out_channels=3"], r"model\.out_channels=3, but the head reads 7 channels"),
    ],
)
def test_what_does_not_fit_a_head_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    from raincast import assembly

    config = compose_config("train", tmp_path, "experiment=convlstm", *overrides)
    with pytest.raises(ValueError, match=message):
        head = assembly.head(config)
        model: Any = OmegaConf.to_container(config.model, resolve=True)
        assembly.module(
            config,
            assembly.network(model, num_channels=head.num_channels),
            head,
            {"lead_steps": 2, "step_minutes": 5.0},
        )


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
    from raincast import assembly

    config = compose_config("train", tmp_path, "model=convlstm_2015")
    net = assembly.network(OmegaConf.to_container(config.model))  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == 7_585_296


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", [*TINY, "head=softmax", "data/channels=[observed,sun]", "+data.channels.more={a:1}"]),
        ("train", ["logger=csv", "experiment=radar", "~callbacks.pictures", "data.crop=32", "logger=wandb"]),
        ("evaluate", ["checkpoint=x", "data.eval_stride=6"]),
    ],
)
def test_tests_compose_as_hydra_does(command: str, overrides: list[str], tmp_path: Path) -> None:
    """`compose_config` composes the files that are chosen once."""
    made = compose_config(command, tmp_path, *overrides)
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        expected = compose(command, overrides=[*overrides, f"paths.run_dir={tmp_path}"])
    assert made == expected and OmegaConf.is_struct(made)
    made.paths.run_dir = "changed"
    assert compose_config(command, tmp_path, *overrides) == expected
    with pytest.raises(ConfigCompositionException, match="Could not override 'data.cropp'"):
        compose_config(command, tmp_path, *overrides, "data.cropp=1")
