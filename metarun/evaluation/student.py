"""Student's t in plain Python: its quantile for intervals of 95%, and p values that agree with them."""

import math
from functools import cache

LEVEL = 0.05  # of the probability that an interval of 95% leaves out
NORMAL = 1.959963984540054  # the quantile of a normal distribution that leaves 2.5% above it
LARGE = 10_000  # degrees of freedom from which the first term of an expansion around NORMAL is exact to 1e-7


@cache
def student_t(df: int) -> float:
    """The value that Student's t with ``df`` degrees of freedom exceeds with probability 2.5%, to 1e-7."""
    if df > LARGE:  # Abramowitz and Stegun 26.7.5
        return NORMAL + (NORMAL**3 + NORMAL) / (4 * df)
    low, high = 0.0, 1.0
    while two_sided(high, df) > LEVEL:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, df) > LEVEL else (low, middle)
    return high


def two_sided(t: float, df: int) -> float:
    """The probability of a value of Student's t at least as far from 0 as ``t``."""
    return incomplete_beta(df / (df + t * t), df / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by the continued fraction 8.17.22 of https://dlmf.nist.gov."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side is the quick one
        return 1 - incomplete_beta(1 - x, b, a)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    fraction = 1.0
    for m in range(200, 0, -1):  # from its end
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + odd / (1 + even / fraction)
    return math.exp(front) / (a * fraction)
