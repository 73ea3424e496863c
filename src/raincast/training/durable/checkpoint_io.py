"""Checkpoints on disk: written whole or not at all, checked before they are gone on with."""

import logging
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from raincast.system.files import atomic

log = logging.getLogger(__name__)


class CheckpointNotWritten(OSError):
    """The disk did not take a checkpoint; what was there before is untouched."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.path = path

    def __str__(self) -> str:
        """What is kept, and the remedy."""
        folder = self.path.parent
        path = folder / self.path.name.removeprefix(".").removesuffix(".new")
        kept = [path.name for path in sorted(folder.glob("*.ckpt")) if not path.name.startswith(".")]
        return (
            f"The checkpoint {path} could not be written ({self.strerror}). "
            + (f"{folder} still holds {', '.join(kept)}, whole. " if kept else "There is none before it. ")
            + "Make room, then go on with resume=auto or checkpoint=…."
        )


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits for the disk, and then moves it there in one step.

    Lightning's own writes a copy into memory first, and leaves to the system when the bytes reach the disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """CheckpointNotWritten where the disk is full or fails."""
        if storage_options is not None:
            raise TypeError("DurableCheckpointIO takes no storage_options.")
        target = Path(path)
        try:
            with atomic(target, sole=True, durable=True) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except OSError as error:
            raise CheckpointNotWritten(target, error) from error
        except RuntimeError as error:
            # torch's writer of zip files speaks of its own state where the system's error lies before
            if isinstance(error.__context__, OSError):
                raise CheckpointNotWritten(target, error.__context__) from error
            raise


def damage(path: Path) -> str | None:
    """The damage of a checkpoint file, or None. Reads the whole file, and runs no code from it.

    torch does not compare the check sums that stand in its files, and zipfile does not read all that torch does.
    """
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None if broken is None else f"{broken} does not have its check sum"


def newest_whole(last: Path, previous: Path) -> Path | None:
    """The newer of two checkpoints that is whole; None where there is neither, ValueError where none is whole.

    A damaged one is named and put aside as NAME.damaged, so that the next one written does not push out the good.
    """
    found = [path for path in (last, previous) if path.is_file()]
    for path in found:
        problem = damage(path)
        if problem is None:
            return path
        log.warning("%s is damaged (%s): the one before is used, if there is one.", path, problem)
        with suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
    if found:
        raise ValueError(
            f"No checkpoint in {last.parent} is whole; what there was is called *.damaged now. The same command, "
            "given again, begins anew; checkpoint=…/best.ckpt goes on from the best."
        )
    return None
