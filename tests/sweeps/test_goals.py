"""What a sweep looks for."""

import math

import pytest

from raincast.sweeps.trials import Goal, check_goals


def test_a_score_is_told_as_it_is() -> None:
    assert Goal("val/csi_1mm").value({"val/csi_1mm": 0.25}) == 0.25
    assert Goal("val/csi_1mm").direction == "maximize"
    assert Goal("latency_ms", "min").direction == "minimize"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [({"val/mae": 1.0}, r"val/csi_1mm is not logged; there are val/mae"), ({"val/csi_1mm": math.nan}, "is nan")],
)
def test_a_score_that_is_not_there_is_answered(metrics: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Goal("val/csi_1mm").value(metrics)


def test_bad_goals_are_answered() -> None:
    with pytest.raises(ValueError, match=r"want=most of val/csi_1mm; there are max, min"):
        Goal("val/csi_1mm", "most")
    with pytest.raises(ValueError, match="each once"):
        check_goals([Goal("a"), Goal("a")], prunes=False)
    with pytest.raises(ValueError, match=r"Put a score first, or set sweep\.pruner=null"):
        check_goals([Goal("latency_ms", "min"), Goal("a")], prunes=True)
    check_goals([Goal("latency_ms", "min"), Goal("a")], prunes=False)
