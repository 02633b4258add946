"""Second smallest eigenvector of a graph's normalised Laplacian, by Lanczos iteration on a batch of graphs.

(D - A) v = lambda D v has the same vectors as the symmetric M = D^-1/2 A D^-1/2, with v = D^-1/2 y and mu = 1 -
lambda. The largest mu is 1 with y = D^1/2 1, which is known; deflating it leaves the wanted vector as the leading one
(Shi and Malik 2000, "Normalized Cuts and Image Segmentation"). A dozen products with A then replace a full
decomposition.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from evaluate.metrics.bit_graph import BREAKDOWN

TOLERANCE = 1e-6  # angle between the found and the true vector
MOST_STEPS = 128


def second_smallest_eigenvectors(
    product: Callable[[Tensor], Tensor], degrees: Tensor, *, tolerance: float = TOLERANCE, max_steps: int = MOST_STEPS
) -> tuple[Tensor, Tensor]:
    """Generalised eigenvectors of (D - A) v = lambda D v that belong to the second smallest eigenvalue.

    product: (B, n, m) -> (B, n, m), multiplies with the symmetric adjacency A of each graph, which must be connected;
    degrees (B, n) float64, its positive row sums; n >= 2. `tolerance` bounds the angle between the found and the true
    vector (residual over spectral gap). Returns vectors (B, n), of unit D-norm and arbitrary sign, and eigenvalues
    (B,), float64. Graphs that have not converged after `max_steps` products are decomposed densely. Rows of A that
    are equal get entries that are equal to rounding.
    """
    scale = degrees.rsqrt()[..., None]  # (B, n, 1)
    trivial = _unit(degrees.sqrt()[..., None])

    def normalised(x: Tensor) -> Tensor:  # M x
        return scale * product(scale * x)

    leading, values, converged = _leading_vectors(normalised, trivial, tolerance, max_steps)
    if not converged.all():
        leading, values = _dense(normalised, trivial, leading, values, ~converged)
    return scale[..., 0] * leading, 1 - values


def _leading_vectors(
    apply: Callable[[Tensor], Tensor], trivial: Tensor, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos with full re-orthogonalisation; returns vectors (B, n), values (B,) and which graphs converged (B,)."""
    graphs, n, _ = trivial.shape
    steps = min(max_steps, n - 1)
    basis = trivial.new_empty(graphs, steps + 1, n)  # rows: the known vector, then the Lanczos vectors
    basis[:, 0] = trivial[..., 0]
    diagonal, off_diagonal = trivial.new_zeros(2, graphs, steps)
    vectors, values = torch.zeros_like(trivial[..., 0]), trivial.new_zeros(graphs)
    converged = torch.zeros(graphs, dtype=torch.bool, device=trivial.device)
    # Starting inside the range of A makes equal rows start, and so stay, equal.
    q = _unit(_without(apply(_scattered(trivial)), basis[:, :1]))
    for k in range(steps):
        basis[:, k + 1] = q[..., 0]
        w = apply(q)
        diagonal[:, k] = (q.mT @ w)[:, 0, 0]
        w = _without(w, basis[:, : k + 2])
        length = _length(w)
        off_diagonal[:, k] = length[:, 0, 0]
        if k % 2 == 0 or k == steps - 1:
            coefficients, theta, done = _ritz(diagonal[:, : k + 1], off_diagonal[:, : k + 1], tolerance)
            new = done & ~converged
            vectors[new] = (coefficients[new, None] @ basis[new, 1 : k + 2])[:, 0]
            values[new] = theta[new]
            converged |= new
            if converged.all():
                break
        q = w / length.clamp(min=BREAKDOWN)
    return vectors, values, converged


def _without(w: Tensor, basis: Tensor) -> Tensor:
    """w (B, n, 1) minus its part in the span of the basis rows (B, k, n); done twice, which reaches rounding."""
    for _ in range(2):
        w = w - basis.mT @ (basis @ w)
    return w


def _ritz(diagonal: Tensor, off_diagonal: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Leading pair of the small tridiagonal matrices (B, k, k) and whether its error bound is met."""
    inner = off_diagonal[:, :-1]
    small = torch.diag_embed(diagonal) + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
    theta, coefficients = (part.to(diagonal.device) for part in torch.linalg.eigh(small.cpu()))
    residual = off_diagonal[:, -1] * coefficients[:, -1, -1].abs()
    gap = theta[:, -1] - theta[:, -2] if theta.shape[1] > 1 else torch.zeros_like(residual)
    done = (residual <= tolerance * gap) | (off_diagonal[:, -1] <= BREAKDOWN)
    # The basis spans the range of A alone, so a leading value of 0 or less may hide a vector outside of it.
    return coefficients[..., -1], theta[:, -1], done & (theta[:, -1] > BREAKDOWN)


def _dense(
    apply: Callable[[Tensor], Tensor], trivial: Tensor, vectors: Tensor, values: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    n = vectors.shape[1]
    identity = torch.eye(n, dtype=vectors.dtype, device=vectors.device).expand(len(vectors), n, n)
    # The known vector has eigenvalue 1; -3 moves it to -2, below everything that M, of norm 1, can have.
    matrix = apply(identity) - 3 * trivial @ trivial.mT
    theta, full = torch.linalg.eigh((matrix + matrix.mT)[which] / 2)
    vectors, values = vectors.clone(), values.clone()
    vectors[which], values[which] = full[..., -1], theta[:, -1]
    return vectors, values


def _scattered(like: Tensor) -> Tensor:
    """A fixed start vector without symmetry, the same on every device: multiples of the golden ratio mod 1."""
    index = torch.arange(1, like.shape[1] + 1, dtype=like.dtype, device=like.device)
    return (torch.frac(index * 0.6180339887498949) - 0.5)[:, None].expand_as(like)


def _unit(x: Tensor) -> Tensor:
    return x / _length(x).clamp(min=BREAKDOWN)


def _length(x: Tensor) -> Tensor:
    return (x.mT @ x).sqrt()  # (B, 1, 1); for vectors this short cheaper than a norm, which starts the thread pool
