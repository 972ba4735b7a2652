"""Search for the clipping threshold of a histogram with the least squared error.

The model: the values of a bin lie evenly over it, those of the last bin in use over its part below
absmax.  With the threshold T and the step s = T / codes a magnitude in [(k - 1/2) s, (k + 1/2) s)
becomes k s, and all from (codes - 1/2) s on become T.  Rounding and clipping are then both
integrals of (x - k s)**2, and with b_k = (k - 1/2) s and the mass and moment above a place,
M0(b) and M1(b), they sum to

    E(T) = sum x**2 - 2 s (M1(b_1) + ... + M1(b_codes)) + s**2 (1 M0(b_1) + 3 M0(b_2) + ...)

M0 and M1 are prefix sums, exact inside a bin too: a threshold costs as many steps as there are
codes, whatever the number of bins.
"""

import numpy as np
from numpy.typing import NDArray

from quantjit.kernels import kernel, parallel_kernel, prange
from quantjit.kernels.histogram import Counts

_FEW_CHANNELS = 16  # below, a team of threads costs more than it gains


@kernel
def _squared_error(
    threshold: float,
    codes: int,
    density: NDArray[np.float64],
    mass: NDArray[np.float64],
    moment: NDArray[np.float64],
    square: float,
) -> float:
    """E(T) of the module's model, in bins squared times counts.

    threshold: in bins, at most absmax.  density: float64 (bins,), counts a bin's width; mass,
    moment: float64 (bins,), of all values from the start of each bin on; square: sum of x**2.
    """
    step = threshold / codes
    masses, moments = 0.0, 0.0
    for code in range(codes):
        start = (code + 0.5) * step
        i = int(start)
        inside = density[i] * (start - i)  # of the bin, below the start
        masses += (2 * code + 1) * (mass[i] - inside)
        moments += moment[i] - inside * 0.5 * (start + i)
    return square + step * (step * masses - 2.0 * moments)


@kernel
def _search_squared_error(counts: Counts, absmax: float, codes: int) -> float:
    """Return the threshold, in bins, with the least squared error, the largest of equals.

    All bin edges up to absmax, and absmax, are looked at, from above.  The error of clipping alone
    grows as the threshold falls: where it is more than the best so far the search is over.
    """
    used = 0
    for i in range(counts.size):
        if counts[i] > 0:
            used = i + 1
    if used == 0:
        return absmax
    density = np.zeros(used, np.float64)
    mass = np.zeros(used + 1, np.float64)
    moment = np.zeros(used + 1, np.float64)
    squares = np.zeros(used + 1, np.float64)
    for i in range(used - 1, -1, -1):
        end = absmax if i == used - 1 else i + 1.0
        count, width = float(counts[i]), end - i
        density[i] = count / width if width > 0 else 0.0
        mass[i] = mass[i + 1] + count
        moment[i] = moment[i + 1] + count * 0.5 * (i + end)
        squares[i] = squares[i + 1] + count * (float(i * i) + i * end + end * end) / 3
    best = absmax
    least = _squared_error(absmax, codes, density, mass, moment, squares[0])
    for edge in range(used - 1, 0, -1):
        clipping = squares[edge] - 2.0 * edge * moment[edge] + float(edge * edge) * mass[edge]
        if clipping > least:
            break
        found = _squared_error(float(edge), codes, density, mass, moment, squares[0])
        if found < least:
            best, least = float(edge), found
    return best


@parallel_kernel
def search_squared_error_into(
    counts: Counts, absmax: NDArray[np.float64], codes: int, out: NDArray[np.float64]
) -> None:
    """Write the threshold of each channel, in bins.

    counts: (channels, bins); absmax: float64 (channels,), in bins, inside the last bin in use;
    codes: of one sign, e.g. 127; out: float64 (channels,).
    """
    if out.size < _FEW_CHANNELS:
        for c in range(out.size):
            out[c] = _search_squared_error(counts[c], absmax[c], codes)
    else:
        for c in prange(out.size):
            out[c] = _search_squared_error(counts[c], absmax[c], codes)
