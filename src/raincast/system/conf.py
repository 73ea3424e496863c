"""Where the configs lie."""

from pathlib import Path

HYDRA_VERSION_BASE = "1.3"


def conf_dir() -> Path:
    """The folder of configs: beside src/ in a checkout, inside the package when installed from a wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"
