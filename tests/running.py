"""How tests run the commands: tiny configs, composed in this process or run as scripts."""

import copy
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, flag_override

from raincast.cli import HYDRA_VERSION_BASE, conf_dir, main

REPO = Path(__file__).resolve().parents[1]

TINY = [
    "experiment=convlstm",
    "logger=csv",
    "baselines=[persistence]",
    "callbacks.pictures.every_n_epochs=0",
    "data.input_steps=3",
    "data.lead_steps=3",
    "data.crop=32",
    "data.samples_per_epoch=32",
    "optimizer.lr=1e-2",
    "data.batch_size=4",
    "data.eval_batch_size=1",
    "data.num_workers=0",
    "model.stages=[{conv_channels:4,hidden_channels:8}]",
    "model.head_channels=4",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
]
"""A run of seconds: add data.archive=… and the folders."""


def compose_config(command: str, run_dir: Path, *overrides: str) -> DictConfig:
    """The config of a command, with its run folder at `run_dir`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return composed(command, [*overrides, f"paths.run_dir={run_dir}"])


def composed(command: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """The config of a command as Hydra composes it: first the files that are chosen, then the values that are given.

    The first takes most of the time and is done once. `with_hydra`: with Hydra's own node.
    """
    choices = tuple(override for override in overrides if _chooses_files(override))
    values = [override for override in overrides if override not in choices]
    cfg = copy.deepcopy(_files_of(conf_dir(), command, choices, with_hydra=with_hydra))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
    if with_hydra:
        with flag_override(cfg, ["readonly", "struct"], False):
            cfg.hydra.overrides.task = list(overrides)
    return cfg


def _chooses_files(override: str) -> bool:
    """Whether it names a folder of conf/, as head=softmax and data/channels=[sun] do."""
    group = override.lstrip("~+").partition("=")[0].partition("@")[0]
    return (conf_dir() / group).is_dir()


@functools.cache
def _files_of(folder: Path, command: str, choices: tuple[str, ...], *, with_hydra: bool) -> DictConfig:
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(folder), version_base=HYDRA_VERSION_BASE):
            return compose(command, overrides=list(choices), return_hydra_config=with_hydra)
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def undrawn(*, page: bool = False) -> Iterator[None]:
    """Training and evaluation without their pictures, and without the page unless `page` is set.

    These take most of the time of a small one. For tests of other things; what is drawn is tested where it is
    looked at.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raincast.commands.report.example_picture", lambda *args: args[-1])
        patch.setattr("raincast.evaluation.report.score_figures.csi_plot", lambda *args: args[-1])
        if not page:
            patch.setattr("raincast.commands.evaluate.write_page", lambda *args: args[4])
        yield


def run_script(cwd: Path, script: str, *overrides: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT.py overrides` in the folder `cwd`, offline and on one thread."""
    command, environment = [sys.executable, str(REPO / f"{script}.py"), *overrides], _environment(cwd)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment)


def run_forked(
    cwd: Path, script: str, *overrides: str, timeout: float = 600, drawn: bool = True
) -> subprocess.CompletedProcess[str]:
    """As `run_script`, but forked from a process that has imported everything, which saves seconds.

    `script` may be raincast, then a command comes first, or torchrun. Without `drawn` it makes no pictures (`undrawn`).
    """
    command = [script if script in ("raincast", "torchrun") else str(REPO / f"{script}.py"), *overrides]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = server().Process(target=_as_script, args=(cwd, command, _environment(cwd), files, drawn))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in files)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, stdout, stderr)


def server() -> "multiprocessing.context.ForkServerContext":
    """The context whose processes have torch, Lightning and raincast loaded, and no file open."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has no other thread
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    with pytest.MonkeyPatch.context() as patch:
        # up to Python 3.12 the server does not get the path of this process, and says nothing where it finds no preload
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    return context


def _environment(cwd: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    # the fonts that matplotlib finds and the kernels that raincast compiles take seconds
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return kept | {"OMP_NUM_THREADS": "1", "HOME": str(cwd), "XDG_CACHE_HOME": cache}


def _as_script(cwd: Path, command: list[str], environment: dict[str, str], files: list[Path], drawn: bool) -> None:
    """`python COMMAND` in this process, its output into two files."""
    for number, path in enumerate(files, start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    with nullcontext() if drawn else undrawn():
        if command[0] == "raincast":
            main()
        elif command[0] == "torchrun":
            runpy.run_module("torch.distributed.run", run_name="__main__")
        else:
            runpy.run_path(command[0], run_name="__main__")
