"""Paths of the files that come with raincast."""

from pathlib import Path

HYDRA_VERSION_BASE = "1.3"


def conf_dir() -> Path:
    """Return the folder of configs: next to src/ in a checkout, inside the package when installed from a wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def sample_path() -> Path:
    """Return the path of the real radar event that comes with raincast."""
    return Path(__file__).resolve().parents[1] / "sample" / "2016-07-11.nc"
