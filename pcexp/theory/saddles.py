"""Critical points of rank zero and their negative curvature (theorem 3.3), saddle order by rays, minima of linear nets.

F* has a critical point with the zero map only where W_L = 0, if Sigma_yy has full rank: as W_L is rescaled to (1 + s) W_L, F*
changes at the rate -1/B sum_b q_b^T (S - I / p_L) q_b, q = S^-1 y, which is zero only if W_L^T q_b = 0; then q = p_L y. There
dF*/dW_L = -a p_L/B sum_b y_b zhat_{H,b}^T has to vanish too; all other derivatives do. Without biases.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcexp.energy import Targets, forward_pass, outputs
from pcexp.model.checks import check_shapes
from pcexp.model.network import Network
from pcexp.theory.equilibrated import Inputs, rescaling, sensitivities
from pcexp.theory.hessian import hidden_rescaling


class NegativeCurvature(NamedTuple):
    """A unit direction in weights and the quadratic form d^2 F* / dt^2 of F* along it."""

    direction: Network
    form: Float[Array, ""]


def zero_rank(network: Network, kept: Collection[int] = ()) -> Network:
    """The critical point of rank zero with the weights of the layers `kept` and zeros for all others; the origin for none.

    zhat_H = 0 there, and W_L = 0. Layers are numbered from 1; `kept=[L - 1]` is the saddle of B.3.
    """
    depth = network.depth
    if any(segment.bias is not None for segment in network.segments):
        raise ValueError("with biases a map of rank zero is no critical point: choose network.biases=false")
    if not set(kept) < set(range(1, depth)):
        raise ValueError(
            f"kept={sorted(kept)}: layers are 1 to {depth - 1} (the output has to be zero), and not all of them"
        )
    layer, segments, cut = 0, [], False
    for segment in network.segments:
        numbers = range(layer + 1, layer + segment.depth + 1)
        keep = jnp.array([number in kept for number in numbers])
        cut |= not segment.skip and any(number not in kept and number < depth for number in numbers)
        mask = keep.reshape(-1, *[1] * (segment.weight.ndim - 1))
        segments.append(dataclasses.replace(segment, weight=jnp.where(mask, segment.weight, 0)))
        layer += segment.depth
    if not cut:
        raise ValueError(
            f"kept={sorted(kept)}: a layer without a skip has to be zero below the output, layer 1 for one"
        )
    return Network(tuple(segments))


def negative_curvature(network: Network, x: Inputs, y: Targets) -> NegativeCurvature:
    """The proof's direction of negative curvature of F* at a critical point of rank zero: W_L along V = u n^T.

    F* along it is 1/2B sum_b y_b^T (I + t^2 A)^-1 y_b with A = a^2 V Q V^T as long as V zhat_H = 0, so the form is
    -1/B sum_b y_b^T A y_b < 0 (-2 sum_b y_b^T A y_b in the thesis' units). Here u is the leading eigenvector of Sigma_yy
    and n that of Q among the vectors orthogonal to all zhat_H: the most negative of these directions.

    Where zhat_H spans all hidden units no such n exists; F* then still has a negative direction in W_L and the
    other weights together if Sigma_xy is not zero, but none is promised if it is. Weights have to be concrete.
    """
    check_shapes(network, x, y)
    output = network.segments[-1]
    if bool(jnp.any(output.weight != 0)):
        raise ValueError("theorem 3.3: critical points of rank zero have W_L = 0, and here it is not zero")
    q, below = hidden_rescaling(network), Network(network.segments[:-1])
    zhat = forward_pass(below, x).activities
    _, values, rows = jnp.linalg.svd(jnp.linalg.qr(zhat[-1][-1].T, mode="r"), full_matrices=True)
    # What round-off makes of a product of weights that is zero: it can be no smaller than its factors let it.
    norms = functools.partial(jnp.linalg.norm, axis=(1, 2))
    sizes = [jnp.max(norms(p) * norms(z)) for p, z in zip(sensitivities(below), zhat, strict=True)]
    seen = int(jnp.sum(values > 10 * len(q) * jnp.finfo(q.dtype).eps * jnp.max(jnp.stack(sizes))))
    free = rows[seen:].T
    if free.shape[1] == 0:
        raise ValueError(
            "the hidden activities span all hidden units: no direction of W_L alone leaves the map at zero"
        )
    n = free @ jnp.linalg.eigh(free.T @ q @ free)[1][:, -1]
    u = jnp.linalg.eigh(y @ y.T)[1][:, -1]
    v = jnp.outer(u, n)
    nothing = jax.tree.map(jnp.zeros_like, network.segments)
    direction = Network((*nothing[:-1], dataclasses.replace(output, weight=v[None])))
    a = output.premultiplier**2 * v @ q @ v.T
    return NegativeCurvature(direction, -jnp.sum(y * (a @ y)) / y.shape[-1])


def along(network: Network, direction: Network, distance: Float[Array, ""] | float) -> Network:
    """The network at theta + t v."""
    return jax.tree.map(lambda w, v: w + distance * v, network, direction)


def loss_change(network: Network, moved: Network, x: Inputs, y: Targets) -> Float[Array, ""]:
    """Loss at `moved` less loss at `network`, 1/2B sum_b (||d||^2 - 2 r^T d) with d the change of the output.

    From a map of rank zero d has no round-off, and a change of d^(H+1) is known to all digits.
    """
    check_shapes(network, x, y)
    yhat = outputs(network, x)
    d = outputs(moved, x) - yhat
    return jnp.sum(d * (d - 2 * (y - yhat))) / (2 * y.shape[-1])


def equilibrated_change(network: Network, moved: Network, x: Inputs, y: Targets) -> Float[Array, ""]:
    """F* at `moved` less F* at `network`: -1/2B sum_b (q^T (S' - S) p + d^T p + d^T q'), q = S^-1 r, p = S'^-1 r, q' = S'^-1 r'."""
    check_shapes(network, x, y)
    yhat = outputs(network, x)
    r, d = y - yhat, outputs(moved, x) - yhat
    before, after = rescaling(network), rescaling(moved)
    q, p, q_after = jnp.linalg.solve(before, r), jnp.linalg.solve(after, r), jnp.linalg.solve(after, r - d)
    return -jnp.sum(q * ((after - before) @ p) + d * (p + q_after)) / (2 * y.shape[-1])


def saddle_order(distances: Float[Array, " n"], changes: Float[Array, " n"]) -> Float[Array, ""]:
    """Slope of log |change| against log distance along a ray, by least squares: the order of a saddle.

    From the origin the loss changes as t^(H+1) and F* as t^2.
    """
    t, c = jnp.log(distances), jnp.log(jnp.abs(changes))
    t = t - jnp.mean(t)
    return jnp.sum(t * c) / jnp.sum(t * t)


def fitted(network: Network, x: Inputs, y: Targets) -> Network:
    """The network with the output layer that fits best, W_L = y zhat_H^+ / a_L: a minimum of loss and F* where it fits exactly."""
    check_shapes(network, x, y)
    output = network.segments[-1]
    zhat = forward_pass(network, x).activities[-2][-1]
    if output.bias is not None:
        raise ValueError("fitted: choose network.biases=false")
    weight = jnp.linalg.lstsq(zhat.T, y.T)[0].T / output.premultiplier
    return Network((*network.segments[:-1], dataclasses.replace(output, weight=weight[None])))
