"""Conversions: both ways, with their zero, NaN and dtype, for NumPy and torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from raincast.transforms import ZR, DbzScaling, LogScaling, accumulation_to_rate

HKO = DbzScaling(a=58.53, b=1.56)
SCALINGS = [DbzScaling(), HKO, LogScaling(), LogScaling(offset=0.02, max_rate=300.0)]

scaling = pytest.mark.parametrize("transform", SCALINGS, ids=str)
library = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
precision = pytest.mark.parametrize("dtype", ["float32", "float64"])

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def made(kind, dtype, values):
    return kind(np.asarray(values, dtype=dtype))


def same_type(a, b) -> bool:
    return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape


@precision
@library
@scaling
def test_rates_come_back(transform, kind, dtype):
    rate = made(kind, dtype, np.geomspace(0.1, 100.0, 60).reshape(3, 20))
    scaled = transform.forward(rate)
    assert same_type(scaled, rate)
    back = transform.inverse(scaled)
    assert same_type(back, rate)
    np.testing.assert_allclose(np.asarray(back), np.asarray(rate), rtol=TOLERANCE[dtype])


@precision
@library
@scaling
def test_scaled_values_come_back(transform, kind, dtype):
    scaled = made(kind, dtype, np.linspace(0.01, 1.0, 50))
    back = transform.forward(transform.inverse(scaled))
    assert same_type(back, scaled)
    np.testing.assert_allclose(np.asarray(back), np.asarray(scaled), rtol=TOLERANCE[dtype], atol=1e-6)


@precision
@library
@scaling
def test_zero_is_exactly_zero_both_ways_and_nan_stays_nan(transform, kind, dtype):
    given = made(kind, dtype, [0.0, np.nan, 0.0])
    for out in (transform.forward(given), transform.inverse(given)):
        np.testing.assert_array_equal(np.asarray(out), [0.0, np.nan, 0.0])
    # what a network says below its scale is no rain, never a negative rate
    assert not transform.inverse(made(kind, dtype, [-0.5, -1e-9, -np.inf])).any()
    assert not transform.forward(made(kind, dtype, [-1.0])).any()


@scaling
def test_monotone_and_within_0_and_1(transform):
    rate = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 500)])
    scaled = transform.forward(rate)
    assert scaled.min() == 0.0 and scaled.max() == 1.0
    assert (np.diff(scaled) >= 0).all()
    inside = (scaled > 0) & (scaled < 1)
    assert inside.sum() > 200 and (np.diff(scaled[inside]) > 0).all()
    assert (np.diff(transform.inverse(np.linspace(0, 1, 200))) > 0).all()
    # above the scale: the rate of its end
    assert transform.inverse(np.array([7.0])) == transform.inverse(np.array([1.0]))


@scaling
def test_numpy_and_torch_agree(transform):
    rate = np.concatenate([[0.0, np.nan], np.geomspace(0.01, 500, 30)])
    for numpy_out, torch_out in (
        (transform.forward(rate), transform.forward(torch.from_numpy(rate))),
        (transform.inverse(rate / 500), transform.inverse(torch.from_numpy(rate / 500))),
    ):
        np.testing.assert_allclose(torch_out.numpy(), numpy_out, rtol=1e-11)


def test_pixel_values_of_hko_7():
    """Thresholds 0.5, 2, 5, 10, 30 mm/h of Shi et al. 2017 in dBZ and in pixel values."""
    rate = np.array([0.5, 2.0, 5.0, 10.0, 30.0])
    # 10·log10(58.53) + 15.6·log10(0.5) = 17.674 − 4.696 = 12.978, and so on
    np.testing.assert_allclose(HKO.zr.to_dbz(rate), [12.98, 22.37, 28.58, 33.27, 40.72], atol=0.005)
    np.testing.assert_allclose(HKO.forward(rate), [0.3283, 0.4624, 0.5511, 0.6182, 0.7245], atol=5e-5)
    # the ends of the scale: −10 and 60 dBZ
    ends = 10 ** ((np.array([-10.0, 60.0]) - 10 * np.log10(58.53)) / 15.6)
    np.testing.assert_allclose(HKO.forward(ends), [0, 1], atol=1e-12)
    np.testing.assert_allclose(HKO.inverse(np.array([1.0])), ends[1:], rtol=1e-12)


def test_marshall_palmer():
    # Z = 200·R^1.6: at 1 mm/h 10·log10(200) = 23.0103 dBZ; ten times the rate is 16 dB more
    np.testing.assert_allclose(ZR().to_dbz(np.array([1.0, 10.0])), [23.0103, 39.0103], atol=1e-4)


@library
def test_dry_has_no_dbz_but_the_stated_one(kind):
    zr = ZR(dry_dbz=-5.0)
    below = 10 ** ((-6.0 - 10 * np.log10(200)) / 16)  # −6 dBZ
    dbz = zr.to_dbz(made(kind, "float64", [0.0, below, -1.0, np.nan]))
    np.testing.assert_array_equal(np.asarray(dbz), [-5.0, -5.0, -5.0, np.nan])
    np.testing.assert_array_equal(
        np.asarray(zr.to_rate(made(kind, "float64", [-5.0, -5.1, -np.inf, np.nan]))), [0.0, 0.0, 0.0, np.nan]
    )
    wet = made(kind, "float64", np.geomspace(0.02, 300, 20))
    np.testing.assert_allclose(np.asarray(zr.to_rate(zr.to_dbz(wet))), np.asarray(wet), rtol=1e-12)


def test_log_scale_by_its_formula():
    transform = LogScaling(offset=0.1, max_rate=150.0)
    rate = np.array([0.0, 0.9, 9.9, 150.0, 1e6])
    # (0.9 + 0.1) / 0.1 = 10, (9.9 + 0.1) / 0.1 = 100, (150 + 0.1) / 0.1 = 1501
    np.testing.assert_allclose(
        transform.forward(rate), np.array([0, 1, 2, *[np.log10(1501)] * 2]) / np.log10(1501)
    )


@precision
@library
def test_rate_of_a_depth(kind, dtype):
    depth = made(kind, dtype, [0.0, 0.01, 0.5, np.nan])
    rate = accumulation_to_rate(depth, 5.0)
    assert same_type(rate, depth)
    # 0.01 mm in 5 minutes are 0.12 mm in an hour
    np.testing.assert_allclose(np.asarray(rate), [0.0, 0.12, 6.0, np.nan], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZR(a=0.0), "a > 0 and b > 0, found a=0.0"),
        (lambda: ZR(b=-1.6), "found a=200.0, b=-1.6"),
        (lambda: DbzScaling(a=-1.0), "found a=-1.0"),
        (lambda: DbzScaling(min_dbz=60.0), "max_dbz=60.0 must exceed min_dbz=60.0"),
        (lambda: LogScaling(offset=0.0), "must be positive, found 0.0"),
        (lambda: LogScaling(max_rate=-1.0), "must be positive"),
    ],
)
def test_scales_without_an_inverse_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_values_compare_and_cannot_be_changed():
    assert DbzScaling() == DbzScaling() != HKO
    with pytest.raises(AttributeError):
        HKO.a = 1.0


def test_numpy_needs_no_torch():
    code = (
        "import sys, numpy as np; from raincast.transforms import DbzScaling, LogScaling\n"
        "for t in (DbzScaling(), LogScaling()): t.inverse(t.forward(np.ones(2)))\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
