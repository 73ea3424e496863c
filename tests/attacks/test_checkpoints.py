"""Checkpoints from strangers: nothing in them runs, fills memory or is guessed."""

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import compose_config

from raincast import assembly, plain
from raincast.models.weights import write_weights

COMMANDS: dict[str, Callable[[Path, Path, Path], Any]] = {}
"""name → what opens a checkpoint: (checkpoint, archive, run folder)."""


def command(run: Callable[[Path, Path, Path], Any]) -> Callable[[Path, Path, Path], Any]:
    COMMANDS[run.__name__] = run
    return run


@command
def evaluate(checkpoint: Path, archive: Path, run_dir: Path) -> None:
    from raincast.commands.evaluate import run

    given = (f"checkpoint={checkpoint}", "baselines=[]", "workers=1", "device=cpu", f"unfinished={run_dir}/sums")
    run(compose_config("evaluate", run_dir, *given))


@command
def audit(checkpoint: Path, archive: Path, run_dir: Path) -> None:
    from raincast.commands.ingest import run

    run(compose_config("ingest", run_dir, f"audit={checkpoint}"))


@command
def forecast(checkpoint: Path, archive: Path, run_dir: Path) -> None:
    from raincast.commands.forecast import run

    run(compose_config("forecast", run_dir, f"checkpoint={checkpoint}", f"input={archive}", "device=cpu"))


def forecaster(path: Path) -> Any:
    return assembly.forecaster_of(assembly.read_checkpoint(path), device="cpu")


def spoilt(run: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run's checkpoint with another config."""
    raw = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    config = yaml.safe_load(raw["raincast"]["config"])
    change(config)
    raw["raincast"]["config"] = yaml.safe_dump(config)
    torch.save(raw, path)
    return path


@pytest.mark.parametrize("name", ["evaluate", "audit", "forecast"])
@pytest.mark.parametrize(
    ("part", "escapes"),
    [
        ("data.more", 0),
        ("data.more", 1),
        ("data.more", 3),
        ("data.channels", 1),
        ("data.split", 1),
        ("model.stages", 1),
    ],
)
def test_nothing_in_a_config_is_resolved_or_called(
    name: str, part: str, escapes: int, tiny_run: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    """An escaped interpolation was a harmless text to the check, and a config to Hydra's second pass."""
    owned = tmp_path / "owned"
    code = "\\" * escapes + "${oc.create:{_target_: os.mkdir, path: '" + str(owned) + "'}}"
    value: Any = [code] if part == "data.more" else {"x": code} if part == "data.channels" else code

    def change(config: dict[str, Any]) -> None:
        group, _, key = part.partition(".")
        config[group][key] = value

    path = spoilt(tiny_run, tmp_path / "a.ckpt", change)
    try:
        COMMANDS[name](path, tiny_archive, tmp_path / "run")
    except (ValueError, SystemExit) as error:
        assert not isinstance(error, SystemExit) or name == "audit"
    except Exception as error:  # other parts than what a command uses may be anything
        pytest.fail(f"not a message but {type(error).__name__}: {error}")
    assert not owned.exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(("evaluate", part) for part in ("model", "head", "transform", "data")),
        ("audit", "data"),
        ("forecast", "model"),
    ],
)
@pytest.mark.parametrize(
    "target", ["os.mkdir", "planted.Module", "raincast.assembly.parts.make", "torch.nn.Conv2d"]
)
def test_a_config_names_classes_of_the_table_alone(
    name: str, part: str, target: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the module is imported: it may be a file that a stranger put beside the checkpoint."""
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath('owned').touch()\nModule = Path\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = spoilt(tiny_run, tmp_path / "a.ckpt", lambda config: config[part].update(_target_=target, path="owned"))
    with pytest.raises(ValueError, match=rf"names {target}, which is not loaded"):
        COMMANDS[name](path, tmp_path, tmp_path / "run")
    assert not (tmp_path / "owned").exists()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BOMB, "anchors or aliases"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 30"),
        ("a: !!python/object/apply:os.system [touch owned]", "YAML tag"),
        ("a: !!python/object/apply:pathlib.Path [x]", "YAML tag"),
        ("a: " + "x" * 1_000_001, "at most 1,000,000 characters"),
        ("a: {a: 1, b", "not YAML"),
        ("[a, b]", "not a mapping"),
        (b"model: {}", "config"),
    ],
)
def test_the_text_of_a_config_is_bounded(config: Any, message: str, tiny_run: Path, tmp_path: Path) -> None:
    raw = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    raw["raincast"]["config"] = config
    torch.save(raw, tmp_path / "a.ckpt")
    began = time.process_time()
    with pytest.raises(ValueError, match=rf"a\.ckpt is not a checkpoint of raincast: .*{message}"):
        assembly.read_checkpoint(tmp_path / "a.ckpt")
    assert time.process_time() - began < 20


def test_the_config_in_an_optuna_study_is_bounded() -> None:
    """A worker compares it with its own."""
    began = time.process_time()
    for text in (BOMB, "[" * 5000, "a: !!python/name:os.system"):
        with pytest.raises(ValueError, match="its config"):
            plain.check_text(text)
    plain.check_text("a: ${oc.env:HOME}\nb: [1, {c: 2}]")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, {"wandb": "../../x"})
            for key in ("step_minutes", "input_steps", "channels", "archive", "loggers", "epoch", "state_dict")
        ),
        ("channels", ["rain"]),
        ("channels", [{"name": "rain", "role": 1}]),
        ("grid_spacing", ["a"]),
        ("format", None),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_of_the_right_kind(
    key: str, value: Any, tiny_run: Path, tmp_path: Path
) -> None:
    raw = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    (raw if key in raw else raw["raincast"])[key] = value
    if value is None:
        del raw["raincast"][key]
    torch.save(raw, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt (is not a checkpoint of raincast|has format None)"):
        assembly.read_checkpoint(tmp_path / "a.ckpt")


def test_a_config_cannot_ask_for_a_larger_network_than_the_weights(tiny_run: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["stages"] = [{"conv_channels": 4, "hidden_channels": 200_000}]  # 12 TB

    with pytest.raises(ValueError, match="its weights do not fit its network"):
        forecaster(spoilt(tiny_run, tmp_path / "a.ckpt", change))


def test_a_compressed_checkpoint_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    """torch unpacks 20 MB into 6 GB, and never writes such a file itself."""
    with (
        zipfile.ZipFile(tiny_run / "checkpoints" / "last.ckpt") as old,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged.*: its members are compressed"):
        assembly.read_checkpoint(tmp_path / "a.ckpt")


def test_every_flipped_bit_of_the_weights_is_found(tmp_path: Path, tiny_run: Path) -> None:
    """40 flipped bits gave 205 mm/h where it should have been 88, with exit code 0."""
    whole = (tiny_run / "checkpoints" / "last.ckpt").read_bytes()
    with zipfile.ZipFile(tiny_run / "checkpoints" / "last.ckpt") as file:
        members = [info for info in file.infolist() if "/data/" in info.filename and info.file_size >= 4]
    for info in members[::7]:
        spoiled = bytearray(whole)
        at = whole.index(info.filename.encode(), info.header_offset) + len(info.filename)
        name_and_extra = int.from_bytes(whole[info.header_offset + 28 : info.header_offset + 30], "little")
        spoiled[at + name_and_extra + 3] ^= 0x40  # an exponent
        (tmp_path / "a.ckpt").write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"a\.ckpt is damaged.*checksum"):
            forecaster(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path, tiny_run: Path) -> None:
    raw = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(key for key in raw["state_dict"] if key.startswith("network."))
    raw["state_dict"][name].select(0, 0).fill_(value)
    torch.save(raw, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"[12] of its \d+ weights, .* not finite"):
        forecaster(tmp_path / "a.ckpt")


def test_weights_alone_are_bounded_and_compared_too(tmp_path: Path) -> None:
    """The format of the weights that come with raincast: 20 kB that unpack to 20 MB, and a flipped bit."""
    write_weights(tmp_path / "a.npz", {"w": torch.zeros(5_000_000)}, {})
    with pytest.raises(ValueError, match="much larger than the file"):
        assembly.read_checkpoint(tmp_path / "a.npz")
    write_weights(tmp_path / "a.npz", {"w": torch.rand(1000)}, {})
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[-2000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz holds no weights of raincast, or is damaged"):
        assembly.read_checkpoint(tmp_path / "a.npz")
