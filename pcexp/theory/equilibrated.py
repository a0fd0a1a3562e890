"""Equilibrium of a linear network in closed form: rescaling S, equilibrated energy F*, activities, gradient (theorem 3.1).

In error variables the activities are a perturbed forward pass, z_l = mu_l(z_{l-1}) + e_l, and the output constraint reads
r = y - yhat = sum_l G_l e_l with G_L = I and G_{l-1} = G_l J_l, J_l = a_l W_l + tau_l I. With precisions p_l, minimising
F_b = 1/2 sum_l p_l ||e_l||^2 under it gives

    e_l = G_l^T q / p_l,   q = S^-1 r,   S = sum_l G_l G_l^T / p_l,   F* = 1/(2B) sum_b r_b^T S^-1 r_b.

S is the covariance of y - yhat where layer l adds noise of the variance 1/p_l, and with depth it is as ill-conditioned as a
product of the layers, squared. So layers are eliminated one by one from the output down instead, and S is never formed: with
T T^T = I + R_l R_l^T / p_l (R_L = I, without the I there), R_{l-1} = T^-1 R_l J_l and c_{l-1} = T^-1 c_l (c_L = y), every step
has the condition of one layer. Then F* = ||c_0 - R_0 x||^2 / 2B, and v_l = T_l^-T v_{l-1} from v_0 = c_0 - R_0 x give
e_l = R_l^T v_l / p_l and q = v_L. Of a standard net with skips (N = 32, H = 64) float32 has F* to 2e-7 so (one draw); by S to 1e-1.

Where a `mask` leaves entries of y free, S is formed after all: r and S are those of the entries that count, each example's own, and q is zero
elsewhere. Biases move r and nothing else. As q is the multiplier of the constraint, F* changes with the weights as F does at fixed
activities: dF*/dW_l = -a_l/B sum_b (G_l^T q_b) z*_{l-1,b}^T, the backpropagation of q at the activities of the equilibrium.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from pcexp.energy import ForwardPass, Mask, Targets, energy_gradient, forward_pass, masked, outputs, weighted
from pcexp.model.checks import check_shapes
from pcexp.model.network import Activities, Network
from pcexp.model.segments import Dense, over_layers

Inputs = Float[Array, "d_in batch"]
Sensitivities = tuple[Float[Array, "_ d_out _"], ...]
"""Derivatives G_l of the output, segment by segment."""


class LinearEquilibrium(NamedTuple):
    """Equilibrium of a batch: deviations z* - zhat of the hidden layers, errors e* of all, q = S^-1 r, and F*."""

    deviations: Activities
    errors: Activities
    pulled: Targets
    energy: Float[Array, ""]


class Eliminated(NamedTuple):
    """What is left of a network once its layers are eliminated: R_l and T_l^-1 of the layers, segment by segment, R_0 and c_0."""

    maps: Sensitivities
    inverses: tuple[Float[Array, "_ d_out d_out"], ...]
    below: Float[Array, "d_out d_in"]
    targets: Targets


def _identity(network: Network) -> Float[Array, "d_out d_out"]:
    """Derivative G_L = I of the output by itself. Raises ValueError where a network is not linear."""
    if not network.is_linear:
        raise ValueError("the closed form holds for linear networks only: choose network.activation=linear")
    weight = network.segments[-1].weight
    # Of weights in bfloat16 too: equations are solved with it.
    return jnp.eye(weight.shape[1], dtype=jnp.promote_types(weight.dtype, jnp.float32))


def eliminated(network: Network, y: Targets) -> Eliminated:
    """The network with its layers eliminated, from the output down: 1/2 ||c_l - R_l z_l||^2 is the least energy above z_l."""
    last, targets = _identity(network), y
    noise, maps, inverses = jnp.zeros_like(last), [], []
    for segment, p in reversed(list(zip(network.segments, precisions_of(network, last), strict=True))):
        assert isinstance(segment, Dense)

        def down(carry: Any, one: Any, segment: Dense = segment) -> tuple[Any, Any]:
            (r, c, noise), (weight, bias, p) = carry, one
            unit = jnp.eye(len(r), dtype=r.dtype)
            inverse = solve_triangular(jnp.linalg.cholesky(noise + r @ r.T / p), unit, lower=True)
            product = segment.premultiplier * (r @ weight)
            product = product + r if segment.skip else product
            c = c if bias is None else c - (r @ bias)[:, None]
            return (inverse @ product, inverse @ c, unit), (r, inverse)

        layers = (segment.weight, segment.bias, p)
        (last, targets, noise), (r, inverse) = over_layers(down, (last, targets, noise), layers, reverse=True)
        maps.append(r)
        inverses.append(inverse)
    return Eliminated(tuple(reversed(maps)), tuple(reversed(inverses)), last, targets)


def sensitivities(network: Network) -> Sensitivities:
    """Derivatives G_l = d yhat / d z_l of every layer, segment by segment (G_L = I). Linear networks only."""
    stacks, last = [], _identity(network)
    for segment in reversed(network.segments):
        assert isinstance(segment, Dense)

        def down(g: Array, weight: Array, segment: Dense = segment) -> tuple[Array, Array]:
            product = segment.premultiplier * (g @ weight)
            return (product + g if segment.skip else product), g

        last, stack = over_layers(down, last, segment.weight, reverse=True)
        stacks.append(stack)
    return tuple(reversed(stacks))


def precisions_of(network: Network, like: Array) -> list[Float[Array, " _"]]:
    """Precisions p_l of the layers, segment by segment."""
    if network.precisions is not None and 0 in network.precisions:
        raise ValueError("a layer's precision is 0, and the closed form divides by it: choose inference=error_descent")
    return [jnp.asarray(network.precisions_of(index), like.dtype) for index in range(len(network.segments))]


def rescaling(network: Network, gs: Sensitivities | None = None) -> Float[Array, "d_out d_out"]:
    """Rescaling S = sum_l G_l G_l^T / p_l of the loss by inference, I + sum_{l=1}^{H} G_l G_l^T without precisions (theorem 3.1)."""
    gs = sensitivities(network) if gs is None else gs
    pairs = zip(precisions_of(network, gs[0]), gs, strict=True)
    return jnp.sum(jnp.stack([jnp.einsum("l,lki,lmi->km", 1 / p, g, g) for p, g in pairs]), axis=0)


def input_sensitivity(network: Network, gs: Sensitivities) -> Float[Array, "d_out d_in"]:
    """Derivative G_0 = d yhat / dx, from those of the layers."""
    first = network.segments[0]
    return first.premultiplier * (gs[0][0] @ first.weight[0])


def free_input(network: Network, r: Targets, free: Inputs, prior_precision: float, mask: Mask = None) -> Inputs:
    """Move of the free entries of the input to the equilibrium, (p_0 + A^T S^-1 A)^+ A^T S^-1 r with A the free columns of G_0.

    With p_0 = 0 and more free entries than outputs equilibria are many: this is the one nearest the mean of the prior.
    """
    check_shapes(network, free, r, mask, free)
    gs = sensitivities(network)
    g0, s = input_sensitivity(network, gs), rescaling(network, gs)
    seen = jnp.ones_like(r) if mask is None else mask

    def one(r: Float[Array, " d_out"], free: Float[Array, " d_in"], seen: Float[Array, " d_out"]) -> Array:
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


def pulled_by(s: Float[Array, "d_out d_out"], r: Targets, mask: Mask = None) -> Targets:
    """Multipliers q = S^-1 r; with a mask M (M S M + I - M)^-1 M r of each example, zero where the output is free."""
    if mask is None:
        return jnp.linalg.solve(s, r)

    def one(r: Float[Array, " d_out"], seen: Float[Array, " d_out"]) -> Float[Array, " d_out"]:
        return jnp.linalg.solve(jnp.outer(seen, seen) * s + jnp.diag(1 - seen), seen * r)

    return jax.vmap(one, in_axes=1, out_axes=1)(r, mask)


def equilibrated_energy(network: Network, x: Inputs, y: Targets, *, mask: Mask = None) -> Float[Array, ""]:
    """Equilibrated energy F* = 1/(2B) sum_b r_b^T S^-1 r_b with r = y - yhat (theorem 3.1)."""
    check_shapes(network, x, y, mask)
    if mask is None:
        left = eliminated(network, y)
        return jnp.sum(jnp.square(left.targets - left.below @ x)) / (2 * y.shape[-1])
    r = masked(y - outputs(network, x), mask)
    return jnp.sum(r * pulled_by(rescaling(network), r, mask)) / (2 * y.shape[-1])


def _by_elimination(network: Network, x: Inputs, y: Targets) -> tuple[Activities, Targets, Float[Array, ""]]:
    """Errors of the equilibrium, q and B F*."""
    left = eliminated(network, y)
    v = left.targets - left.below @ x
    energy, errors = jnp.sum(jnp.square(v)) / 2, []
    for stack in zip(left.maps, left.inverses, precisions_of(network, v), strict=True):

        def up(v: Array, one: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            r, inverse, p = one
            v = inverse.T @ v
            return v, r.T @ v / p

        v, e = over_layers(up, v, stack)
        errors.append(e)
    return tuple(errors), v, energy


def _by_rescaling(network: Network, r: Targets, mask: Mask) -> tuple[Activities, Targets, Float[Array, ""]]:
    """The same from S, of the outputs that a mask counts."""
    gs = sensitivities(network)
    q = pulled_by(rescaling(network, gs), r, mask)
    pairs = zip(precisions_of(network, gs[0]), gs, strict=True)
    return tuple(jnp.einsum("l,lki,kb->lib", 1 / p, g, q) for p, g in pairs), q, jnp.sum(r * q) / 2


def equilibrium(
    network: Network, at: ForwardPass, y: Targets, *, mask: Mask = None, moved: Inputs | None = None
) -> LinearEquilibrium:
    """Equilibrium of a linear network: errors e_l = G_l^T S^-1 r / p_l and the forward pass that they perturb.

    One product with K columns a layer to eliminate them, one with B columns for the errors and one for the deviations
    d_l = J_l d_{l-1} + e_l. Where the input has `moved` from that of the forward pass, d_0 = moved and r is less by G_0 d_0.
    """
    x = at.references[0].inputs[0]
    check_shapes(network, x, y, mask)
    if mask is None:
        errors, pulled, energy = _by_elimination(network, x if moved is None else x + moved, y)
    else:
        r = masked(y - at.activities[-1][0], mask)
        if moved is not None:
            r = r - masked(input_sensitivity(network, sensitivities(network)) @ moved, mask)
        errors, pulled, energy = _by_rescaling(network, r, mask)
    deviations: list[Array] = []
    below = jnp.zeros_like(x) if moved is None else moved
    for segment, stack in zip(network.segments[:-1], errors[:-1], strict=True):

        def up(d: Array, one: tuple[Array, Array], segment: Any = segment) -> tuple[Array, Array]:
            weight, e = one
            above = segment.premultiplier * (weight @ d) + e
            above = above + d if segment.skip else above
            return above, above

        if segment.depth == 1 and not deviations and moved is None:  # x does not move: d_1 = e_1 without a product
            found = stack
        else:
            _, found = over_layers(up, below, (segment.weight, stack))
        deviations.append(found)
        below = found[-1]
    return LinearEquilibrium(tuple(deviations), errors, pulled, energy / y.shape[-1])


def equilibrated_gradient(network: Network, x: Inputs, y: Targets, *, mask: Mask = None) -> Network:
    """Gradient of F* with respect to weights and biases: dF*/dW_l = -a_l/B sum_b (G_l^T S^-1 r_b) z*_{l-1,b}^T (B.21-22)."""
    at = forward_pass(network, x)
    found = equilibrium(network, at, y, mask=mask)
    return energy_gradient(network, x, activities(at, found, y), weighted(network, found.errors))


def activities(at: ForwardPass, found: LinearEquilibrium, y: Targets) -> Activities:
    """Activities z*_1..z*_L of the equilibrium, its clamped output included."""
    return (*jax.tree.map(jnp.add, at.activities[:-1], found.deviations), y[None])
