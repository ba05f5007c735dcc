import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.train.compression import selection
from medimg.train.compression.selection import dropped, folded, importance, interpolation, rank, shrunk

Array = NDArray[np.float64]


def made(channels: int, rows: int, rank_: int, seed: int = 0) -> Array:
    """Rows of activations, not negative, of which only so many channels are independent."""
    random = np.random.default_rng(seed)
    return np.asarray(random.random((rows, rank_)) @ random.random((rank_, channels)))


def lost(values: Array, weights: Array, chosen: list[int]) -> float:
    """The error of the next layer's output after least squares on the chosen channels, worked out afresh."""
    found, *_ = np.linalg.lstsq(values[:, chosen], values, rcond=None)
    left = values - values[:, chosen] @ found
    return float(np.trace(weights @ left.T @ left))


def test_the_order_is_that_of_trying_every_channel_at_every_step() -> None:
    values = np.random.default_rng(1).random((200, 10)) - 0.3
    kernel = np.random.default_rng(2).normal(size=(3, 3, 10, 7)).astype(np.float32)
    weights, gram = importance(kernel, 10), values.T @ values
    found = rank(gram, weights)
    chosen: list[int] = []
    total = float(np.trace(weights @ gram))
    for place in found.order:
        errors = {
            other: lost(values, weights, [*chosen, other]) for other in range(10) if other not in chosen
        }
        assert errors[place] == pytest.approx(min(errors.values()), rel=1e-6, abs=1e-9 * total)
        chosen.append(int(place))
        assert found.errors[len(chosen)] == pytest.approx(errors[place] / total, abs=1e-9)


def test_channels_that_others_make_up_are_left_out_without_error() -> None:
    values = made(channels=12, rows=300, rank_=5)
    kernel = np.random.default_rng(3).normal(size=(3, 3, 12, 4)).astype(np.float32)
    gram = values.T @ values
    found = rank(gram, importance(kernel, 12))
    assert sorted(found.order) == list(range(12))
    assert found.errors[0] == 1
    assert found.errors[4] > 1e-7 > found.errors[5]
    kept = np.sort(found.order[:5])
    mixing = interpolation(gram, kept)
    assert np.allclose(values[:, kept] @ mixing, values, atol=1e-5)
    whole = np.einsum("nc,xyco->nxyo", values, kernel)
    assert np.allclose(np.einsum("nc,xyco->nxyo", values[:, kept], folded(kernel, mixing)), whole, atol=1e-3)
    plain = np.einsum("nc,xyco->nxyo", values[:, kept], folded(kernel, dropped(12, kept)))
    assert not np.allclose(plain, whole, atol=0.1)


def test_a_dense_layer_after_flattening_is_folded_pixel_by_pixel() -> None:
    kernel = np.random.default_rng(4).normal(size=(6 * 5, 3)).astype(np.float32)
    mixing = np.random.default_rng(5).normal(size=(2, 5))
    image = np.random.default_rng(6).normal(size=(6, 2))
    found = image.reshape(-1) @ folded(kernel, mixing)
    assert np.allclose(found, (image @ mixing).reshape(-1) @ kernel, atol=1e-4)


def test_few_rows_do_not_promise_what_many_would() -> None:
    values = np.random.default_rng(7).random((8, 32))
    gram = values.T @ values
    weights = np.eye(32)
    assert rank(gram, weights).errors[8] < 1e-6
    assert rank(shrunk(gram, 8), weights).errors[8] > 0.1
    many = np.random.default_rng(7).random((100_000, 32))
    assert np.allclose(shrunk(many.T @ many, len(many)), many.T @ many, rtol=1e-3)


def test_a_wide_layer_is_ordered_whole_though_only_some_channels_are_chosen_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(8).random((500, 20))
    exact = rank(values.T @ values, np.eye(20))
    monkeypatch.setattr(selection, "GREEDY_STEPS", 6)
    found = rank(values.T @ values, np.eye(20))
    assert found.order[:6].tolist() == exact.order[:6].tolist()
    assert sorted(found.order) == list(range(20))
    assert (np.diff(found.errors) <= 0).all()
    assert found.errors[-1] == pytest.approx(0, abs=1e-12)


def test_channels_that_are_always_zero_come_last() -> None:
    values = np.random.default_rng(9).random((50, 6))
    values[:, [1, 4]] = 0
    found = rank(values.T @ values, np.eye(6))
    assert set(found.order[-2:]) == {1, 4}
    assert np.isfinite(interpolation(values.T @ values, np.arange(6))).all()
