"""Segments and networks: forward pass, predictions, and differences of predictions.

A network is a tuple of segments; a segment is a stack of identical layers with a leading depth axis. Layer l predicts

    mu_l(z) = phi_after(a_l W_l phi_before(z) + b_l) + tau_l z

with phi_before = phi, phi_after = identity in the pre-activation form (thesis chapter 5) and the other way round in the
post-activation form (chapters 3, 4, 6.2). Everything here is written for one example; batches enter by `jax.vmap` over
the axes that `Network.batch_axes` names.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pcexp.activation import Activation, activate, activation_difference, max_pool, max_pool_difference

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
    after: eqx.AbstractVar[Activation]
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


class Dense(AbstractSegment):
    """Fully connected layers; inputs with more than one axis are flattened."""

    weight: Float[Array, "depth d_out d_in"]
    bias: Float[Array, "depth d_out"] | None
    premultiplier: float = eqx.field(static=True)
    skip: bool = eqx.field(static=True)
    before: Activation = eqx.field(static=True)
    after: Activation = eqx.field(static=True)
    batch_axis = -1  # feature-major: W @ Z with the batch as columns was the fastest layout

    def multiply(self, inputs: Float[Array, "depth ..."]) -> Float[Array, "depth d_out"]:
        if inputs.ndim > 2:
            inputs = inputs.reshape(self.depth, -1)
        if self.depth == 1:  # a plain product: XLA:CPU is faster at it than at a batched one
            product = (self.weight[0] @ inputs[0])[None]
        else:
            product = jnp.einsum("loi,li->lo", self.weight, inputs)
        return product if self.premultiplier == 1 else self.premultiplier * product

    def multiply_transposed(
        self, outputs: Float[Array, "depth d_out"], like: Float[Array, "depth ..."]
    ) -> Float[Array, "depth ..."]:
        if self.depth == 1:
            pulled = (self.weight[0].T @ outputs[0])[None]
        else:
            pulled = jnp.einsum("loi,lo->li", self.weight, outputs)
        pulled = pulled if like.ndim == 2 else pulled.reshape(like.shape)
        return pulled if self.premultiplier == 1 else self.premultiplier * pulled


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
            out = lax.conv_general_dilated(inputs, self.weight[0], (1, 1), "SAME", dimension_numbers=layout)
        return out if self.premultiplier == 1 else self.premultiplier * out

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
    out = rows[:, :height] @ weight[0].reshape(kernel * c_in, c_out)
    for i in range(1, kernel):
        out = out + rows[:, i : i + height] @ weight[i].reshape(kernel * c_in, c_out)
    return out


class Network(eqx.Module):
    """A feedforward network as a tuple of segments; the last segment is the output layer."""

    segments: tuple[AbstractSegment, ...]

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
    def is_linear(self) -> bool:
        """Whether every layer is an affine map of one vector."""
        return all(isinstance(s, Dense) and s.before == s.after == "linear" for s in self.segments)

    def forward(self, x: Float[Array, "..."]) -> tuple[Activities, tuple[Reference, ...]]:
        """Forward pass zhat_l = mu_l(zhat_{l-1}) and the reference that deviations from it need."""
        activities, references, z = [], [], x
        for segment in self.segments:
            if segment.depth == 1:
                inputs = z[None]
                u = segment.linear(inputs)
                out = segment.after_linear(inputs, u)
            else:

                def layer(z: Array, parameters: AbstractSegment) -> tuple[Array, tuple[Array, Array, Array]]:
                    one = jax.tree.map(lambda p: p[None], parameters)
                    u = one.linear(z[None])[0]
                    out = one.after_linear(z[None], u[None])[0]
                    return out, (z, u, out)

                _, (inputs, u, out) = lax.scan(layer, z, segment)
            z = out[-1]
            activities.append(out)
            references.append(segment.reference(inputs, u))
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
