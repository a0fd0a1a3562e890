"""Equilibrium of a linear network in closed form: the rescaling S, the equilibrated energy F* (thesis theorem 3.1).

In error variables the activities are a perturbed forward pass, z_l = mu_l(z_{l-1}) + e_l, and the output constraint reads
y - yhat = sum_l G_l e_l with G_L = I and G_{l-1} = G_l J_l, J_l = a_l W_l + tau_l I. Minimising 1/2 sum ||e_l||^2 gives
e_l = G_l^T S^-1 r with S = sum_l G_l G_l^T (identity included) and r = y - yhat, so F* = r^T S^-1 r / 2B.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pcexp.energy import forward_pass
from pcexp.network import Dense, Network


def sensitivities(network: Network) -> tuple[Float[Array, "_ d_out _"], ...]:
    """Derivatives G_l = d yhat / d z_l of every layer, segment by segment (G_L = I). Linear networks only."""
    if not network.is_linear:
        raise ValueError("the closed form holds for linear networks only: choose network.activation=linear")
    stacks = []
    last = jnp.eye(network.segments[-1].weight.shape[1], dtype=network.segments[-1].weight.dtype)
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


def rescaling(network: Network) -> Float[Array, "d_out d_out"]:
    """Rescaling S = I + sum_{l=1}^{H} G_l G_l^T of the loss by inference (theorem 3.1)."""
    return outer_products(sensitivities(network))


def outer_products(gs: tuple[Float[Array, "_ d_out _"], ...]) -> Float[Array, "d_out d_out"]:
    """Sum of G_l G_l^T over all layers: S."""
    return jnp.sum(jnp.stack([jnp.einsum("lki,lmi->km", g, g) for g in gs]), axis=0)


def equilibrated_energy(
    network: Network, x: Float[Array, "d_in batch"], y: Float[Array, "d_out batch"]
) -> Float[Array, ""]:
    """Equilibrated energy F* = 1/(2B) sum_b r_b^T S^-1 r_b with r = y - yhat (theorem 3.1)."""
    r = y - forward_pass(network, x).activities[-1][0]
    return jnp.sum(r * jnp.linalg.solve(rescaling(network), r)) / (2 * y.shape[-1])
