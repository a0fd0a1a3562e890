"""Critical points of F*: damped Newton steps that shrink its gradient, what holds at a point, and descent around it.

A step for g = grad F* with the eigenpairs (w_i, v_i) of the Hessian is -sum_i v_i w_i / (w_i^2 + m ||g||) v_i^T g: that
of Levenberg and Marquardt for ||g||^2 / 2, and the Newton step of the pseudo-inverse as g goes to zero. F* is flat
along rotations of hidden units and often further: singular Hessians are the rule here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from pcexp.energy import forward_pass, loss
from pcexp.model.network import Network
from pcexp.theory.equilibrated import equilibrated_energy, equilibrated_gradient, equilibrium
from pcexp.theory.hessian import hessian, vectorised

Function = Callable[[Array], Array]

DONE = 1e-14
"""Gradient norm at which the polish stops; it goes on below what counts as found."""
REACH = 100.0
"""No step takes a weight beyond this size: F* is flat towards infinity, and nothing there is a critical point."""
PROBES = 6
PROBE_RADIUS = 1e-3
PROBE_STEPS = 60


class Measured(NamedTuple):
    """What holds at a point. `zero_mode` is the largest ||H t|| over unit tangents t of rotations of hidden units."""

    gradient: Float[Array, ""]
    size: Float[Array, ""]
    energy: Float[Array, ""]
    loss: Float[Array, ""]
    hidden_error: Float[Array, ""]
    lambda_min: Float[Array, ""]
    lambda_max: Float[Array, ""]
    zero_mode: Float[Array, ""]
    map: Float[Array, " _"]
    output: Float[Array, ""]
    norms: Float[Array, " depth"]


def matrices(network: Network) -> list[Float[Array, "_ _"]]:
    """Weights W_1..W_L, from the input."""
    return [segment.weight[i] for segment in network.segments for i in range(segment.depth)]


def with_matrices(network: Network, weights: Sequence[Any]) -> Network:
    """The network with the weights W_1..W_L."""
    left = iter(weights)
    stacks = [
        jnp.stack([jnp.asarray(next(left), segment.weight.dtype) for _ in range(segment.depth)])
        for segment in network.segments
    ]
    return eqx.tree_at(lambda n: [segment.weight for segment in n.segments], network, stacks)


def with_maps(network: Network, wanted: Sequence[Any]) -> Network:
    """The network whose layers have the maps J_l = a_l W_l + tau_l I."""
    layers = [segment for segment in network.segments for _ in range(segment.depth)]
    pairs = zip(map(jnp.asarray, wanted), layers, strict=True)
    return with_matrices(network, [(j - jnp.eye(len(j)) if s.skip else j) / s.premultiplier for j, s in pairs])


def maps(network: Network) -> list[Float[Array, "_ _"]]:
    """Maps of the layers, J_l = a_l W_l + tau_l I."""
    scaled = [(segment.skip, segment.premultiplier * w) for segment in network.segments for w in segment.weight]
    return [j + jnp.eye(len(j), dtype=j.dtype) if skip else j for skip, j in scaled]


@eqx.filter_jit
@eqx.filter_vmap
def rescaled(network: Network, factor: Float[Array, ""]) -> Network:
    """Each of these (stacked) networks with W_L multiplied by a factor and W_1 divided by it: the same function."""
    first, *middle, last = matrices(network)
    return with_matrices(network, [first / factor, *middle, factor * last])


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), None, None, None))
def polished(network: Network, x: Array, y: Array, max_steps: int) -> tuple[Network, Float[Array, ""]]:
    """Each of these (stacked) networks after the damped Newton steps that made its gradient smaller, and how many."""
    first, unravel = vectorised(network)
    _, gradient, curvature = _derivatives(unravel, x, y)

    def unfinished(state: tuple[Array, ...]) -> Array:
        _, g, _, damping, step, _ = state
        return (step < max_steps) & (jnp.linalg.norm(g) > DONE) & (damping < 1e12)

    def advanced(state: tuple[Array, ...]) -> tuple[Array, ...]:
        v, g, h, damping, step, taken = state
        w, q = jnp.linalg.eigh(h)
        new = v - q @ (w / (w * w + damping * jnp.linalg.norm(g)) * (q.T @ g))
        g_new = gradient(new)
        better = (jnp.linalg.norm(g_new) < jnp.linalg.norm(g)) & (jnp.max(jnp.abs(new)) < REACH)
        v, g = jnp.where(better, new, v), jnp.where(better, g_new, g)
        return v, g, curvature(v), damping * jnp.where(better, 0.3, 4.0), step + 1, taken + better

    none = jnp.asarray(0)
    state: tuple[Array, ...] = first, gradient(first), curvature(first), jnp.asarray(1.0, first.dtype), none, none
    v, *_, taken = jax.lax.while_loop(unfinished, advanced, state)
    return unravel(v), taken.astype(first.dtype)


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), None, None))
def points(network: Network, x: Array, y: Array) -> Measured:
    """What holds at each of these (stacked) networks."""
    weights = matrices(network)
    at = forward_pass(network, x)
    found = equilibrium(network, at, y)
    h = hessian(lambda n: equilibrated_energy(n, x, y), network)
    values = jnp.linalg.eigvalsh(h)
    tangents = rotations(network)
    lengths = jnp.linalg.norm(tangents, axis=1)
    moved = jnp.where(lengths > 1e-6, jnp.linalg.norm(tangents @ h, axis=1) / jnp.maximum(lengths, 1e-6), 0.0)
    errors = jnp.concatenate([e.reshape(-1, e.shape[-1]) for e in found.errors[:-1]])
    return Measured(
        # The closed form of the gradient: the polish differentiated F*.
        gradient=jnp.linalg.norm(vectorised(equilibrated_gradient(network, x, y))[0]),
        size=jnp.max(jnp.abs(vectorised(network)[0])),
        energy=found.energy,
        loss=loss(network, x, y),
        hidden_error=jnp.sqrt(jnp.sum(errors**2) / x.shape[-1]),
        lambda_min=values[0],
        lambda_max=jnp.max(jnp.abs(values)),
        zero_mode=jnp.max(moved),
        map=jnp.linalg.svd(functools.reduce(lambda below, j: j @ below, maps(network)), compute_uv=False),
        output=jnp.linalg.norm(weights[-1], 2),
        norms=jnp.stack([jnp.linalg.norm(w) for w in weights]),
    )


def rotations(network: Network) -> Float[Array, "n_tangents n"]:
    """Tangents of rotations of hidden units, which F* does not see: layer by layer, or of all at once where layers skip."""
    weights = matrices(network)
    n_hidden, width = len(weights) - 1, len(weights[0])
    skips = any(segment.skip for segment in network.segments)
    turned = [list(range(n_hidden))] if skips else [[layer] for layer in range(n_hidden)]
    found = [jnp.zeros_like(vectorised(network)[0])]  # a chain has none
    for layers in turned:
        for i in range(width):
            for j in range(i):
                a = jnp.zeros((width, width), weights[0].dtype).at[i, j].set(1).at[j, i].set(-1)
                moved = [jnp.zeros_like(w) for w in weights]
                for layer in layers:
                    moved[layer] = moved[layer] + a @ weights[layer]
                    moved[layer + 1] = moved[layer + 1] - weights[layer + 1] @ a
                found.append(vectorised(with_matrices(network, moved))[0])
    return jnp.stack(found)


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), None, None, 0))
def descents(network: Network, x: Array, y: Array, key: PRNGKeyArray) -> Float[Array, ""]:
    """How far descent comes below each of these (stacked) networks from random points close to it, with a key each.

    F* there less the lowest F* that steps -|H|^-1 g, at most 0.3 long, reach from six points at a distance of 0.001.
    """
    first, unravel = vectorised(network)
    energy, gradient, curvature = _derivatives(unravel, x, y)

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        v, radius = state
        w, q = jnp.linalg.eigh(curvature(v))
        d = -q @ ((q.T @ gradient(v)) / jnp.maximum(jnp.abs(w), 1e-6))
        d = d * jnp.minimum(1.0, radius / jnp.maximum(jnp.linalg.norm(d), 1e-300))
        lower = energy(v + d) < energy(v)
        return jnp.where(lower, v + d, v), jnp.where(lower, jnp.minimum(2 * radius, 0.3), radius / 4)

    def probe(key: PRNGKeyArray) -> Array:
        direction = jr.normal(key, first.shape, first.dtype)
        v = first + PROBE_RADIUS * direction / jnp.linalg.norm(direction)
        v, _ = jax.lax.fori_loop(0, PROBE_STEPS, step, (v, jnp.asarray(0.3, first.dtype)))
        return energy(v)

    return energy(first) - jnp.min(jax.lax.map(probe, jr.split(key, PROBES)))


def _derivatives(unravel: Callable[[Array], Network], x: Array, y: Array) -> tuple[Function, Function, Function]:
    """F*, its gradient and its Hessian by automatic differentiation, of the weights as one vector."""

    def energy(v: Array) -> Array:
        return equilibrated_energy(unravel(v), x, y)

    return energy, jax.grad(energy), lambda v: hessian(lambda n: equilibrated_energy(n, x, y), unravel(v))
