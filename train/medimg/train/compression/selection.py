"""Which channels to keep, and how the next layer makes up for the others; NumPy alone.

The input of a layer, one row a pixel and one column a channel, is written as an interpolation of a few of
its own columns. The matrix of that interpolation goes into the layer's kernel, so no layer is added.

Source:
    Y. He, X. Zhang, J. Sun, Channel pruning for accelerating very deep neural networks, arXiv:1707.06168
    (least squares into the next layer).
    J.-H. Luo, J. Wu, W. Lin, ThiNet, arXiv:1707.06342 (channels chosen by the next layer's output).
    J. Chee, M. Flynn, A. Damle, C. De Sa, Model preserving compression for neural networks, arXiv:2108.00065
    (interpolative decomposition).
    A. Farahat, A. Ghodsi, M. Kamel, Efficient greedy feature selection for unsupervised learning, Knowledge
    and Information Systems 35 (2013), 285-310 (rank-1 updates).
    O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal of
    Multivariate Analysis 88 (2004), 365-411 (shrinkage).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
EXHAUSTED = 1e-9
"""Below this share of the energy nothing is left to choose by."""
GREEDY_STEPS = 512
"""Channels chosen one by one; the others of a wider layer are ordered by what each would add then."""


@dataclass(frozen=True)
class Ranking:
    """The channels of one boundary between two layers, the most useful first."""

    order: NDArray[np.int64]
    """`(channels,)`; the first k are the channels to keep at width k."""
    errors: Matrix
    """`(channels + 1,)`: share of the next layer's output energy that is lost at each width."""


def shrunk(gram: Matrix, rows: int) -> Matrix:
    """Shrink a Gram matrix towards its diagonal, the more the fewer rows it was made from.

    Without it, few rows seem to be interpolated without error by as many channels.

    Args:
        gram: `(channels, channels)`, the sum of the outer products of the rows.
        rows: how many there were.
    """
    weight = len(gram) / (len(gram) + rows)
    return np.asarray((1 - weight) * gram + weight * np.diag(np.diag(gram)))


def importance(kernel: NDArray[np.float32], channels: int) -> Matrix:
    """Weigh errors of a layer's input by what they do to its output, `(channels, channels)`.

    Args:
        kernel: of a convolution or a dense layer, the output channels last.
        channels: input channels; a dense layer after flattening has several columns of each.
    """
    taps = kernel.reshape(-1, channels, kernel.shape[-1]).astype(np.float64)
    return np.asarray(np.tensordot(taps, taps, axes=((0, 2), (0, 2))))


def rank(gram: Matrix, weights: Matrix) -> Ranking:
    """Order channels greedily: each is the one whose addition lowers the error of the next layer most.

    The residual of the Gram matrix is its Schur complement with respect to the channels chosen so far; it and
    its product with the weights change by rank 1 a step, so that the order costs O(channels³) at most.

    Args:
        gram: `(channels, channels)`, positive semidefinite.
        weights: `importance` of the next layer.
    """
    residual, weighted = gram.copy(), weights @ gram
    total = float(np.trace(weighted)) or 1.0
    floor = EXHAUSTED * float(np.diag(gram).max())
    order: list[int] = []
    errors = [1.0]
    gains = _gains(residual, weighted, order, floor)
    while len(order) < min(len(gram), GREEDY_STEPS) and errors[-1] > EXHAUSTED and gains.max() > 0:
        best = int(gains.argmax())
        order.append(best)
        errors.append(max(0.0, errors[-1] - float(gains[best]) / total))
        column, of_weighted = residual[:, best].copy(), weighted[:, best].copy()
        residual -= np.outer(column, column / column[best])
        weighted -= np.outer(of_weighted, column / column[best])
        gains = _gains(residual, weighted, order, floor)
    rest = np.setdiff1d(np.arange(len(gram)), order)
    rest = rest[np.argsort(-gains[rest], kind="stable")]
    # Together they add what is left of the error.
    shares = gains[rest].cumsum() / (gains[rest].sum() or 1.0)
    errors += (errors[-1] * (1 - shares)).tolist()
    return Ranking(np.array([*order, *rest], np.int64), np.array(errors))


def _gains(residual: Matrix, weighted: Matrix, chosen: list[int], floor: float) -> Matrix:
    """Tell by how much each channel would lower the error, `(channels,)`; 0 for those chosen or exhausted."""
    pivots = np.diag(residual)
    usable = pivots > floor
    usable[chosen] = False
    gains = np.einsum("ij,ij->j", residual, weighted)
    return np.where(usable, np.maximum(gains, 0) / np.where(usable, pivots, 1), 0.0)


def interpolation(gram: Matrix, kept: NDArray[np.int64]) -> Matrix:
    """Write every channel as a sum of the kept ones, `(kept, channels)`, by least squares.

    Args:
        gram: `(channels, channels)`.
        kept: the channels that stay.
    """
    inner = gram[np.ix_(kept, kept)]
    jitter = EXHAUSTED * float(np.trace(inner)) / len(kept) or 1.0
    found = np.linalg.solve(inner + jitter * np.eye(len(kept)), gram[kept])
    found[:, kept] = np.eye(len(kept))
    return np.asarray(found)


def dropped(channels: int, kept: NDArray[np.int64]) -> Matrix:
    """Give the matrix of plain pruning, `(kept, channels)`: the other channels count for nothing."""
    return np.asarray(np.eye(channels)[kept])


def folded(kernel: NDArray[np.float32], mixing: Matrix) -> NDArray[np.float32]:
    """Let a layer take the kept channels of its input instead of all.

    Args:
        kernel: of a convolution, `(rows, columns, channels, outputs)`, or of a dense layer,
            `(columns, outputs)`.
        mixing: `(kept, channels)`.
    """
    kept, channels = mixing.shape
    taps = kernel.reshape(-1, channels, kernel.shape[-1])
    found = (mixing @ taps).astype(np.float32)
    shape = (*kernel.shape[:2], kept) if kernel.ndim == 4 else (-1,)
    return np.asarray(found.reshape(*shape, kernel.shape[-1]))
