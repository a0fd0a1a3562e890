"""Fully connected layers whose premultipliers act in the forward pass only, and are 1 in every derivative.

Predictions are mu_l(z) = a_l W_l phi(z) + tau_l z, as of any layer, and so are prediction errors and energies. Inference and
learning descend with J_l = W_l diag(phi'(z)) + tau_l in the place of the derivative by z, and with e phi(z)^T in that of the
derivative by the weights: no gradient of the energy, unless all a_l are 1. Their theory is not that of linear networks.
"""

import functools

import equinox as eqx
import jax
from jaxtyping import Array, Float

from pcexp.activation import Activation, Output
from pcexp.segments import AbstractSegment, Dense


class ForwardOnlyDense(AbstractSegment):
    """Fully connected layers that derivatives see without their premultiplier."""

    weight: Float[Array, "depth d_out d_in"]
    bias: Float[Array, "depth d_out"] | None
    premultiplier: float = eqx.field(static=True)
    skip: bool = eqx.field(static=True)
    before: Activation = eqx.field(static=True)
    after: Activation | Output = eqx.field(static=True)
    batch_axis = -1

    @property
    def plain(self) -> Dense:
        """The same layers with a premultiplier of 1: what derivatives see."""
        return Dense(self.weight, self.bias, 1.0, self.skip, self.before, self.after)

    def multiply(self, inputs: Float[Array, "depth ..."]) -> Float[Array, "depth d_out"]:
        return scaled_value(self.premultiplier, self.plain.multiply(inputs))

    def multiply_transposed(
        self, outputs: Float[Array, "depth d_out"], like: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        """Products W_l^T u_l."""
        return self.plain.multiply_transposed(outputs, like)

    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Float[Array, "depth d_out d_in"]:
        """Products sum_b u_lb v_lb^T."""
        return self.plain.weight_gradient(v, pulled, batch_axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def scaled_value(a: float, u: Array) -> Array:
    """The value a u with the derivative of u: for what is differentiated by JAX, as the energy of error descent is."""
    return a * u


@scaled_value.defjvp
def _unscaled_tangent(a: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return a * primals[0], tangents[0]
