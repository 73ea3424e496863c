"""What a trial's process leaves for its worker: a file in the run's folder, whole at any moment."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "trial.json"
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"


@dataclass
class Outcome:
    """State, why it failed, epochs and validations so far, and all scores at the best validation."""

    state: str = RUNNING
    reason: str = ""
    epochs: int = 0
    validations: int = 0
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{FILE}"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.replace(folder / FILE)


def read_outcome(folder: Path) -> Outcome:
    """From `folder`; a run that left nothing has not come as far as its first validation."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Outcome()
    return Outcome(**values)
