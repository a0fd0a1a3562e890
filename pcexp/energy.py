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
from jaxtyping import Array, Float

from pcexp.model.checks import check_shapes
from pcexp.model.network import Activities, Network
from pcexp.model.output import Softmax, Squared
from pcexp.model.segments import Reference, Stack, over_layers

Targets = Float[Array, "d_out batch"]
Mask = Targets | None


class Batch(eqx.Module):
    """What is clamped: inputs x in the network's batch layout, targets y, and which entries of either."""

    x: Float[Array, "..."]
    y: Targets
    mask: Mask = None
    x_mask: Float[Array, "..."] | None = None


class ForwardPass(NamedTuple):
    """Forward activities zhat of a batch and what deviations from them are measured against."""

    activities: Activities
    references: tuple[Reference, ...]


def reference_axes(network: Network) -> tuple[Any, ...]:
    """Axes of a batch in the references of each segment."""
    axes = zip(network.segments, network.input_axes, network.batch_axes, strict=True)
    return tuple(Reference(i, own, own if segment.before == "linear" else i) for segment, i, own in axes)  # type: ignore[arg-type]


def forward_pass(network: Network, x: Float[Array, "..."]) -> ForwardPass:
    """Forward activities zhat_l = mu_l(zhat_{l-1}) of a batch."""
    return ForwardPass(*network.forward(x, batched=True))


def prediction_errors(network: Network, x: Float[Array, "..."], activities: Activities) -> Activities:
    """Prediction errors e_l = z_l - mu_l(z_{l-1}) at activities that include the output."""
    check_shapes(network, x, activities[-1][-1])
    below = (x, *(z[-1] for z in activities[:-1]))
    pairs = zip(below, activities, strict=True)
    return tuple(segment_errors(network, None, index, *pair)[0] for index, pair in enumerate(pairs))


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
    network: Network, at: ForwardPass | None, index: int, below: Float[Array, "..."], z: Stack, mask: Mask = None
) -> tuple[Stack, Stack]:
    """Errors e_l of one segment, and their pull J_l^T e_l on its inputs: what inference needs of a segment, and no more.

    `below` is the input of its lowest layer, `z` its own activities; both are deviations where the forward pass `at` that
    they are measured from is given. The gradient of the summed energy is dF/dz_l = e_l - J_{l+1}^T e_{l+1}. With a `mask`,
    which the output's segment may have, the pull is that of the errors that count; with precisions, of p_l e_l.
    """
    segment = network.segments[index]
    # Not under vmap: a concatenation there moves the batch to the front, and around every product back again.
    inputs = below[None] if segment.depth == 1 else jnp.concatenate([below[None], z[:-1]])
    moved, own = network.input_axes[index], network.batch_axes[index]
    reference, its_axes = (None, None) if at is None else (at.references[index], reference_axes(network)[index])
    output = network.output if index == len(network.segments) - 1 else None
    precisions = None if network.precisions is None else jnp.asarray(network.precisions_of(index), z.dtype)
    batched = jax.vmap(
        segment.errors_and_pull,
        in_axes=(its_axes, moved, own, None, None if mask is None else -1, None),
        out_axes=(own, moved),
    )
    return batched(reference, inputs, z, output, mask, precisions)


def backpropagated(network: Network, at: ForwardPass, output_error: Targets) -> Activities:
    """Errors delta_L = y - f(x), delta_{l-1} = J_l^T delta_l with the derivatives of the forward pass: backpropagation."""
    error, errors = output_error, []
    for index, segment in reversed(list(enumerate(network.segments))):
        moved, own = network.input_axes[index], network.batch_axes[index]

        def layer(error: Array, one: Any, moved: int = moved, own: int = own) -> tuple[Array, Array]:
            parameters, inputs, u = jax.tree.map(lambda leaf: leaf[None], one)
            pull = jax.vmap(parameters.pull, in_axes=(own, moved, own), out_axes=moved)
            return pull(error[None], inputs, u)[0], error

        stack = (segment, at.references[index].inputs, at.references[index].linear)
        error, found = over_layers(layer, error, stack, reverse=True)
        errors.append(found)
    return tuple(reversed(errors))


def energy_gradient(network: Network, x: Float[Array, "..."], activities: Activities, errors: Activities) -> Network:
    """Gradient of the energy with respect to the weights at fixed activities: dF/dtheta = -1/B sum_b J_b^T e_b.

    J_b is the derivative of the predictions with respect to the weights, and e_b the errors times their precisions (`weighted`),
    from the solver, which may have them to higher relative accuracy than a subtraction. With the forward activities and the
    errors of backpropagation it is the gradient of the loss. Written out: the derivative of a product in bfloat16 is rounded.
    """
    check_shapes(network, x, activities[-1][-1])
    batch, gradients = activities[-1].shape[-1], []
    axes = zip(network.input_axes, network.batch_axes, strict=True)
    for segment, inputs, e, (moved, own) in zip(
        network.segments, network.inputs(x, activities), errors, axes, strict=True
    ):
        v, pulled = jax.vmap(segment.factors, in_axes=(moved, own), out_axes=(moved, own))(inputs, -e / batch)
        weight, bias = segment.weight_gradient(v, pulled, (moved, own)), None
        if segment.bias is not None:
            summed = jnp.sum(pulled, axis=own)
            shared = tuple(axis for axis, size in enumerate(segment.bias.shape) if size == 1)
            bias = jnp.sum(summed, axis=shared, keepdims=True)
        gradients.append(segment.with_parameters(weight, bias))
    return network.with_segments(gradients)


def energy(network: Network, errors: Activities) -> Float[Array, ""]:
    """Total energy F = sum_l p_l/(2B) sum_b ||e_l||^2, averaged over the batch (thesis eq. 2.1)."""
    if not isinstance(network.output, Squared):
        raise ValueError(
            f"the energy of a {network.output.name} output is no function of its error: choose output=squared"
        )
    squares = weighted(network, tuple(jnp.square(e) for e in errors))
    layers = [
        jnp.sum(square, axis=tuple(range(1, square.ndim))) / (2 * square.shape[axis])
        for square, axis in zip(squares, network.batch_axes, strict=True)
    ]
    return jnp.sum(jnp.concatenate(layers))


def summed_energy(network: Network, errors: Activities) -> Float[Array, ""]:
    """Energy summed over the batch, B F: its gradient with respect to activities is per sample."""
    squares = weighted(network, tuple(jnp.square(e) for e in errors))
    return 0.5 * jnp.sum(jnp.stack([jnp.sum(square) for square in squares]))


def outputs(network: Network, x: Float[Array, "..."]) -> Targets:
    """Outputs f(x) of the forward pass of a batch, one column an example."""
    return network.forward(x, batched=True)[0][-1][-1]


def loss(network: Network, x: Float[Array, "..."], y: Targets, mask: Mask = None) -> Float[Array, ""]:
    """Loss of the forward pass, averaged over the batch, on one scale for PC and BP: 1/(2B) sum_b ||y - f(x)||^2 of squared errors."""
    return loss_at(network, forward_pass(network, x), y, mask)


def check_mask(network: Network, mask: Mask) -> None:
    """Raise ValueError where targets are masked that only count together."""
    if mask is not None and isinstance(network.output, Softmax):
        raise ValueError("masked targets are for losses of one output each: choose output=squared or output=sigmoid")


def loss_at(network: Network, at: ForwardPass, y: Targets, mask: Mask = None) -> Float[Array, ""]:
    """The loss, of a forward pass that is known."""
    check_mask(network, mask)
    check_shapes(network, at.references[0].inputs[0], y, mask)
    losses = network.output.losses(at.references[-1].linear, y[None])[0]
    return jnp.sum(masked(losses, mask)) / y.shape[-1]
