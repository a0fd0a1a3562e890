"""Hessians with respect to the weights: products at any point, dense ones of small nets, and closed forms where W_L = 0.

An objective is a function of the network: the loss, the equilibrated energy, or the energy after some steps of inference. Weights
are one vector, segment by segment from the input: the matrices W_l of a segment row by row, then its biases where it has any.

Where W_L = 0 a linear network has yhat = 0, q = y and S = I / p_L. Let a be the premultiplier of the output, zhat_H the last
hidden activities, P_l = d zhat_H / d z_l and Q = sum_{l=1}^{H} P_l P_l^T / p_l. To second order, with V a change of W_L
and dzhat_H one of zhat_H by a change of the other weights,

    loss = 1/2B sum_b (||y_b||^2 + a^2 ||V zhat_H||^2 - 2 a y_b^T V (zhat_H + dzhat_H)),
    F*   = p_L loss - p_L^2 a^2 / 2B sum_b y_b^T V Q V^T y_b,

so the block of W_L is a^2 I (x) Sigma_zz, less a^2 Sigma_yy (x) Q for F*; W_L and W_l couple by -a a_l P_l^T V^T y zhat_{l-1}^T, and
all else is zero. At the origin of a net with H > 1 nothing is left but -Sigma_yy (x) I (Eqs 4.6, 4.8).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from pcexp.energy import Targets, forward_pass
from pcexp.model.checks import check_shapes
from pcexp.model.network import Network
from pcexp.model.segments import Dense
from pcexp.theory.equilibrated import Inputs, precisions_of, sensitivities

Objective = Callable[[Network], Float[Array, ""]]
Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]

LARGEST_DENSE = 8192


def vectorised(network: Network) -> tuple[Vector, Callable[[Vector], Network]]:
    """All weights as one vector, and the way back."""
    vector, unravel = ravel_pytree(network)
    return vector, unravel


def hessian_product(objective: Objective, network: Network) -> Callable[[Vector], Vector]:
    """Products v -> H v with the Hessian of an objective, for the price of a few gradients: the derivative of the gradient."""
    at, unravel = vectorised(network)
    return jax.linearize(lambda vector: vectorised(jax.grad(objective)(unravel(vector)))[0], at)[1]


def hessian(objective: Objective, network: Network) -> Matrix:
    """The dense Hessian of an objective, some columns at a time."""
    at, _ = vectorised(network)
    _refuse_large(at.size)
    columns = 32
    units = jnp.eye(-(-at.size // columns) * columns, at.size, dtype=at.dtype)  # no remainder: it would be compiled too
    return jax.lax.map(hessian_product(objective, network), units, batch_size=columns)[: at.size]


def zero_output_loss_hessian(network: Network, x: Inputs, y: Targets) -> Matrix:
    """Hessian of the loss of a linear network where W_L = 0, without biases. W_L of `network` is not read."""
    check_shapes(network, x, y)
    a, hidden, below = _hidden(network)
    zhat = forward_pass(below, x).activities
    last, batch = zhat[-1][-1], y.shape[-1]
    d_out, width = network.segments[-1].weight.shape[1:]
    blocks = []
    for segment, inputs, maps in zip(hidden, below.inputs(x, zhat), sensitivities(below), strict=True):
        yz = jnp.einsum("kb,ljb->lkj", y, inputs) / batch
        coupling = -a * segment.premultiplier * jnp.einsum("lni,lkj->knlij", maps, yz)
        blocks.append(coupling.reshape(d_out * width, -1))
    rows = jnp.concatenate(blocks, axis=1)
    block = a**2 * jnp.kron(jnp.eye(d_out, dtype=y.dtype), last @ last.T / batch)
    _refuse_large(rows.shape[1] + len(rows))
    nothing = jnp.zeros((rows.shape[1], rows.shape[1]), rows.dtype)
    return jnp.block([[nothing, rows.T], [rows, block]])


def zero_output_equilibrated_hessian(network: Network, x: Inputs, y: Targets) -> Matrix:
    """Hessian of F* of a linear network where W_L = 0, without biases. W_L of `network` is not read."""
    a, *_ = _hidden(network)
    p = precisions_of(network, network.segments[-1].weight)[-1][-1]
    h = p * zero_output_loss_hessian(network, x, y)
    q = hidden_rescaling(network)
    block = p**2 * a**2 * jnp.kron(y @ y.T / y.shape[-1], q)
    return h.at[-len(block) :, -len(block) :].add(-block)


def hidden_rescaling(network: Network) -> Float[Array, "width width"]:
    """Q = sum_{l=1}^{H} P_l P_l^T / p_l with P_l = d zhat_H / d z_l: S = I / p_L + a^2 W_L Q W_L^T."""
    _, _, below = _hidden(network)
    maps = sensitivities(below)
    pairs = zip(precisions_of(network, maps[0])[:-1], maps, strict=True)
    products = [jnp.einsum("l,lni,lmi->nm", 1 / p, m, m) for p, m in pairs]
    return jnp.sum(jnp.stack(products), axis=0)


def zero_rank_spectrum(network: Network, y: Targets) -> Vector:
    """Spectrum of F*'s Hessian where W_L = 0, zhat_H = 0 and no change of one lower layer alone alters that, ascending.

    Minus a^2 eig(Sigma_yy) times eig(Q), all products, and zeros: theorem 3.2 where Q = I (the origin, H > 1), and
    1 + sigma_j(W_{L-1})^2 for Q's where W_{L-1} alone is not zero (B.3).
    """
    check_shapes(network, y=y)
    a, *_ = _hidden(network)
    yy, q = jnp.linalg.eigvalsh(y @ y.T / y.shape[-1]), jnp.linalg.eigvalsh(hidden_rescaling(network))
    negative = -(a**2) * jnp.outer(yy, q).ravel()
    n = vectorised(network)[0].size
    return jnp.sort(jnp.concatenate([negative, jnp.zeros(n - len(negative), negative.dtype)]))


def origin_spectra(network: Network, x: Inputs, y: Targets) -> tuple[Vector, Vector]:
    """Spectra at the origin of the Hessians of the loss and of F*, ascending, in any size; weights of `network` are not read.

    Hidden units do not meet there: N times the eigenvalues of [[0, -c Sigma_xy], [-c Sigma_yx, -m a_L^2 Sigma_yy]], and
    zeros. c = a_1 a_L where H = 1 or every layer between the ends has a skip, else 0; m counts the hidden layers that
    the output hears from (H with skips, else 1). The loss has 0 for m.
    """
    check_shapes(network, x, y)
    a, hidden, _ = _hidden(network)
    skips = [segment.skip for segment in hidden[1:] for _ in range(segment.depth)]
    heard = 1 + next((n for n, skip in enumerate(reversed(skips)) if not skip), len(skips))
    c = a * hidden[0].premultiplier if all(skips) else 0.0
    width, batch = hidden[0].weight.shape[1], y.shape[-1]
    xy, yy = -c * x @ y.T / batch, -heard * a**2 * y @ y.T / batch
    n, nothing = vectorised(network)[0].size, jnp.zeros((len(x), len(x)), y.dtype)
    spectra = []
    for block in (jnp.zeros_like(yy), yy):
        values = jnp.repeat(jnp.linalg.eigvalsh(jnp.block([[nothing, xy], [xy.T, block]])), width)
        spectra.append(jnp.sort(jnp.concatenate([values, jnp.zeros(n - len(values), y.dtype)])))
    return spectra[0], spectra[1]


def _hidden(network: Network) -> tuple[float, tuple[Dense, ...], Network]:
    """Premultiplier of the output, the segments below it, and the network that they are."""
    if not network.is_linear or any(segment.bias is not None for segment in network.segments):
        raise ValueError("closed forms of Hessians: choose network.activation=linear and network.biases=false")
    below = tuple(segment for segment in network.segments[:-1] if isinstance(segment, Dense))
    return network.segments[-1].premultiplier, below, Network(below)


def _refuse_large(n: int) -> None:
    if n > LARGEST_DENSE:
        raise ValueError(
            f"a dense Hessian of {n} weights: at most {LARGEST_DENSE}; choose a smaller network.width, or take "
            "hessian_product with extreme_eigenpairs, or a spectrum in closed form"
        )
