import numpy as np
import pytest
import torch

from metarun.tasks.sinusoid import Sinusoid


def sinusoid(**changed) -> Sinusoid:
    arguments = {
        "num_shots": 5,
        "num_queries": 10,
        "train_num_shots": None,
        "train_num_queries": None,
        "query_grid": False,
        "frequency": [1.0, 1.0],
        "seed": 0,
        "device": torch.device("cpu"),
        "dtype": torch.float64,
    }
    return Sinusoid(**{**arguments, **changed})


def test_targets_are_the_drawn_sine_at_the_inputs():
    task = sinusoid()
    draw = task.draw("train", range(20))
    for batch in task.episodes(draw)[:2]:
        x, y = batch.x[..., 0].numpy(), batch.y[..., 0].numpy()
        for b in range(20):
            expected = [draw["amplitude"][b] * np.sin(value - draw["phase"][b]) for value in x[b]]
            np.testing.assert_allclose(y[b], expected, rtol=0, atol=1e-14)  # float64, values up to 5


def test_amplitudes_phases_and_inputs_fill_the_ranges_of_the_paper():
    draw = sinusoid().draw("test", range(4000))
    inputs = np.concatenate([draw["support_x"], draw["query_x"]], axis=1)
    for values, low, high in ((draw["amplitude"], 0.1, 5), (draw["phase"], 0, np.pi), (inputs, -5, 5)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        deviation = (high - low) / np.sqrt(12 * values.size)  # of the mean of a uniform sample
        assert abs(values.mean() - (low + high) / 2) < 5 * deviation


def test_frequencies_fill_their_range_and_change_nothing_else_of_a_wave():
    plain, wide = (sinusoid(frequency=frequency).draw("test", range(2000)) for frequency in ([1, 1], [0.8, 1.2]))
    assert "frequency" not in plain  # so that manifests are those of before
    assert 0.8 <= wide["frequency"].min() < 0.81 and 1.19 < wide["frequency"].max() <= 1.2
    assert all((plain[name] == wide[name]).all() for name in plain if name != "frequency")
    task = sinusoid(frequency=[0.8, 1.2])
    draw, support = task.draw("test", [5]), task.sample("test", [5]).support
    expected = draw["amplitude"] * np.sin(draw["frequency"] * support.x[0, :, 0].numpy() - draw["phase"])
    np.testing.assert_allclose(support.y[0, :, 0].numpy(), expected, rtol=0, atol=1e-14)
    assert task.fingerprint() != sinusoid().fingerprint()


@pytest.mark.parametrize("frequency", [[1.2, 0.8], [0.0, 1.0], [-1.0, 1.0], [1.0], []])
def test_frequencies_out_of_order_or_not_above_0_are_refused(frequency):
    with pytest.raises(ValueError, match="two numbers above 0, the smaller one first"):
        sinusoid(frequency=frequency)


def test_an_episode_is_the_same_alone_in_company_and_in_any_order():
    together = sinusoid().sample("val", [3, 1, 2])
    for place, index in enumerate([3, 1, 2]):
        alone = sinusoid().sample("val", [index])
        for one, many in zip(alone[:2], together[:2], strict=True):
            assert torch.equal(one.x[0], many.x[place])
            assert torch.equal(one.y[0], many.y[place])


def test_splits_and_seeds_give_different_episodes():
    draws = [sinusoid(seed=seed).draw(split, [0]) for seed in (0, 1) for split in ("train", "val", "test")]
    assert len({float(draw["amplitude"][0]) for draw in draws}) == 6


def test_training_sizes_apply_to_training_episodes_only():
    task = sinusoid(train_num_shots=7, train_num_queries=3)
    shapes = {
        split: [tuple(batch.x.shape) for batch in task.sample(split, range(2))[:2]]
        for split in ("train", "val", "test")
    }
    assert shapes == {"train": [(2, 7, 1), (2, 3, 1)], "val": [(2, 5, 1), (2, 10, 1)], "test": [(2, 5, 1), (2, 10, 1)]}


def test_the_query_grid_is_even_in_evaluation_and_absent_in_training():
    task = sinusoid(query_grid=True, num_queries=11)
    assert torch.equal(task.sample("test", [4]).query.x[0, :, 0], torch.linspace(-5, 5, 11, dtype=torch.float64))
    assert torch.equal(task.sample("train", [4]).query.x, sinusoid(num_queries=11).sample("train", [4]).query.x)


def test_episodes_have_the_asked_dtype():
    episode = sinusoid(dtype=torch.float32).sample("train", [0])
    assert {tensor.dtype for batch in episode[:2] for tensor in batch[:2]} == {torch.float32}


@pytest.mark.parametrize(("key", "value"), [("num_shots", 0), ("num_queries", -1), ("train_num_shots", -1)])
def test_sizes_below_one_are_an_error(key, value):
    with pytest.raises(ValueError, match=f"task.{key} is {value}, .* Set it to 1 or more"):
        sinusoid(**{key: value})
