"""Segments and networks: forward pass, predictions, and differences of predictions.

A network is a tuple of segments; a segment is a stack of identical layers with a leading depth axis. Layer l predicts

    mu_l(z) = phi_after(a_l W_l phi_before(z) + b_l) + tau_l z

with phi_before = phi, phi_after = identity in the pre-activation form (thesis chapter 5) and the other way round in the
post-activation form (chapters 3, 4, 6.2). Everything here is written for one example; batches enter by `jax.vmap` over
the axes that `Network.batch_axes` names.
"""

import abc
import dataclasses
import functools
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pcexp.activation import Activation, Output, activate, activation_difference, max_pool, max_pool_difference

Precision = Literal["float32", "bfloat16", "float64"]
"""How products are computed. With bfloat16 their factors are rounded, but for those of the forward pass, where a rounding
would switch units of relu; sums and everything else stay in float32. float64 is everything in 64 bits."""

Activities = tuple[Float[Array, "_ ..."], ...]
"""One array a segment, layers along the first axis; the last entry is the output z_L."""


class Reference(NamedTuple):
    """What a segment knows about the point that deviations are measured from: z_{l-1}, u_l, and phi of whichever it acts on."""

    inputs: Float[Array, "depth ..."]
    linear: Float[Array, "depth ..."]
    activated: Float[Array, "depth ..."]


class AbstractSegment(eqx.Module):
    """A stack of `depth` identical layers."""

    weight: eqx.AbstractVar[Array]
    bias: eqx.AbstractVar[Array | None]
    premultiplier: eqx.AbstractVar[float]
    skip: eqx.AbstractVar[bool]
    before: eqx.AbstractVar[Activation]
    after: eqx.AbstractVar[Activation | Output]
    batch_axis: eqx.AbstractClassVar[int]

    @property
    def depth(self) -> int:
        return self.weight.shape[0]

    @abc.abstractmethod
    def multiply(self, inputs: Float[Array, "depth ..."]) -> Float[Array, "depth ..."]:
        """Products a_l W_l v_l, one a layer."""

    def multiply_transposed(
        self, outputs: Float[Array, "depth ..."], like: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        """Products a_l W_l^T u_l, one a layer, in the shape of the inputs `like`."""
        (product,) = jax.linear_transpose(self.multiply, like)(outputs)
        return product

    @abc.abstractmethod
    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Array:
        """Products a_l sum_b u_lb v_lb^T of a batch, one a layer, in the shape of the weights: here the batch is summed over.

        `batch_axes` are those of v, the inputs of the product, and of `pulled`, what its outputs get from above.
        """

    def linear(self, inputs: Float[Array, "depth ..."]) -> Float[Array, "depth ..."]:
        """Linear maps u_l = a_l W_l phi_before(z_l) + b_l."""
        u = self.multiply(activate(self.before, inputs))
        return u if self.bias is None else u + self.bias

    def after_linear(
        self, inputs: Float[Array, "depth ..."], u: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        """Predictions from linear maps: phi_after(u_l) + tau_l z_l."""
        out = activate(self.after, u)
        return out + inputs if self.skip else out

    def predict(self, inputs: Float[Array, "depth ..."]) -> Float[Array, "depth ..."]:
        """Predictions mu_l(z_l) of every layer of the segment from its own input."""
        return self.after_linear(inputs, self.linear(inputs))

    def difference(self, at: Reference, d: Float[Array, "depth ..."]) -> Float[Array, "depth ..."]:
        """Differences mu_l(z_l + d_l) - mu_l(z_l), free of cancellation."""
        return self.after_difference(at, self.multiply(self.before_difference(at, d)), d)

    def reference(self, inputs: Float[Array, "depth ..."], u: Float[Array, "depth ..."]) -> Reference:
        """The reference of inputs and the linear maps there."""
        acted_on = (self.after, u) if self.before == "linear" else (self.before, inputs)
        return Reference(inputs, u, activate(*acted_on))

    def before_difference(self, at: Reference, d: Float[Array, "depth ..."]) -> Float[Array, "depth ..."]:
        """Differences phi_before(z_l + d_l) - phi_before(z_l)."""
        return activation_difference(self.before, at.inputs, d, at.activated)

    def after_difference(
        self, at: Reference, u: Float[Array, "depth ..."], d: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        """Differences of `after_linear` when the linear map moves by u and the input by d."""
        out = activation_difference(self.after, at.linear, u, at.activated)
        return out + d if self.skip else out

    def errors_and_pull(
        self, at: Reference | None, inputs: Float[Array, "depth ..."], z: Float[Array, "depth ..."]
    ) -> tuple[Float[Array, "depth ..."], Float[Array, "depth ..."]]:
        """Errors e_l = z_l - mu_l and their pull J_l^T e_l on the inputs; of deviations where `at` is given.

        As `predict` or `difference` and its derivative, but with the transposed product written out: the one that
        differentiation gives has its result in another layout, and a copy beside it.
        """
        if at is None:
            v, pull_before = jax.vjp(lambda x: activate(self.before, x), inputs)
            u = self.multiply(v)
            u = u if self.bias is None else u + self.bias
            predicted, pull_after = jax.vjp(lambda u, x: self.after_linear(x, u), u, inputs)
        else:
            v, pull_before = jax.vjp(lambda d: self.before_difference(at, d), inputs)
            predicted, pull_after = jax.vjp(lambda u, d: self.after_difference(at, u, d), self.multiply(v), inputs)
        errors = z - predicted
        pulled, direct = pull_after(errors)
        pull = pull_before(self.multiply_transposed(pulled, v))[0]
        return errors, pull + direct if self.skip else pull

    def pull(
        self, errors: Float[Array, "depth ..."], inputs: Float[Array, "depth ..."], u: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        """Pull J_l^T e_l of given errors on the inputs, where the linear maps are u_l."""
        v, pull_before = jax.vjp(lambda x: activate(self.before, x), inputs)
        _, pull_after = jax.vjp(lambda u, x: self.after_linear(x, u), u, inputs)
        pulled, direct = pull_after(errors)
        pull = pull_before(self.multiply_transposed(pulled, v))[0]
        return pull + direct if self.skip else pull

    def factors(
        self, inputs: Float[Array, "depth ..."], errors: Float[Array, "depth ..."]
    ) -> tuple[Float[Array, "depth ..."], Float[Array, "depth ..."]]:
        """Factors v_l = phi_before(z_l) and phi_after'(u_l) e_l whose outer product is the derivative by the weights."""
        v = activate(self.before, inputs)
        u = self.linear(inputs)  # not computed where phi_after is the identity
        return v, jax.vjp(lambda u: self.after_linear(inputs, u), u)[1](errors)[0]


class Dense(AbstractSegment):
    """Fully connected layers; inputs with more than one axis are flattened."""

    weight: Float[Array, "depth d_out d_in"]
    bias: Float[Array, "depth d_out"] | None
    premultiplier: float = eqx.field(static=True)
    skip: bool = eqx.field(static=True)
    before: Activation = eqx.field(static=True)
    after: Activation | Output = eqx.field(static=True)
    batch_axis = -1  # feature-major: W @ Z with the batch as columns was the fastest layout

    def multiply(self, inputs: Float[Array, "depth ..."]) -> Float[Array, "depth d_out"]:
        if inputs.ndim > 2:
            inputs = inputs.reshape(self.depth, -1)
        if self.depth == 1:  # a plain product: XLA:CPU is faster at it than at a batched one
            product = _product("oi,i->o", self.weight[0], inputs[0])[None]
        else:
            product = _product("loi,li->lo", self.weight, inputs)
        return product if self.premultiplier == 1 else self.premultiplier * product

    def multiply_transposed(
        self, outputs: Float[Array, "depth d_out"], like: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        if self.depth == 1:
            pulled = _product("oi,o->i", self.weight[0], outputs[0])[None]
        else:
            pulled = _product("loi,lo->li", self.weight, outputs)
        pulled = pulled if like.ndim == 2 else pulled.reshape(like.shape)
        return pulled if self.premultiplier == 1 else self.premultiplier * pulled

    def weight_gradient(self, v: Array, pulled: Array, batch_axes: tuple[int, int]) -> Float[Array, "depth d_out d_in"]:
        if v.ndim > 3:  # a convolution below
            v = jnp.moveaxis(v, batch_axes[0], -1).reshape(self.depth, -1, v.shape[batch_axes[0]])
        low = self.weight.dtype
        if self.depth == 1:
            product = _product("ob,ib->oi", pulled[0].astype(low), v[0])[None]
        else:
            product = _product("lob,lib->loi", pulled.astype(low), v)
        return product if self.premultiplier == 1 else self.premultiplier * product


def _product(equation: str, factor: Array, v: Array) -> Array:
    """Product of v with a factor: in bfloat16 where that is what the factor has, then summed and returned in float32."""
    if factor.dtype == jnp.bfloat16:
        return jnp.einsum(equation, factor, v.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return jnp.einsum(equation, factor, v)


class Convolution(AbstractSegment):
    """One convolutional layer (stride 1, padding keeps the size), then its activation and max pooling.

    Examples are (height, width, channels), weights (1, kernel, kernel, c_in, c_out): XLA takes them without a transpose.
    """

    weight: Float[Array, "1 kernel kernel c_in c_out"]
    bias: Float[Array, "1 1 1 c_out"] | None
    premultiplier: float = eqx.field(static=True)
    skip: bool = eqx.field(static=True)
    before: Activation = eqx.field(static=True)
    after: Activation = eqx.field(static=True)
    pool: int = eqx.field(static=True)
    batch_axis = 0

    def multiply(self, inputs: Float[Array, "1 height width c_in"]) -> Float[Array, "1 height width c_out"]:
        if jax.default_backend() == "cpu":
            out = _convolve_by_products(inputs, self.weight[0])
        else:
            layout = ("NHWC", "HWIO", "NHWC")
            low = self.weight.dtype
            out = lax.conv_general_dilated(
                inputs.astype(low), self.weight[0], (1, 1), "SAME", dimension_numbers=layout
            ).astype(inputs.dtype)
        return out if self.premultiplier == 1 else self.premultiplier * out

    def weight_gradient(
        self, v: Array, pulled: Array, batch_axes: tuple[int, int]
    ) -> Float[Array, "1 kernel kernel c_in c_out"]:
        def products(weight: Array) -> Array:
            segment = dataclasses.replace(self, weight=weight)
            return jax.vmap(segment.multiply, in_axes=batch_axes[0], out_axes=batch_axes[1])(v)

        (gradient,) = jax.linear_transpose(products, self.weight)(pulled)
        return gradient.astype(pulled.dtype)

    def after_linear(
        self, inputs: Float[Array, "1 height width c_in"], u: Float[Array, "1 height width c_out"]
    ) -> Float[Array, "1 rows columns c_out"]:
        return max_pool(activate(self.after, u)[0], self.pool)[None]

    def after_difference(
        self, at: Reference, u: Float[Array, "1 height width c_out"], d: Float[Array, "1 height width c_in"]
    ) -> Float[Array, "1 rows columns c_out"]:
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


class Network(eqx.Module):
    """A feedforward network as a tuple of segments; the last segment is the output layer."""

    segments: tuple[AbstractSegment, ...]

    def in_products(self, precision: Precision) -> "Network":
        """The same network with its weights as products take them: they are computed in the type of the weights."""
        if precision != "bfloat16":
            return self
        rounded = [segment.weight.astype(jnp.bfloat16) for segment in self.segments]
        return eqx.tree_at(lambda network: [segment.weight for segment in network.segments], self, rounded)

    @property
    def depth(self) -> int:
        """Number of weight matrices L = H + 1."""
        return sum(segment.depth for segment in self.segments)

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Position of the batch axis in the activities of each segment."""
        return tuple(segment.batch_axis for segment in self.segments)

    @property
    def input_batch_axis(self) -> int:
        """Position of the batch axis in the inputs x."""
        return self.segments[0].batch_axis

    @property
    def output(self) -> Output:
        """What the output layer ends in; with softmax its energy is the cross-entropy."""
        return "softmax" if self.segments[-1].after == "softmax" else "linear"

    @property
    def is_linear(self) -> bool:
        """Whether every layer is an affine map of one vector."""
        return all(isinstance(s, Dense) and s.before == s.after == "linear" for s in self.segments)

    def forward(self, x: Float[Array, "..."], *, batched: bool = False) -> tuple[Activities, tuple[Reference, ...]]:
        """Forward pass zhat_l = mu_l(zhat_{l-1}) and the reference that deviations from it need.

        Of one example, or of a batch with its axis where the segments have it: then the loop over layers stays outside
        vmap, which would move the batch to the front of all that it carries, and back again around every product.
        """
        activities, references, z, below = [], [], x, self.input_batch_axis
        for segment in self.segments:
            moved, own = ((axis if axis < 0 else axis + 1) for axis in (below, segment.batch_axis))

            def layer(
                z: Array, parameters: AbstractSegment, axes: tuple[int, int] = (moved, own)
            ) -> tuple[Array, tuple[Array, Array, Array]]:
                def outputs(v: Array) -> tuple[Array, Array]:
                    u = parameters.linear(v)
                    return u, parameters.after_linear(v, u)

                u, out = (jax.vmap(outputs, *axes) if batched else outputs)(z[None])
                return out[0], (z, u[0], out[0])

            if segment.depth == 1:
                z, stacks = layer(z, segment)
                inputs, u, out = (leaf[None] for leaf in stacks)
            else:
                z, (inputs, u, out) = lax.scan(
                    lambda z, one: layer(z, jax.tree.map(lambda p: p[None], one)), z, segment
                )
            activities.append(out)
            references.append(segment.reference(inputs, u))
            below = segment.batch_axis
        return tuple(activities), tuple(references)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " d_out"]:
        """Output f(x) of the forward pass."""
        return self.forward(x)[0][-1][-1]

    def inputs(self, x: Float[Array, "..."], activities: Activities) -> Activities:
        """Inputs z_{l-1} of every layer, segment by segment: x, then the activities moved up by one."""
        stacked, last = [], x
        for segment, z in zip(self.segments, activities, strict=True):
            stacked.append(last[None] if segment.depth == 1 else jnp.concatenate([last[None], z[:-1]]))
            last = z[-1]
        return tuple(stacked)

    def predictions(self, x: Float[Array, "..."], activities: Activities) -> Activities:
        """Predictions mu_l(z_{l-1}) of every layer at the given activities, in one batched product a segment."""
        return tuple(segment.predict(z) for segment, z in zip(self.segments, self.inputs(x, activities), strict=True))

    def prediction_differences(self, references: tuple[Reference, ...], deviations: Activities) -> Activities:
        """Differences mu_l(zhat_{l-1} + d_{l-1}) - mu_l(zhat_{l-1}); exactly zero for the first layer, whose input is x."""
        differences, last = [], None
        for segment, at, d in zip(self.segments, references, deviations, strict=True):
            if last is None and segment.depth == 1:
                differences.append(jnp.zeros_like(d))  # x does not move: no product
            else:
                first = jnp.zeros_like(at.inputs[:1]) if last is None else last[None]
                moved = first if segment.depth == 1 else jnp.concatenate([first, d[:-1]])
                differences.append(segment.difference(at, moved))
            last = d[-1]
        return tuple(differences)
