"""What makes a resumed run equal an uninterrupted one: whole checkpoints, its random numbers, its metrics.csv.

Checkpoints are written atomically, and checked before a run resumes from them.
"""

import csv
import logging
import pickle
import random
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from raincast.system.files import atomic

log = logging.getLogger(__name__)


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; earlier files are untouched."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.path = path

    def __str__(self) -> str:
        """Return a message with the checkpoints that still exist, and the remedy."""
        folder = self.path.parent
        path = folder / self.path.name.removeprefix(".").removesuffix(".new")
        kept = [path.name for path in sorted(folder.glob("*.ckpt")) if not path.name.startswith(".")]
        return (
            f"The checkpoint {path} could not be written ({self.strerror}). "
            + (f"{folder} still holds {', '.join(kept)}, undamaged. " if kept else "There is no earlier one. ")
            + "Free some space, then continue with resume=auto or checkpoint=…."
        )


class DurableCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file, flush it to disk, and rename it.

    Lightning's own class first writes a copy into memory, and leaves it to the system when the bytes reach the
    disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save `checkpoint`; raises CheckpointNotWritten if the disk is full or fails."""
        if storage_options is not None:
            raise TypeError("DurableCheckpointIO takes no storage_options.")
        target = Path(path)
        try:
            with atomic(target, sole=True, durable=True) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except OSError as error:
            raise CheckpointNotWritten(target, error) from error
        except RuntimeError as error:
            # torch's zip writer reports its own state and hides the system's error in the context
            if isinstance(error.__context__, OSError):
                raise CheckpointNotWritten(target, error.__context__) from error
            raise


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or None. Reads the whole file, and runs no code from it.

    torch does not verify the checksums in its files, and zipfile does not read everything that torch does.
    """
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None if broken is None else f"the checksum of {broken} is wrong"


def newest_whole(last: Path, previous: Path) -> Path | None:
    """Return the newer undamaged one of two checkpoints; None if neither exists.

    Raises ValueError if all are damaged. A damaged file is renamed to NAME.damaged, so that the next checkpoint
    does not displace the good one.
    """
    found = [path for path in (last, previous) if path.is_file()]
    for path in found:
        problem = damage(path)
        if problem is None:
            return path
        log.warning("%s is damaged (%s): the previous one is used, if there is one.", path, problem)
        with suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
    if found:
        raise ValueError(
            f"No checkpoint in {last.parent} is undamaged; they were renamed to *.damaged. The same command, "
            "given again, starts from scratch; checkpoint=…/best.ckpt continues from the best one."
        )
    return None


class ContinuedCSVLogger(CSVLogger):
    """Continue an existing file: rows of the first `step` steps stay, later ones are written again.

    Every row is written when it is logged; a buffer would be lost if the process were killed.
    """

    def __init__(self, save_dir: str | Path, *, name: str, step: int) -> None:
        super().__init__(save_dir=save_dir, name=name, version=0, flush_logs_every_n_steps=1)
        self.step = step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the file's writer, on the first process."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(self.log_dir, self.step)
        return self._experiment


class _Writer(ExperimentWriter):
    """Lightning's writer, but it continues an existing file, replaces it atomically and tolerates a full disk."""

    def __init__(self, log_dir: str, step: int) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self._warned = False
        if self._path.is_file():
            kept = [row for row in _whole_rows(self._path) if int(row["step"]) < step]
            self.metrics_keys = list(kept[0]) if kept else []
            if kept:
                self._replace(kept)
            else:
                self._path.unlink()

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning removes the file here."""

    def save(self) -> None:
        """Write what was logged; a full disk ends the run at its next checkpoint, not here."""
        try:
            super().save()
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written: %s", self._path, error)
            self._warned = True

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._replace(list(_whole_rows(self._path)))

    def _replace(self, rows: list[dict[str, str]]) -> None:
        with atomic(self._path, sole=True) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows: a kill may have truncated the last one."""
    with path.open(newline="") as file:
        text = file.read()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in csv.DictReader(lines) if None not in row.values() and (row.get("step") or "").isdigit()]


class RandomStreams(Callback):
    """Seed torch (on all devices), NumPy and Python before each training step from (seed, rank, epoch, batch).

    A run resumed in mid-epoch therefore draws the same dropout masks as an uninterrupted one, whatever validation,
    loaders or loggers drew in between, and no generator's state has to be saved.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators just before the step draws anything."""
        where = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        for_torch, for_numpy, for_python = np.random.SeedSequence(where).generate_state(3).tolist()
        _seed_torch(for_torch, trainer.strategy.root_device)
        np.random.seed(for_numpy)  # noqa: NPY002 (for code that draws from it)
        random.seed(for_python)


def _seed_torch(seed: int, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    # manual_seed seeds all types of devices and records the stack for each unused one, which takes a millisecond
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
