"""The built-in archive: synthetic storms that move, grow and decay, for use without a radar archive.

Each day is one weather situation. A Gaussian field with a power-law spectrum is advected by a smooth flow that
rotates and shears. Its scales decay and are renewed at different rates, by an autoregressive process in Lagrangian
coordinates as in STEPS (Bowler, Pierce and Seed, 2006). Rain grows where air ascends a ridge, fixed in the grid,
and decays in its lee. Convective cells are born, grow, widen and die. The sum is thresholded at the day's wet
share, and its ranks are mapped to log-normal rates.
"""

from raincast.synthetic.archive import CONFIG_ATTR, MAX_MM_H, SOURCE, build_builtin_archive

__all__ = ["CONFIG_ATTR", "MAX_MM_H", "SOURCE", "build_builtin_archive"]
