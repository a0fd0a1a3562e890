"""Prediction errors, layer energies, total energy and loss.

F = 1/(2B) sum_b sum_l ||z_l - mu_l(z_{l-1})||^2 with z_0 = x and z_L = y (thesis eq. 2.1): always the 1/2, always the mean
over the batch. Errors, activities and deviations are tuples with one array a segment; the batch axis of each is the
network's `batch_axes`. In deviations the output's entry is y - yhat, its distance from the forward pass.

A `mask` of the shape of y is 1 where the output's error counts and 0 where it does not: there the output is as good as
free, its error is zero and it pulls on nothing. None: all of it counts. An `x_mask` of the shape of x is 1 where the input is
clamped and 0 where it is free, with x as the mean of its prior. None: all of it is clamped.

A network with precisions p_l weighs its layers, F = 1/(2B) sum_b sum_l p_l ||e_l||^2. Errors are those of the activities, unweighted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pcexp.model.network import Activities, Network
from pcexp.model.output import Softmax, Squared
from pcexp.model.segments import AbstractSegment, Reference

Mask = Float[Array, "d_out batch"] | None


class Batch(eqx.Module):
    """What is clamped: inputs x in the network's batch layout, targets y, and which entries of either."""

    x: Float[Array, "..."]
    y: Float[Array, "d_out batch"]
    mask: Mask = None
    x_mask: Float[Array, "..."] | None = None


class ForwardPass(NamedTuple):
    """Forward activities zhat of a batch and what deviations from them are measured against."""

    activities: Activities
    references: tuple[Reference, ...]


def batch_axes_of(network: Network) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Axes of a batch in activities and in references, the depth axis in front counted."""
    axes = tuple(axis if axis < 0 else axis + 1 for axis in network.batch_axes)
    # The input of a segment lies where the segment before it put it.
    inputs = (network.input_batch_axis, *network.batch_axes[:-1])
    references = []
    for segment, i, axis in zip(network.segments, inputs, axes, strict=True):
        moved = i if i < 0 else i + 1
        acted_on = axis if segment.before == "linear" else moved
        references.append(Reference(moved, axis, acted_on))  # type: ignore[arg-type]  # axes in the shape of the arrays
    return axes, tuple(references)


def forward_pass(network: Network, x: Float[Array, "..."]) -> ForwardPass:
    """Forward activities zhat_l = mu_l(zhat_{l-1}) of a batch."""
    return ForwardPass(*network.forward(x, batched=True))


def batched_predictions(network: Network, x: Float[Array, "..."], activities: Activities) -> Activities:
    """Predictions mu_l(z_{l-1}) of a batch at activities that include the output."""
    axes, _ = batch_axes_of(network)
    return jax.vmap(network.predictions, in_axes=(network.input_batch_axis, axes), out_axes=axes)(x, activities)


def prediction_errors(network: Network, x: Float[Array, "..."], activities: Activities) -> Activities:
    """Prediction errors e_l = z_l - mu_l(z_{l-1}) at activities that include the output."""
    return jax.tree.map(jnp.subtract, activities, batched_predictions(network, x, activities))


def deviation_errors(network: Network, at: ForwardPass, deviations: Activities) -> Activities:
    """Prediction errors e_l = d_l - [mu_l(zhat + d) - mu_l(zhat)] in deviations, without cancellation."""
    axes, references = batch_axes_of(network)
    differences = jax.vmap(network.prediction_differences, in_axes=(references, axes), out_axes=axes)(
        at.references, deviations
    )
    return jax.tree.map(jnp.subtract, deviations, differences)


def masked(output_error: Float[Array, "..."], mask: Mask) -> Float[Array, "..."]:
    """An output error where it counts, zero elsewhere."""
    return output_error if mask is None else output_error * jnp.broadcast_to(mask, output_error.shape)


def weighted(
    network: Network, errors: Activities, *, first: int = 0, of: Callable[[np.ndarray], np.ndarray] | None = None
) -> Activities:
    """Errors p_l e_l times their layers' precisions, or times functions of these; of consecutive segments from the `first`."""
    if network.precisions is None:
        return errors
    found = []
    for segment, e in enumerate(errors, start=first):
        p = network.precisions_of(segment)
        factor = jnp.asarray(p if of is None else of(p), e.dtype)
        found.append(factor.reshape(-1, *[1] * (e.ndim - 1)) * e)
    return tuple(found)


def segment_errors(
    network: Network,
    at: ForwardPass | None,
    index: int,
    below: Float[Array, "..."],
    z: Float[Array, "depth ..."],
    mask: Mask = None,
) -> tuple[Float[Array, "depth ..."], Float[Array, "depth ..."]]:
    """Errors e_l of one segment, and their pull J_l^T e_l on its inputs: what inference needs of a segment, and no more.

    `below` is the input of its lowest layer, `z` its own activities; both are deviations where the forward pass `at` that
    they are measured from is given. The gradient of the summed energy is dF/dz_l = e_l - J_{l+1}^T e_{l+1}. With a `mask`,
    which the output's segment may have, the pull is that of the errors that count; with precisions, of p_l e_l.
    """
    segment = network.segments[index]
    axes, references = batch_axes_of(network)
    # Not under vmap: a concatenation there moves the batch to the front, and around every product back again.
    inputs = below[None] if segment.depth == 1 else jnp.concatenate([below[None], z[:-1]])
    moved, own = references[index].inputs, axes[index]
    reference, its_axes = (None, None) if at is None else (at.references[index], references[index])
    output = network.output if index == len(network.segments) - 1 else None
    precisions = None if network.precisions is None else jnp.asarray(network.precisions_of(index), z.dtype)
    batched = jax.vmap(
        segment.errors_and_pull,
        in_axes=(its_axes, moved, own, None, None if mask is None else -1, None),
        out_axes=(own, moved),
    )
    return batched(reference, inputs, z, output, mask, precisions)


def backpropagated(network: Network, at: ForwardPass, output_error: Float[Array, "d_out batch"]) -> Activities:
    """Errors delta_L = y - f(x), delta_{l-1} = J_l^T delta_l with the derivatives of the forward pass: backpropagation."""
    axes, references = batch_axes_of(network)
    error, errors = output_error, []
    for index, segment in reversed(list(enumerate(network.segments))):
        moved, own = references[index].inputs, axes[index]

        def layer(
            error: Array, one: tuple[AbstractSegment, Array, Array], moved: int = moved, own: int = own
        ) -> tuple[Array, Array]:
            parameters, inputs, u = one
            pull = jax.vmap(parameters.pull, in_axes=(own, moved, own), out_axes=moved)
            return pull(error[None], inputs, u)[0], error

        stack = (segment, at.references[index].inputs, at.references[index].linear)
        if segment.depth == 1:
            errors.append(error[None])
            if index > 0:
                error, _ = layer(error, stack)
        else:

            def scanned(error: Array, one: tuple[AbstractSegment, Array, Array], layer: Any = layer) -> Any:
                return layer(error, jax.tree.map(lambda leaf: leaf[None], one))

            error, segment_stack = lax.scan(scanned, error, stack, reverse=True)
            errors.append(segment_stack)
    return tuple(reversed(errors))


def energy_gradient(network: Network, x: Float[Array, "..."], activities: Activities, errors: Activities) -> Network:
    """Gradient of the energy with respect to the weights at fixed activities: dF/dtheta = -1/B sum_b J_b^T e_b.

    J_b is the derivative of the predictions with respect to the weights, and e_b the errors times their precisions (`weighted`);
    errors come from the solver, which may have
    them to higher relative accuracy than activities minus predictions would. With the forward activities and the errors
    that backpropagation has it is the gradient of the loss. Written out, because the derivative of a product in
    bfloat16 would be rounded to that.
    """
    axes, references = batch_axes_of(network)
    batch, gradients = activities[-1].shape[-1], []
    for index, (segment, inputs, e) in enumerate(
        zip(network.segments, network.inputs(x, activities), errors, strict=True)
    ):
        moved, own = references[index].inputs, axes[index]
        v, pulled = jax.vmap(segment.factors, in_axes=(moved, own), out_axes=(moved, own))(inputs, -e / batch)
        weight, bias = segment.weight_gradient(v, pulled, (moved, own)), None
        if segment.bias is not None:
            summed = jnp.sum(pulled, axis=own)
            shared = tuple(axis for axis, size in enumerate(segment.bias.shape) if size == 1)
            bias = jnp.sum(summed, axis=shared, keepdims=True)
        gradients.append(segment.with_parameters(weight, bias))
    return network.with_segments(gradients)


def layer_energies(network: Network, errors: Activities) -> Float[Array, " depth"]:
    """Energies F_l = p_l/(2B) sum_b ||e_l||^2 of the L layers, from the input side to the output."""
    if not isinstance(network.output, Squared):
        raise ValueError(
            f"the energy of a {network.output.name} output is no function of its error: choose output=squared"
        )
    axes, _ = batch_axes_of(network)
    squares = weighted(network, tuple(jnp.square(e) for e in errors))
    return jnp.concatenate(
        [
            jnp.sum(square, axis=tuple(range(1, square.ndim))) / (2 * square.shape[axis])
            for square, axis in zip(squares, axes, strict=True)
        ]
    )


def energy(network: Network, errors: Activities) -> Float[Array, ""]:
    """Total energy F = sum_l F_l, averaged over the batch (thesis eq. 2.1)."""
    return jnp.sum(layer_energies(network, errors))


def summed_energy(network: Network, errors: Activities) -> Float[Array, ""]:
    """Energy summed over the batch, B F: its gradient with respect to activities is per sample."""
    squares = weighted(network, tuple(jnp.square(e) for e in errors))
    return 0.5 * jnp.sum(jnp.stack([jnp.sum(square) for square in squares]))


def outputs(network: Network, x: Float[Array, "..."]) -> Float[Array, "d_out batch"]:
    """Outputs f(x) of the forward pass of a batch, one column an example."""
    return network.forward(x, batched=True)[0][-1][-1]


def loss(
    network: Network, x: Float[Array, "..."], y: Float[Array, "d_out batch"], mask: Mask = None
) -> Float[Array, ""]:
    """Loss of the forward pass, averaged over the batch, on one scale for PC and BP: 1/(2B) sum_b ||y - f(x)||^2 of squared errors."""
    return loss_at(network, forward_pass(network, x), y, mask)


def loss_at(network: Network, at: ForwardPass, y: Float[Array, "d_out batch"], mask: Mask = None) -> Float[Array, ""]:
    """The loss, of a forward pass that is known."""
    if mask is not None and isinstance(network.output, Softmax):
        raise ValueError("masked targets are for losses of one output each: choose output=squared or output=sigmoid")
    losses = network.output.losses(at.references[-1].linear, y[None])[0]
    return jnp.sum(masked(losses, mask)) / y.shape[-1]


def accuracy(network: Network, x: Float[Array, "..."], y: Float[Array, "d_out batch"]) -> Float[Array, ""]:
    """Fraction of examples whose largest output is the target's."""
    return jnp.mean(jnp.argmax(outputs(network, x), axis=0) == jnp.argmax(y, axis=0))
