"""Flow: rain that moves so is found to, and moving by whole pixels is a shift."""

import torch

from raincast.models.optical_flow import displacements, find_flow, move


def blobs(y: float, x: float, size: int = 96) -> torch.Tensor:
    """A smooth pattern, shifted by (y, x) pixels: (size, size)."""
    rows, columns = torch.meshgrid(torch.arange(size) - float(y), torch.arange(size) - float(x), indexing="ij")
    fine = (0.35 * rows).sin() * (0.25 * columns + 0.1 * rows).cos()
    coarse = (0.07 * rows - 0.03 * columns).sin() + (0.06 * columns + 1.0).cos()
    return (fine + coarse).clamp(min=0).double()


def flow_of(frames: torch.Tensor, pixel_km: float = 1.0) -> torch.Tensor:
    return find_flow(frames, torch.ones_like(frames), torch.full((len(frames),), pixel_km, dtype=frames.dtype))


def constant(dy: float, dx: float, *shape: int) -> torch.Tensor:
    return torch.tensor([dy, dx], dtype=torch.float64)[:, None, None].expand(1, 2, *shape)


def test_the_flow_of_a_moving_pattern_is_its_motion() -> None:
    for dy, dx in ((1.5, -0.7), (0.0, 0.0), (-2.0, 2.0)):
        frames = torch.stack([blobs(t * dy, t * dx) for t in range(4)])[None]
        for pixel_km in (0.5, 1.0, 2.0):
            inner = flow_of(frames, pixel_km)[0, :, 16:-16, 16:-16]
            assert (inner - torch.tensor([dy, dx])[:, None, None]).abs().mean() < 0.15


def test_a_frame_that_is_missing_has_no_say() -> None:
    frames = torch.stack([blobs(0, 1.5 * t) for t in range(4)])[None]
    observed = torch.ones_like(frames)
    frames[:, 1], observed[:, 1] = 0, 0
    inner = find_flow(frames, observed, torch.ones(1).double())[0, :, 16:-16, 16:-16]
    assert (inner - torch.tensor([0, 1.5])[:, None, None]).abs().mean() < 0.15


def test_without_rain_or_a_second_frame_nothing_moves() -> None:
    assert not flow_of(torch.zeros(2, 3, 9, 13)).any()
    assert not flow_of(torch.rand(1, 1, 9, 13)).any()
    assert flow_of(torch.rand(1, 2, 1, 1)).shape == (1, 2, 1, 1)


def test_whole_pixels_are_a_shift_into_which_no_rain_flows() -> None:
    field = torch.rand(1, 1, 7, 9, dtype=torch.float64)
    moved = move(field, constant(2, -3, 7, 9))
    torch.testing.assert_close(moved[..., 2:, :-3], field[..., :-2, 3:])
    assert float(moved[..., :2, :].max()) < 1e-12
    assert float(moved[..., -3:].max()) < 1e-12


def test_steps_compose() -> None:
    """Twice by the displacement of one step is once by that of two."""
    field = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    one, two = displacements(constant(1, -2, 12, 12), 2).unbind(1)
    torch.testing.assert_close(move(field, two), move(move(field, one), one))
    # where the flow differs from place to place, by hand: D_2(p) = d(p) + d(p − d(p))
    flow = torch.zeros(1, 2, 1, 6, dtype=torch.float64)
    flow[0, 1, 0] = torch.tensor([0.0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(displacements(flow, 2)[0, 1, 1, 0], torch.tensor([0.0, 0, 1, 2, 3, 3]).double())
