"""The built-in archive: synthetic storms that move, grow and decay, for when no radar archive is at hand.

A day is one weather situation. A Gaussian field with a power-law spectrum drifts with a smooth flow that
turns and shears; its scales fade and are renewed at their own pace (an autoregressive process in
coordinates that move with the rain, as in STEPS: Bowler, Pierce and Seed, 2006). Air that climbs a ridge,
fixed in the grid, gains rain and loses it in the lee; convective cells are born, grow, widen and die. The
sum is thresholded at the day's wet share and its ranks are mapped to log-normal rates.
"""

from raincast.synthetic.archive import CONFIG_ATTR, MAX_MM_H, SOURCE, build_builtin_archive

__all__ = ["CONFIG_ATTR", "MAX_MM_H", "SOURCE", "build_builtin_archive"]
