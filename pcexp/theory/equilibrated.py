"""Equilibrium of a linear network in closed form: rescaling S, equilibrated energy F*, activities, gradient (theorem 3.1).

In error variables the activities are a perturbed forward pass, z_l = mu_l(z_{l-1}) + e_l, and the output constraint reads
r = y - yhat = sum_l G_l e_l with G_L = I and G_{l-1} = G_l J_l, J_l = a_l W_l + tau_l I. With precisions p_l, minimising
F_b = 1/2 sum_l p_l ||e_l||^2 under it gives

    e_l = G_l^T q / p_l,   q = S^-1 r,   S = sum_l G_l G_l^T / p_l,   F* = 1/(2B) sum_b r_b^T S^-1 r_b.

Where a `mask` leaves entries of y free, r and S are those of the entries that count, each example's own, and q is zero
elsewhere. Biases move r and nothing else. As q is the multiplier of the constraint, F* changes with the weights as F does at fixed
activities: dF*/dW_l = -a_l/B sum_b (G_l^T q_b) z*_{l-1,b}^T, the backpropagation of q at the activities of the equilibrium.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcexp.energy import ForwardPass, Mask, energy_gradient, forward_pass, masked, outputs
from pcexp.model.network import Activities, Network
from pcexp.model.segments import Dense

Precisions = Float[Array, " depth"] | None
"""Precisions p_1..p_L of the layers' errors, traced; None means those of the network."""


class LinearEquilibrium(NamedTuple):
    """Equilibrium of a batch: deviations z* - zhat of the hidden layers, errors e* of all, q = S^-1 r, and F*."""

    deviations: Activities
    errors: Activities
    pulled: Float[Array, "d_out batch"]
    energy: Float[Array, ""]


def sensitivities(network: Network) -> tuple[Float[Array, "_ d_out _"], ...]:
    """Derivatives G_l = d yhat / d z_l of every layer, segment by segment (G_L = I). Linear networks only."""
    if not network.is_linear:
        raise ValueError("the closed form holds for linear networks only: choose network.activation=linear")
    stacks = []
    weight = network.segments[-1].weight
    # Of weights in bfloat16 too: S is solved with.
    last = jnp.eye(weight.shape[1], dtype=jnp.promote_types(weight.dtype, jnp.float32))
    for segment in reversed(network.segments):
        assert isinstance(segment, Dense)

        def down(g: Array, weight: Array, segment: Dense = segment) -> tuple[Array, Array]:
            product = segment.premultiplier * (g @ weight)
            return (product + g if segment.skip else product), g

        if segment.depth == 1:  # the ends of a network are not square: no scan
            last, g = down(last, segment.weight[0])
            stacks.append(g[None])
        else:
            last, stack = jax.lax.scan(down, last, segment.weight, reverse=True)
            stacks.append(stack)
    return tuple(reversed(stacks))


def outer_products(
    gs: tuple[Float[Array, "_ d_out _"], ...], weights: Sequence[Float[Array, " _"]]
) -> Float[Array, "d_out d_out"]:
    """Sum of G_l G_l^T / p_l over all layers: S."""
    return jnp.sum(jnp.stack([jnp.einsum("l,lki,lmi->km", 1 / p, g, g) for p, g in zip(weights, gs, strict=True)]), 0)


def input_sensitivity(network: Network, gs: tuple[Float[Array, "_ d_out _"], ...]) -> Float[Array, "d_out d_in"]:
    """Derivative G_0 = d yhat / dx, from those of the layers."""
    first = network.segments[0]
    return first.premultiplier * (gs[0][0] @ first.weight[0])


def free_input(
    network: Network,
    r: Float[Array, "d_out batch"],
    free: Float[Array, "d_in batch"],
    prior_precision: float,
    mask: Mask = None,
) -> Float[Array, "d_in batch"]:
    """Move of the free entries of the input to the equilibrium, (p_0 + A^T S^-1 A)^+ A^T S^-1 r with A the free columns of G_0.

    With p_0 = 0 and more free entries than outputs equilibria are many: this is the one nearest the mean of the prior.
    """
    gs = sensitivities(network)
    g0, s = input_sensitivity(network, gs), outer_products(gs, by_segment(network, gs, None))
    seen = jnp.ones_like(r) if mask is None else mask

    def one(
        r: Float[Array, " d_out"], free: Float[Array, " d_in"], seen: Float[Array, " d_out"]
    ) -> Float[Array, " d_in"]:
        a = seen[:, None] * g0 * free[None]
        q = pulled_by(
            s, jnp.concatenate([a, (seen * r)[:, None]], 1), jnp.broadcast_to(seen[:, None], (len(r), len(free) + 1))
        )
        h = a.T @ q[:, :-1]
        # Round-off of products that are zero stays well below this; what is above it was measured by the outputs.
        inverse = jnp.linalg.pinv(
            h + prior_precision * jnp.diag(free), rtol=100 * len(h) * jnp.finfo(h.dtype).eps, hermitian=True
        )
        return inverse @ (a.T @ q[:, -1])

    return jax.vmap(one, in_axes=1, out_axes=1)(r, free, seen)


def by_segment(network: Network, stacks: tuple[Array, ...], precisions: Precisions) -> list[Float[Array, " _"]]:
    """Precisions of the layers of each stack: those given, or the network's."""
    depths = [len(stack) for stack in stacks]
    if precisions is None and network.precisions is not None:
        precisions = jnp.asarray(network.precisions, stacks[0].dtype)
    if precisions is None:
        return [jnp.ones(depth, stacks[0].dtype) for depth in depths]
    if len(precisions) != sum(depths):
        raise ValueError(f"precisions: one for each of the {sum(depths)} layers, not {len(precisions)}")
    ends = list(itertools.accumulate(depths, initial=0))
    return [precisions[start:stop] for start, stop in itertools.pairwise(ends)]


def rescaling(network: Network, *, precisions: Precisions = None) -> Float[Array, "d_out d_out"]:
    """Rescaling S = I + sum_{l=1}^{H} G_l G_l^T of the loss by inference (theorem 3.1); sum_l G_l G_l^T / p_l."""
    gs = sensitivities(network)
    return outer_products(gs, by_segment(network, gs, precisions))


def pulled_by(
    s: Float[Array, "d_out d_out"], r: Float[Array, "d_out batch"], mask: Mask = None
) -> Float[Array, "d_out batch"]:
    """Multipliers q = S^-1 r; with a mask M (M S M + I - M)^-1 M r of each example, zero where the output is free."""
    if mask is None:
        return jnp.linalg.solve(s, r)

    def one(r: Float[Array, " d_out"], seen: Float[Array, " d_out"]) -> Float[Array, " d_out"]:
        return jnp.linalg.solve(jnp.outer(seen, seen) * s + jnp.diag(1 - seen), seen * r)

    return jax.vmap(one, in_axes=1, out_axes=1)(r, mask)


def equilibrated_energy(
    network: Network,
    x: Float[Array, "d_in batch"],
    y: Float[Array, "d_out batch"],
    *,
    precisions: Precisions = None,
    mask: Mask = None,
) -> Float[Array, ""]:
    """Equilibrated energy F* = 1/(2B) sum_b r_b^T S^-1 r_b with r = y - yhat (theorem 3.1)."""
    r = masked(y - outputs(network, x), mask)
    return jnp.sum(r * pulled_by(rescaling(network, precisions=precisions), r, mask)) / (2 * y.shape[-1])


def equilibrium(
    network: Network,
    at: ForwardPass,
    y: Float[Array, "d_out batch"],
    *,
    precisions: Precisions = None,
    mask: Mask = None,
    moved: Float[Array, "d_in batch"] | None = None,
) -> LinearEquilibrium:
    """Equilibrium of a linear network: errors e_l = G_l^T S^-1 r / p_l and the forward pass that they perturb.

    One product with K columns a layer for S, one with B columns for the errors and one for the deviations
    d_l = J_l d_{l-1} + e_l. Where the input has `moved` from that of the forward pass, d_0 = moved and r is less by G_0 d_0.
    """
    gs = sensitivities(network)
    weights = by_segment(network, gs, precisions)
    r = masked(y - at.activities[-1][0], mask)
    if moved is not None:
        r = r - masked(input_sensitivity(network, gs) @ moved, mask)
    pulled = pulled_by(outer_products(gs, weights), r, mask)
    errors = tuple(jnp.einsum("l,lki,kb->lib", 1 / p, g, pulled) for p, g in zip(weights, gs, strict=True))
    deviations: list[Array] = []
    below = jnp.zeros_like(at.references[0].inputs[0]) if moved is None else moved
    for segment, stack in zip(network.segments[:-1], errors[:-1], strict=True):

        def up(d: Array, one: tuple[Array, Array], segment: Any = segment) -> tuple[Array, Array]:
            weight, e = one
            above = segment.premultiplier * (weight @ d) + e
            above = above + d if segment.skip else above
            return above, above

        if segment.depth > 1:
            _, found = jax.lax.scan(up, below, (segment.weight, stack))
        elif not deviations and moved is None:  # x does not move: d_1 = e_1 without a product
            found = stack
        else:
            found = up(below, (segment.weight[0], stack[0]))[0][None]
        deviations.append(found)
        below = found[-1]
    energy = jnp.sum(r * pulled) / (2 * y.shape[-1])
    return LinearEquilibrium(tuple(deviations), errors, pulled, energy)


def equilibrated_gradient(
    network: Network,
    x: Float[Array, "d_in batch"],
    y: Float[Array, "d_out batch"],
    *,
    precisions: Precisions = None,
    mask: Mask = None,
) -> Network:
    """Gradient of F* with respect to weights and biases: dF*/dW_l = -a_l/B sum_b (G_l^T S^-1 r_b) z*_{l-1,b}^T (B.21-22)."""
    at = forward_pass(network, x)
    found = equilibrium(network, at, y, precisions=precisions, mask=mask)
    weighted = found.errors
    if precisions is not None or network.precisions is not None:
        ps = by_segment(network, found.errors, precisions)
        weighted = tuple(jnp.einsum("l,lib->lib", p, e) for p, e in zip(ps, found.errors, strict=True))
    return energy_gradient(network, x, activities(at, found, y), weighted)


def activities(at: ForwardPass, found: LinearEquilibrium, y: Float[Array, "d_out batch"]) -> Activities:
    """Activities z*_1..z*_L of the equilibrium, its clamped output included."""
    return (*jax.tree.map(jnp.add, at.activities[:-1], found.deviations), y[None])
