"""Segments: stacks of identical layers, with their predictions, differences of predictions, and derivatives.

Layer l predicts

    mu_l(z) = phi_after(a_l W_l phi_before(z) + b_l) + tau_l z

with phi_before = phi, phi_after = identity in the pre-activation form (thesis chapter 5) and the other way round in the
post-activation form (chapters 3, 4, 6.2). Everything here is written for one example, with the depth of the stack along
the first axis of weights, inputs and outputs.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pcexp.model.activation import Activation, activate, activation_difference
from pcexp.model.checks import check_choices
from pcexp.model.output import AbstractOutput

Precision = Literal["float32", "bfloat16", "float64"]
"""How products are computed. With bfloat16 their factors are rounded, but for those of the forward pass, where a rounding
would switch units of relu; sums and everything else stay in float32. float64 is everything in 64 bits."""


Stack = Float[Array, "depth ..."]
"""Of each layer of a segment one array, along the first axis."""


class Reference(NamedTuple):
    """What a segment knows about the point that deviations are measured from: z_{l-1}, u_l, and phi of whichever it acts on."""

    inputs: Stack
    linear: Stack
    activated: Stack


class AbstractSegment(eqx.Module):
    """A stack of `depth` identical layers."""

    weight: Stack
    bias: Stack | None = None
    premultiplier: float = eqx.field(static=True, default=1.0)
    skip: bool = eqx.field(static=True, default=False)
    before: Activation = eqx.field(static=True, default="linear")
    after: Activation = eqx.field(static=True, default="linear")
    batch_axis: eqx.AbstractClassVar[int]

    def __check_init__(self) -> None:
        check_choices(self)

    @property
    def depth(self) -> int:
        return self.weight.shape[0]

    def in_products(self, precision: Precision) -> "AbstractSegment":
        """The same layers with their weights as products take them: they are computed in the type of the weights."""
        low = self.weight.astype(jnp.bfloat16) if precision == "bfloat16" else self.weight
        return dataclasses.replace(self, weight=low)

    def for_inference(self) -> "AbstractSegment":
        """The same layers with what makes many products with the same weights faster."""
        return self

    def with_parameters(self, weight: Array, bias: Array | None) -> "AbstractSegment":
        """Other weights and biases in these layers, or their derivatives."""
        return dataclasses.replace(self, weight=weight, bias=bias)

    @abc.abstractmethod
    def example(self, sizes: tuple[int, ...]) -> tuple[Any, ...] | None:
        """Shape of one example of its inputs: the one given, if it takes that; None if it takes any."""

    @abc.abstractmethod
    def multiply(self, inputs: Stack) -> Stack:
        """Products a_l W_l v_l, one a layer."""

    def multiply_transposed(self, outputs: Stack, like: Stack) -> Stack:
        """Products a_l W_l^T u_l, one a layer, in the shape of the inputs `like`."""
        (product,) = jax.linear_transpose(self.multiply, like)(outputs)
        return product

    @abc.abstractmethod
    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Array:
        """Products a_l sum_b u_lb v_lb^T of a batch, one a layer, in the shape of the weights: here the batch is summed over.

        `batch_axes` are those of v, the inputs of the product, and of `pulled`, what its outputs get from above.
        """

    def linear(self, inputs: Stack) -> Stack:
        """Linear maps u_l = a_l W_l phi_before(z_l) + b_l."""
        u = self.multiply(activate(self.before, inputs))
        return u if self.bias is None else u + self.bias

    def after_linear(self, inputs: Stack, u: Stack) -> Stack:
        """Predictions from linear maps: phi_after(u_l) + tau_l z_l."""
        out = activate(self.after, u)
        return out + inputs if self.skip else out

    def predict(self, inputs: Stack) -> Stack:
        """Predictions mu_l(z_l) of every layer of the segment from its own input."""
        return self.after_linear(inputs, self.linear(inputs))

    def difference(self, at: Reference, d: Stack) -> Stack:
        """Differences mu_l(z_l + d_l) - mu_l(z_l), free of cancellation."""
        return self.after_difference(at, self.multiply(self.before_difference(at, d)), d)

    def reference(self, inputs: Stack, u: Stack) -> Reference:
        """The reference of inputs and the linear maps there."""
        acted_on = (self.after, u) if self.before == "linear" else (self.before, inputs)
        return Reference(inputs, u, activate(*acted_on))

    def before_difference(self, at: Reference, d: Stack) -> Stack:
        """Differences phi_before(z_l + d_l) - phi_before(z_l)."""
        return activation_difference(self.before, at.inputs, d, at.activated)

    def after_difference(self, at: Reference, u: Stack, d: Stack) -> Stack:
        """Differences of `after_linear` when the linear map moves by u and the input by d."""
        out = activation_difference(self.after, at.linear, u, at.activated)
        return out + d if self.skip else out

    def errors_and_pull(
        self,
        at: Reference | None,
        inputs: Stack,
        z: Stack,
        output: AbstractOutput | None = None,
        mask: Float[Array, " d_out"] | None = None,
        precisions: Float[Array, " depth"] | None = None,
    ) -> tuple[Stack, Stack]:
        """Errors e_l = z_l - mu_l and their pull J_l^T p_l e_l on the inputs; of deviations where `at` is given.

        As `predict` or `difference` and its derivative, but with the transposed product written out: the one that
        differentiation gives has its result in another layout, and a copy beside it. Of a layer that ends in an `output`
        the errors are z - g(u), those that count by the `mask`, pulled from u.
        """
        if at is None:
            v, pull_before = jax.vjp(lambda x: activate(self.before, x), inputs)
            u = self.multiply(v)
            u = u if self.bias is None else u + self.bias
            predicted, pull_after = jax.vjp(lambda u, x: self.after_linear(x, u), u, inputs)
        else:
            v, pull_before = jax.vjp(lambda d: self.before_difference(at, d), inputs)
            predicted, pull_after = jax.vjp(lambda u, d: self.after_difference(at, u, d), self.multiply(v), inputs)
        if output is not None:
            predicted = output.value(predicted) if at is None else output.difference(at.linear, predicted)
        errors = z - predicted
        errors = errors if mask is None else errors * mask[None]
        pulling = errors if precisions is None else precisions.reshape(-1, *[1] * (errors.ndim - 1)) * errors
        return errors, self._pulled(pulling, v, pull_before, pull_after)

    def pull(self, errors: Stack, inputs: Stack, u: Stack) -> Stack:
        """Pull J_l^T e_l of given errors on the inputs, where the linear maps are u_l."""
        v, pull_before = jax.vjp(lambda x: activate(self.before, x), inputs)
        _, pull_after = jax.vjp(lambda u, x: self.after_linear(x, u), u, inputs)
        return self._pulled(errors, v, pull_before, pull_after)

    def _pulled(
        self, errors: Stack, v: Stack, pull_before: Callable[[Array], Any], pull_after: Callable[[Array], Any]
    ) -> Stack:
        """Pull of errors through the derivatives of both activations, where the product acts on v."""
        pulled, direct = pull_after(errors)
        pull = pull_before(self.multiply_transposed(pulled, v))[0]
        return pull + direct if self.skip else pull

    def factors(self, inputs: Stack, errors: Stack) -> tuple[Stack, Stack]:
        """Factors v_l = phi_before(z_l) and phi_after'(u_l) e_l whose outer product is the derivative by the weights."""
        v = activate(self.before, inputs)
        u = self.linear(inputs)  # not computed where phi_after is the identity
        return v, jax.vjp(lambda u: self.after_linear(inputs, u), u)[1](errors)[0]


class Prior(AbstractSegment):
    """The layer below a free input: it predicts its mean, which nothing moves, and learns nothing."""

    weight: Float[Array, "1 0"]
    batch_axis: int = eqx.field(static=True, kw_only=True)  # type: ignore[misc]  # where the layer above takes it

    def example(self, sizes: tuple[int, ...]) -> None:
        return None

    def multiply(self, inputs: Float[Array, "1 ..."]) -> Float[Array, "1 ..."]:
        return inputs

    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Float[Array, "1 0"]:
        return self.weight


class Dense(AbstractSegment):
    """Fully connected layers; inputs with more than one axis are flattened.

    With `forward_only` the premultiplier acts in predictions, and so in errors and energies, and is 1 in every derivative
    (section 5.8): inference and learning descend with J_l = W_l diag(phi'(z)) + tau_l in the place of the derivative by z, and
    with e phi(z)^T in that of the derivative by the weights. That is no gradient of the energy, unless all a_l are 1; what JAX
    differentiates outside of a solve (`outputs`, `loss`, `prediction_errors`) has its true derivative.
    """

    weight: Float[Array, "depth d_out d_in"]
    bias: Float[Array, "depth d_out"] | None = None
    forward_only: bool = eqx.field(static=True, default=False)
    transposed: Float[Array, "depth d_in d_out"] | None = None
    """A copy of the weights that lives as long as a solve, and that nothing learns."""
    solving: bool = eqx.field(static=True, default=False)
    """Whether these are the layers of a solve, whose derivatives by JAX are those of `forward_only`, and not the true ones."""
    batch_axis = -1  # feature-major: W @ Z with the batch as columns was the fastest layout

    def example(self, sizes: tuple[int, ...]) -> tuple[Any, ...]:
        d_in = self.weight.shape[2]
        return sizes if sizes and math.prod(sizes) == d_in else (d_in,)

    def for_inference(self) -> "Dense":
        # XLA:CPU takes twice as long for W^T U as for W V, and has bfloat16 instructions only for the latter. A solve
        # multiplies with the same weights many times: a copy pays.
        transposed = jnp.swapaxes(self.weight, 1, 2) if jax.default_backend() == "cpu" else None
        return dataclasses.replace(self, transposed=transposed, solving=True)

    def with_parameters(self, weight: Array, bias: Array | None) -> "Dense":
        return dataclasses.replace(self, weight=weight, bias=bias, transposed=None, solving=False)

    def multiply(self, inputs: Stack) -> Float[Array, "depth d_out"]:
        if inputs.ndim > 2:
            inputs = inputs.reshape(self.depth, -1)
        product = _product(self.weight, 2, inputs, 1)
        if self.forward_only and self.solving:
            return scaled_value(self.premultiplier, product)
        return product if self.premultiplier == 1 else self.premultiplier * product

    def multiply_transposed(self, outputs: Float[Array, "depth d_out"], like: Stack) -> Stack:
        factor, axis = (self.weight, 1) if self.transposed is None else (self.transposed, 2)
        pulled = _product(factor, axis, outputs, 1)
        return self._derivative(pulled if like.ndim == 2 else pulled.reshape(like.shape))

    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Float[Array, "depth d_out d_in"]:
        if v.ndim > 3:  # a convolution below
            v = jnp.moveaxis(v, batch_axes[0], -1).reshape(self.depth, -1, v.shape[batch_axes[0]])
        return self._derivative(_product(pulled.astype(self.weight.dtype), 2, v, 2))

    def _derivative(self, product: Array) -> Array:
        """A product of a derivative, with the premultiplier that derivatives see."""
        return product if self.forward_only or self.premultiplier == 1 else self.premultiplier * product


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def scaled_value(a: float, u: Array) -> Array:
    """The value a u with the derivative of u: for what is differentiated by JAX, as the energy of error descent is."""
    return a * u


@scaled_value.defjvp
def _unscaled_tangent(a: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return a * primals[0], tangents[0]


def _product(factor: Array, axis: int, v: Array, v_axis: int) -> Array:
    """Products of two stacks, one a layer, summed over an axis of each, the axes of v last.

    In bfloat16 where that is what the factor has, then summed and returned in float32. A stack of one too is multiplied as a
    stack: taken out of it and put back, under vmap, its batch would move to the front and back around every product.
    """
    dimensions = (((axis,), (v_axis,)), ((0,), (0,)))
    if factor.dtype == jnp.bfloat16:
        return lax.dot_general(factor, v.astype(jnp.bfloat16), dimensions, preferred_element_type=jnp.float32)
    return lax.dot_general(factor, v, dimensions)


def over_layers(step: Callable[..., Any], carry: Any, layers: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` over the layers of a segment; one layer is no loop, because those at the ends of a network are not square."""
    if len(jax.tree.leaves(layers)[0]) > 1:
        return lax.scan(step, carry, layers, reverse=reverse)
    carry, found = step(carry, jax.tree.map(lambda leaf: leaf[0], layers))
    return carry, jax.tree.map(lambda leaf: leaf[None], found)
