"""Random numbers that are a pure function of (seed, stream, episode, position): Philox 4x32-10 on numpy arrays.

Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3". Integer arithmetic only, so every machine, device
and process count gets the same numbers, in any order, thousands of episodes at a time.
"""

import hashlib

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Compute four 32-bit words for each row of ``counter`` [..., 4] (uint64 holding 32-bit words): [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniform(seed: int, stream: str, indices: np.ndarray, count: int) -> np.ndarray:
    """Draw ``count`` numbers in [0, 1) for each episode of ``indices`` [B]: float64 [B, count], of 32 random bits each.

    ``stream`` names what they are for (the split, say); streams are independent of each other.
    """
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    bits = _words(seed, stream, indices, np.broadcast_to(blocks, (len(indices), len(blocks))))
    return bits.reshape(len(indices), -1)[:, :count].astype(np.float64) * 2.0**-32


def uniform_at(seed: int, stream: str, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of the numbers that ``uniform`` draws for each episode, those at ``places`` [B, ...]: float64 [B, ...]."""
    wanted = places.reshape(len(indices), -1).astype(np.uint64)
    bits = _words(seed, stream, indices, wanted // np.uint64(4))
    at = (wanted % np.uint64(4)).astype(np.int64)[..., None]
    return np.take_along_axis(bits, at, -1).reshape(places.shape).astype(np.float64) * 2.0**-32


def _words(seed: int, stream: str, indices: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The four words of each of the ``blocks`` [B, n] of the episodes ``indices`` [B]: [B, n, 4]."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], dtype="<u4")
    episodes = np.asarray(indices, dtype=np.uint64)
    counter = np.zeros((*blocks.shape, 4), dtype=np.uint64)
    counter[..., 0] = blocks
    counter[..., 1] = (episodes & _LOW)[:, None]
    counter[..., 2] = (episodes >> _SHIFT)[:, None]
    return philox(counter, (int(key[0]), int(key[1])))


def words(seed: int, stream: str, count: int) -> np.ndarray:
    """Draw ``count`` integers of 16 random bits: uint16 [count]. By numpy's Philox (4x64), a nanosecond each."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:16], dtype="<u8")
    blocks = np.random.Philox(key=key.astype(np.uint64)).random_raw(-(-count // 4))
    return blocks.astype("<u8").view("<u2")[:count]


def normal(u: np.ndarray) -> np.ndarray:
    """Turn uniforms u [..., even] into as many numbers ~ N(0, 1): float64 [..., even] (Box and Muller 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-u[..., ::2])), 2 * np.pi * u[..., 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(u.shape)


def without_replacement(u: np.ndarray, population: int | np.ndarray) -> np.ndarray:
    """Turn uniforms u [..., n] into n distinct integers below ``population``: int64 [..., n], all choices alike.

    ``population`` may differ per row (shape [...]). Draw k picks among the values not taken yet, by its rank. Raises
    ValueError where a population has fewer than n.
    """
    n = u.shape[-1]
    left = np.asarray(population)[..., None] - np.arange(n)
    if left.size and left.min() < 1:
        raise ValueError(f"cannot draw {n} distinct values from a population of {int(np.min(population))}.")
    ranks = np.floor(u * left).astype(np.int64)
    chosen = np.empty_like(ranks)
    taken = np.empty_like(ranks)  # the earlier choices in ascending order
    for k in range(n):
        value = ranks[..., k].copy()
        for j in range(k):
            value += value >= taken[..., j]
        chosen[..., k] = value
        taken[..., k] = value
        taken[..., : k + 1].sort(axis=-1)
    return chosen
