"""A sweep's space in Hydra's words, and a trial's parameters as overrides."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.sweeps.space import default_params, hydra_text, overrides_of, parse_space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0, 1)", FloatDistribution(0.0, 1.0)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1, 8))", IntDistribution(1, 8)),
        ("range(8, 65, step=8)", IntDistribution(8, 64, step=8)),
        ("range(0, 1, step=0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(3, 5)", CategoricalDistribution([3, 5])),
        ("3, 5", CategoricalDistribution([3, 5])),
        ("choice(true, false)", CategoricalDistribution([True, False])),
        ("choice([1,2],[{a:1}])", CategoricalDistribution(["[1,2]", "[{a:1}]"])),
        ("choice(convlstm_small, convlstm)", CategoricalDistribution(["convlstm_small", "convlstm"])),
    ],
)
def test_hydras_words_are_optunas_distributions(text: str, expected: BaseDistribution) -> None:
    assert parse_space({"key": text, "not_searched": None}) == {"key": expected}


@pytest.mark.parametrize("text", ["0.3", "interval(1e-2, 1e-4)", "interval(1", "range(5, 5)", "between(1, 2)"])
def test_other_words_are_answered(text: str) -> None:
    with pytest.raises(ValueError, match=r"sweep\.space: optimizer\.lr: .*Use interval\(0, 1\)"):
        parse_space({"optimizer.lr": text})


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 1e-4, "plain", "a/b.nc", "with space", "it's", "a=b,c", "", "null", [1, 2.5, "x y"],
     {"a": 1, "b": [{"c": None}]}, "back\\slash", "${paths.run_dir}"],
)  # fmt: skip
def test_what_is_written_as_an_override_is_read_as_it_was(value: Any) -> None:
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        found = compose("summary", [f"+key={hydra_text(value)}"])
    assert OmegaConf.to_container(found, resolve=False)["key"] == value  # type: ignore[call-overload,index]


def test_keys_of_a_lists_items_become_the_list(tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    params = {
        "optimizer.lr": 0.001,
        "model.stages[*].hidden_channels": 16,
        "model.stages[1].state_kernel": 5,
        "loss.weights": "[1,1,2,3,5,8]",
    }
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        found = overrides_of(params, lambda more: compose("train", ["model=convlstm_small", *more]))
        config = compose("train", ["model=convlstm_small", *found])
        with pytest.raises(
            ValueError, match=r"model\.stages\[\*\]\.width: model\.stages has 2 items with conv_ch"
        ):
            overrides_of({"model.stages[*].width": 1}, lambda more: compose("train", ["model=convlstm_small"]))
        with pytest.raises(ValueError, match=r"there is no list model\.levels"):
            overrides_of({"model.levels[*].width": 1}, lambda more: compose("train", ["model=convlstm_small"]))
    assert [stage.hidden_channels for stage in config.model.stages] == [16, 16]
    assert [stage.state_kernel for stage in config.model.stages] == [3, 5]
    assert config.optimizer.lr == 0.001
    assert list(config.loss.weights) == [1, 1, 2, 3, 5, 8]


def test_the_configs_own_values_are_found() -> None:
    space = parse_space(
        {
            "optimizer.lr": "tag(log, interval(1e-4, 1e-2))",
            "model.stages[*].hidden_channels": "choice(64, 96)",
            "model.stages[*].conv_channels": "choice(32, 64)",  # the two levels differ
            "model.patch": "choice(1, 2)",  # 4 is not among them
            "loss.weights": "choice([1,1,1,1,1,1],[1,1,2,5,10,30])",
            "loss.mae_weight": "interval(2, 3)",  # nor 1
            "head": "choice(rate, ordinal)",  # a file, whose content is no choice
        }
    )
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        config = compose("train", ["experiment=convlstm"])
    assert default_params(space, config, {"head": "rate", "model": "convlstm"}) == {
        "optimizer.lr": 2e-3,
        "model.stages[*].hidden_channels": 64,
        "loss.weights": "[1,1,2,5,10,30]",
        "head": "rate",
    }
