"""Convolutional layers, each with its activation and max pooling."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pcexp.model.activation import activate, activation_difference, max_pool, max_pool_difference
from pcexp.model.segments import AbstractSegment, Reference, Stack


class Convolution(AbstractSegment):
    """One convolutional layer (stride 1, padding keeps the size), then its activation and max pooling.

    Examples are (height, width, channels), weights (1, kernel, kernel, c_in, c_out): XLA takes them without a transpose.
    """

    weight: Float[Array, "1 kernel kernel c_in c_out"]
    bias: Float[Array, "1 1 1 c_out"] | None = None
    pool: int = eqx.field(static=True, default=1)
    batch_axis = 1  # after the layers

    def example(self, sizes: tuple[int, ...]) -> tuple[Any, ...]:
        c_in = self.weight.shape[3]
        return sizes if len(sizes) == 3 and sizes[-1] == c_in else ("height", "width", c_in)

    def multiply(self, inputs: Float[Array, "1 height width c_in"]) -> Float[Array, "1 height width c_out"]:
        if jax.default_backend() == "cpu":
            out = _convolve_by_products(inputs, self.weight[0])
        else:
            layout = ("NHWC", "HWIO", "NHWC")
            low, kernel = inputs.astype(self.weight.dtype), self.weight[0]
            out = lax.conv_general_dilated(low, kernel, (1, 1), "SAME", dimension_numbers=layout).astype(inputs.dtype)
        return out if self.premultiplier == 1 else self.premultiplier * out

    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Array:
        def products(weight: Array) -> Array:
            segment = dataclasses.replace(self, weight=weight)
            return jax.vmap(segment.multiply, in_axes=batch_axes[0], out_axes=batch_axes[1])(v)

        (gradient,) = jax.linear_transpose(products, self.weight)(pulled)
        return gradient.astype(pulled.dtype)

    def after_linear(self, inputs: Stack, u: Stack) -> Float[Array, "1 rows columns c_out"]:
        return max_pool(activate(self.after, u)[0], self.pool)[None]

    def after_difference(self, at: Reference, u: Stack, d: Stack) -> Float[Array, "1 rows columns c_out"]:
        change = activation_difference(self.after, at.linear, u, at.activated)
        return max_pool_difference(at.activated[0], change[0], self.pool)[None]


def _convolve_by_products(
    inputs: Float[Array, "1 height width c_in"], weight: Float[Array, "kernel kernel c_in c_out"]
) -> Float[Array, "1 height width c_out"]:
    """Convolution (stride 1, size kept) as one matrix product a kernel row.

    XLA:CPU brings convolutions into their fast form in a program's entry computation only: inside a loop the gradient with
    respect to the input took 65 times longer (jax 0.10.2). Matrix products are fast everywhere.
    """
    kernel, _, c_in, c_out = weight.shape
    _, height, width, _ = inputs.shape
    below = (kernel - 1) // 2  # as in lax: an even kernel has its extra column after the centre
    padding = (below, kernel - 1 - below)
    padded = jnp.pad(inputs, ((0, 0), padding, padding, (0, 0)))
    rows = jnp.concatenate([padded[:, :, j : j + width] for j in range(kernel)], axis=-1)
    rows = rows.astype(weight.dtype)

    def product(i: int) -> Array:
        factor = weight[i].reshape(kernel * c_in, c_out)
        return jnp.matmul(rows[:, i : i + height], factor, preferred_element_type=inputs.dtype)

    return functools.reduce(jnp.add, map(product, range(kernel)))
