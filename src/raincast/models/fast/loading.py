"""Kernels at first use: C sources are compiled for this processor, and kernels of GPUs are verified.

A compiled library is kept for later processes in `$RAINCAST_CACHE` or the user's cache folder, with the hash of
its bytes in its name. A library that does not match its hash is compiled again; one that another user could have
planted is not loaded. `RAINCAST_KERNELS=0` disables the kernels.

A kernel of a GPU must match the plain function on a small random input before it replaces it. How it is compiled
depends on the card, the driver and Triton. If it is wrong or cannot be compiled, results must still be right.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from raincast.system.files import flush
from raincast.system.paths import cache_folder, check_owner

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = [
    *("-std=gnu11", "-O3", "-march=native"),
    *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),  # allow vectorisation; NaN keeps its meaning
    *("-fopenmp", "-shared", "-fPIC"),
]

Tensors = Mapping[str, Tensor | None]

BATCH, GRID, TABLES = 2, (5, 7), 2
"""Shape of the small input: several tiles, the last one partly filled."""

FLOAT32_TOLERANCE = 1e-5
"""Tolerance as a share of a tensor's largest value; shorter formats add their own rounding error."""


def load(source: str, define: str = "") -> ctypes.CDLL | None:
    """Load the library of a source file with `define` set.

    None, after one warning, if it cannot be compiled or loaded.
    """
    if switched_off():
        return None
    try:
        return _load(source, define)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        reason = getattr(error, "stderr", None) or error
        say_once(f"ConvLSTM runs on plain PyTorch: its C kernels could not be compiled ({reason}).")
        return None


def switched_off() -> bool:
    """Return True if the user has disabled the kernels (`RAINCAST_KERNELS=0`), including those of a GPU."""
    return os.environ.get("RAINCAST_KERNELS", "1") == "0"


@functools.cache
def say_once(message: str) -> None:
    """Log a warning once per process."""
    log.warning(message)


def watched(like: Tensor) -> bool:
    """Return True if operations must stay visible: for tracers, and for tensors without memory of their own."""
    return type(like) is not Tensor or is_in_torch_dispatch_mode()


def _load(source: str, define: str) -> ctypes.CDLL:
    path = compile_library(source, define)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # corrupted: compile it again
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(compile_library(source, define)))


def compile_library(source: str, define: str = "") -> Path:
    """Return the path of the shared library, cached or newly compiled.

    Raises OSError or SubprocessError on failure.
    """
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    compiler = shlex.split(os.environ.get("CC", "")) or ([found] if found else [])
    if not compiler:
        raise OSError("no C compiler found; install gcc, or name one in CC")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    path = FOLDER / source
    made_of = "\n".join([path.read_text(encoding="utf-8"), define, *FLAGS, version, _processor()])
    folder = cache_folder()
    check_owner(folder)
    name = f"{path.stem}-{_hash(made_of.encode())}"
    for library in sorted(folder.glob(f"{name}-*.so")):
        check_owner(library)
        # loading a truncated library (after a power cut, say) would crash the process without a message
        if library.stem == f"{name}-{_hash(library.read_bytes())}":
            return library
        library.unlink(missing_ok=True)
    # in a temporary folder first: other processes may compile the same source at the same time
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / "library.so"
        defines = [f"-D{define}"] if define else []
        command = [*compiler, *FLAGS, *defines, str(path), "-o", str(made), "-lm"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        made.chmod(0o755)  # whatever the umask: `check_owner` checks the mode
        flush(made)
        library = folder / f"{name}-{_hash(made.read_bytes())}.so"
        made.replace(library)
    return library


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    """Return the features that -march=native depends on, so that machines sharing a cache have a library each."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


class FirstUse:
    """Kernels that may run. Once one has failed, all are disabled, and one warning is logged."""

    def __init__(self) -> None:
        self._agreed: set[object] = set()
        self.failed = False

    def runs(self, kernel: Callable[..., None], plain: Callable[..., None], tensors: Tensors) -> bool:
        """Run `kernel` with the named `tensors` if it may run; otherwise return False and write nothing."""
        if self.failed:
            return False
        case = _case(kernel, tensors)
        if case not in self._agreed:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return False  # the comparison must not become part of a graph
            reason = _disagreement(kernel, plain, tensors)
            if reason:
                self.failed = True
                log.warning(f"ConvLSTM runs on plain PyTorch: {kernel.__name__} of its GPU kernels {reason}.")
                return False
            self._agreed.add(case)
        kernel(**tensors)
        return True


def _case(kernel: Callable[..., None], tensors: Tensors) -> object:
    """Return a key for one compilation of a kernel: tensors present, precision, width, type of peepholes."""
    forms = tuple(None if t is None else (t.dtype, t.shape[-1]) for t in tensors.values())
    table = tensors.get("peephole")
    device = next(t.device for t in tensors.values() if t is not None)
    return kernel, device, forms, table is not None and table.shape[:2] == (1, 1)


def _disagreement(kernel: Callable[..., None], plain: Callable[..., None], tensors: Tensors) -> str | None:
    """Compare the kernel with the plain function; return its error as text, None if there is none."""
    expected, found = _small(tensors), _small(tensors)
    plain(**expected)
    try:
        kernel(**found)
        for name, want in expected.items():
            if want is not None and (reason := _difference(name, found[name], want)):
                return reason
    except Exception as error:  # compilers, drivers and cards may raise anything
        return f"failed ({type(error).__name__}: {str(error)[:500]})"
    return None


def _difference(name: str, found: Tensor | None, want: Tensor) -> str | None:
    assert found is not None
    if name == "dpeephole":  # only the sum over the tables matters
        found, want = found.sum(0), want.sum(0)
    tolerance = max(FLOAT32_TOLERANCE, 2 * torch.finfo(want.dtype).eps)
    worst, largest = (float(t.abs().max()) for t in (found.double() - want.double(), want.double()))
    # NaN exceeds every tolerance
    return None if worst <= tolerance * max(1.0, largest) else f"gave a {name} up to {worst:.2g} off"


def _small(tensors: Tensors) -> dict[str, Tensor | None]:
    """Return reproducible random tensors for the same arguments; tensors that share memory share it here too."""
    generator = torch.Generator().manual_seed(0)  # leaves the run's own random state alone
    made: dict[str, Tensor | None] = {}
    by_memory: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            made[name] = None
        elif tensor.data_ptr() in by_memory:
            made[name] = by_memory[tensor.data_ptr()]
        else:
            # gates lie between 0 and 1: with other values the gradients would be sums of huge terms
            draw = torch.rand if name in ("gates", "out_gate") else torch.randn
            values = draw(_shape(name, tensor), generator=generator)
            made[name] = by_memory[tensor.data_ptr()] = values.to(tensor.device, tensor.dtype)
    return made


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if name == "dpeephole":
        return TABLES, *tensor.shape[1:]
    if name == "peephole":
        return (1, 1, *tensor.shape[2:]) if tensor.shape[:2] == (1, 1) else (*GRID, *tensor.shape[2:])
    return BATCH, *GRID, tensor.shape[-1]
