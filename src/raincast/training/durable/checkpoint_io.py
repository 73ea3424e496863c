"""Checkpoints on disk: written atomically, checked before a run resumes from them."""

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
