from itertools import permutations

import numpy as np
import pytest

from metarun.counter import philox, uniform, without_replacement


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def limit(cells: int) -> float:
    """About five standard deviations above the mean of a chi-square statistic with cells - 1 degrees of freedom."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0x00000000, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (0xFFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ],
)
def test_philox_gives_the_known_answers_of_random123(word, expected):
    words = philox(np.full((1, 4), word, dtype=np.uint64), (word, word))
    assert words.tolist() == [expected]


def test_philox_equals_a_scalar_implementation_on_python_integers():
    def scalar(c: list[int], k: list[int]) -> list[int]:
        for _ in range(10):
            p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(q >> 32) ^ c[1] ^ k[0], q % 2**32, (p >> 32) ^ c[3] ^ k[1], p % 2**32]
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        return c

    rng = np.random.default_rng(0)
    counters, key = rng.integers(0, 2**32, size=(20, 4)), (123456789, 4000000000)
    assert philox(counters.astype(np.uint64), key).tolist() == [scalar(c, list(key)) for c in counters.tolist()]


def test_uniform_numbers_of_an_episode_do_not_depend_on_the_others():
    together = uniform(7, "s", np.array([5, 2**40, 0, 3]), 10)
    alone = [uniform(7, "s", np.array([i]), 10)[0] for i in (5, 2**40, 0, 3)]
    assert np.array_equal(together, alone)


def test_the_first_uniform_numbers_do_not_depend_on_how_many_are_asked_for():
    assert np.array_equal(uniform(7, "s", np.arange(4), 11)[:, :3], uniform(7, "s", np.arange(4), 3))


def test_seeds_streams_and_episodes_all_give_different_numbers():
    rows = [uniform(seed, stream, np.arange(50), 4) for seed in (0, 1) for stream in ("train", "val")]
    rows.append(uniform(0, "train", np.arange(50) + 2**32, 4))  # the upper half of the episode number counts
    assert len(np.unique(np.concatenate(rows), axis=0)) == 250


def test_uniform_numbers_pass_a_chi_square_test_and_stay_in_the_unit_interval():
    u = uniform(0, "s", np.arange(1000), 100)
    assert u.min() >= 0
    assert u.max() < 1
    assert chi_square(np.histogram(u, bins=100, range=(0, 1))[0], 1000) < limit(100)


def test_neighbouring_episodes_are_uncorrelated():
    u = uniform(0, "s", np.arange(20001), 1)[:, 0]
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(20000)


def test_draws_without_replacement_are_distinct_and_below_the_population():
    chosen = without_replacement(uniform(0, "s", np.arange(2000), 20), 20)
    assert np.array_equal(np.sort(chosen, axis=-1), np.tile(np.arange(20), (2000, 1)))


def test_every_ordered_draw_without_replacement_is_equally_likely():
    chosen = without_replacement(uniform(0, "s", np.arange(24000), 3), 4)
    counts = np.array([np.all(chosen == order, axis=-1).sum() for order in permutations(range(4), 3)])
    assert counts.sum() == 24000
    assert chi_square(counts, 1000) < limit(24)


def test_draws_without_replacement_pick_by_rank_among_what_is_left():
    # u = 0 takes the smallest value left, u just below 1 the largest
    assert without_replacement(np.zeros(4), 6).tolist() == [0, 1, 2, 3]
    assert without_replacement(np.full(4, 1 - 2.0**-32), 6).tolist() == [5, 4, 3, 2]


def test_populations_may_differ_between_rows():
    population = np.array([3, 10, 100])
    u = uniform(0, "s", np.arange(3), 3)
    rows = [without_replacement(row, int(size)) for row, size in zip(u, population, strict=True)]
    assert np.array_equal(without_replacement(u, population), rows)


@pytest.mark.parametrize("population", [2, np.array([5, 2])])
def test_drawing_more_than_the_population_is_an_error(population):
    with pytest.raises(ValueError, match="cannot draw 3 distinct values from a population of 2"):
        without_replacement(np.zeros((2, 3)), population)
