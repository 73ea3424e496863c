"""How the weights of recurrent layers start."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Initialisation = Literal["xavier", "he", "orthogonal"]

_STARTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # for the input's and for the state's kernels
    "xavier": (nn.init.xavier_uniform_, nn.init.xavier_uniform_),
    "he": (nn.init.kaiming_normal_, nn.init.kaiming_normal_),
    "orthogonal": (nn.init.xavier_uniform_, nn.init.orthogonal_),
}


@torch.no_grad()
def initialise_gates(
    input_weight: Tensor | None, state_weight: Tensor, *, num_gates: int, how: Initialisation
) -> None:
    """Start the kernels (num_gates·hidden, in, k, k) of all gates, each gate as a convolution of its own.

    "xavier": uniform, for the fan of one gate (Glorot & Bengio 2010). "he": normal, variance 2 / fan-in
    (He et al. 2015). "orthogonal": Xavier for the input; for the state each gate's (hidden, hidden·k·k)
    matrix has orthonormal rows (Saxe et al. 2014).
    """
    if how not in _STARTS:
        raise ValueError(f"initialisation={how!r}: take {', '.join(_STARTS)}.")
    for weight, start in zip((input_weight, state_weight), _STARTS[how], strict=True):
        if weight is not None:
            for gate in weight.chunk(num_gates):
                # on a copy: a matrix view, which orthogonal_ needs, does not exist with channels last
                gate.copy_(start(torch.empty_like(gate, memory_format=torch.contiguous_format)))
