"""The problem of inference: the energy as a function of the free activities of a network.

Free are the hidden layers, the entries of the output where `mask` is 0 (their error counts nothing), and the entries of the
input that are not clamped: z_0 is then a hidden layer that a prior predicts (`Network.with_prior`). Whatever the solver, clamped
entries of z_0 stay where they are because their gradient is zero here.
"""

import dataclasses
import math
from functools import partial
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pcexp.energy import (
    Batch,
    ForwardPass,
    Mask,
    Targets,
    check_mask,
    forward_pass,
    masked,
    reference_axes,
    segment_errors,
    summed_energy,
    weighted,
)
from pcexp.model.checks import check_choice, check_shapes
from pcexp.model.network import Activities, Network
from pcexp.model.output import Squared
from pcexp.model.per_sample import PerSample, inner
from pcexp.model.segments import AbstractSegment, Precision, Reference, Stack

Form = Literal["activities", "deviations"]
"""The variables of inference: z itself (as published) or d = z - zhat (no cancellation near the forward pass)."""
Output = Float[Array, "1 d_out batch"]


def check_prior(input_precision: float) -> None:
    """Raise ValueError where the precision of a prior is negative, infinite or no number."""
    if not 0 <= input_precision < math.inf:
        raise ValueError(f"input_precision={input_precision}: valid are 0 (no prior) and above")


def check_products(precision: Precision, form: Form) -> None:
    """Raise ValueError where products of a precision make nothing of the variables of inference."""
    if precision == "bfloat16" and form == "activities":
        raise ValueError(
            "precision=bfloat16 with inference in form=activities: predictions rounded to 8 bits are subtracted from activities "
            "that are not, and low layers learn from the difference. Valid are precision=float32, and form=deviations "
            "(protocol=corrected)"
        )


class InferenceProblem(eqx.Module):
    """Energy of the free activities of a network, at its forward pass `at`; inference starts there, or at `initial` ones."""

    network: Network
    x: Float[Array, "..."]
    y: Targets
    at: ForwardPass
    mask: Mask = None
    free: Float[Array, "1 ..."] | None = None
    """1 where z_0 is free, 0 where it is clamped; None where all of the input is clamped, and no variable."""
    initial: Activities | None = None

    def __check_init__(self) -> None:
        check_shapes(self.network, self.x, self.y, self.mask)

    @classmethod
    def from_batch(
        cls, network: Network, batch: Batch, *, precision: Precision = "float32", input_precision: float = 0.0
    ) -> "InferenceProblem":
        """The problem of one batch, with its forward pass; free inputs have a prior of a precision about x."""
        check_shapes(network, batch.x, batch.y, batch.mask, batch.x_mask)
        check_mask(network, batch.mask)
        free = None
        if batch.x_mask is not None:
            network, free = network.with_prior(input_precision), 1 - batch.x_mask[None]
        products = network.in_products(precision).for_inference()
        return cls(products, batch.x, batch.y, forward_pass(network, batch.x), batch.mask, free)

    def starting_at(self, hidden: Activities) -> "InferenceProblem":
        """The same problem from other activities of the hidden layers; clamped entries of the input stay as they are."""
        if self.free is not None:
            free = hidden[0].astype(self.x.dtype) - self.x[None]
            hidden = (self.x[None] + self.free * free, *hidden[1:])
        return dataclasses.replace(self, initial=hidden)

    def start(self, form: Form) -> Activities:
        """Free variables where inference starts; deviations of exactly zero at the forward pass."""
        check_choice("form", form, get_args(Form))
        check_products("bfloat16" if self.network.segments[-1].weight.dtype == jnp.bfloat16 else "float32", form)
        hidden = self.at.activities[:-1] if self.initial is None else self.initial
        if form == "activities":
            return hidden
        if self.initial is None:
            return jax.tree.map(jnp.zeros_like, hidden)
        return jax.tree.map(jnp.subtract, hidden, self.at.activities[:-1])

    def projected(self, tree: Activities) -> Activities:
        """A gradient or move of the hidden layers, zero where the input is clamped."""
        return tree if self.free is None else (tree[0] * self.free, *tree[1:])

    def errors(self, form: Form, hidden: Activities) -> Activities:
        """Prediction errors of all layers when the free variables are `hidden`."""
        return tuple(self.segment(form, hidden, index)[0] for index in range(len(hidden) + 1))

    def errors_and_gradient(self, form: Form, hidden: Activities) -> tuple[Activities, Activities]:
        """Errors and the per-sample gradient dF_b/dz, a segment at a time from the output down."""
        errors, pull = self.segment(form, hidden, len(hidden))
        all_errors, gradient = [errors], []
        for index in reversed(range(len(hidden))):
            assert pull is not None  # only the first layer has none
            above = pull[0]
            errors, pull = self.segment(form, hidden, index)
            all_errors.append(errors)
            gradient.append(self.segment_gradient(index, errors, pull, above))
        return tuple(reversed(all_errors)), tuple(reversed(gradient))

    def segment(self, form: Form, hidden: Activities, index: int) -> tuple[Array, Array | None]:
        """Errors of a segment and their pull on its inputs; None for the first layer, whose input does not move."""
        deviations = form == "deviations"
        output = self.y - self.at.activities[-1][0] if deviations else self.y
        z = (*hidden, output[None])[index]
        if index == 0 and self.network.segments[0].depth == 1:
            # Its prediction is the forward pass, whatever the activities are: no product.
            return (z if deviations else z - self.at.activities[0]), None
        inputs = jnp.zeros_like(self.x) if deviations else self.x
        below = inputs if index == 0 else hidden[index - 1][-1]
        mask = self.mask if index == len(hidden) else None
        return segment_errors(self.network, self.at if deviations else None, index, below, z, mask)

    def segment_gradient(self, index: int, errors: Array, pull: Array | None, above: Float[Array, "..."]) -> Stack:
        """Gradient dF_b/dz_l = p_l e_l - J_{l+1}^T p_{l+1} e_{l+1} of a segment; `above` is the pull of the layer on top of it."""
        (e,) = weighted(self.network, (errors,), first=index)
        pulled = above[None] if pull is None or errors.shape[0] == 1 else jnp.concatenate([pull[1:], above[None]])
        gradient = e - pulled
        return gradient if self.free is None or index > 0 else gradient * self.free

    def energies(self, form: Form, hidden: Activities, errors: Activities) -> PerSample:
        """Energy F_b of every sample at free variables and the prediction errors there; of any output, its loss."""
        network = self.network
        if isinstance(network.output, Squared):
            return 0.5 * inner(network, weighted(network, errors), errors)
        segment, below = network.segments[-1], hidden[-1][-1][None]
        references, axis = self.at.references[-1], reference_axes(network)[-1]

        def linear(at: Reference, below: Stack) -> Stack:
            if form == "activities":
                return segment.linear(below)
            return at.linear + segment.multiply(segment.before_difference(at, below))

        u = jax.vmap(linear, (axis, network.input_axes[-1]), network.batch_axes[-1])(references, below)
        losses = masked(network.output.losses(u, self.y[None])[0], self.mask)
        top = float(network.precisions_of(len(hidden))[0]) * jnp.sum(losses, axis=0)
        return 0.5 * inner(network, weighted(network, errors[:-1]), errors[:-1]) + top

    def summed_energy(self, form: Form, hidden: Activities, errors: Activities) -> Float[Array, ""]:
        """Energy summed over the batch."""
        if isinstance(self.network.output, Squared):
            return summed_energy(self.network, errors)
        return jnp.sum(self.energies(form, hidden, errors))

    def activities(self, form: Form, hidden: Activities) -> Activities:
        """Activities of all layers (z_0 the first where inputs are free) with the output at y, masked or not."""
        free = hidden if form == "activities" else jax.tree.map(jnp.add, self.at.activities[:-1], hidden)
        return (*free, self.y[None])


def perturbed_pass(problem: InferenceProblem, errors: Activities) -> tuple[Output, Activities]:
    """Output error and deviations d_l = [mu_l(zhat + d_{l-1}) - mu_l(zhat)] + e_l that the hidden errors e_1..e_H leave.

    The output is clamped, so its error is what is missing: e_L = (y - yhat) - [mu_L(zhat + d_H) - mu_L(zhat)].
    """
    network = problem.network

    def one(references: tuple[Reference, ...], errors: Activities) -> tuple[Array, Activities]:
        deviations: list[Array] = []
        last: Array | None = None
        for segment, at, e in zip(network.segments[:-1], references[:-1], errors, strict=True):
            if segment.depth == 1:
                d = e if last is None else e + segment.difference(at, last[None])  # x does not move
            else:
                below = jnp.zeros_like(at.inputs[0]) if last is None else last
                _, d = lax.scan(_perturbed_layer, below, (segment, at, e))
            deviations.append(d)
            last = d[-1]
        assert last is not None
        return network.segments[-1].difference(references[-1], last[None]), tuple(deviations)

    axes = network.batch_axes
    batched = jax.vmap(one, in_axes=(reference_axes(network), axes[:-1]), out_axes=(axes[-1], axes[:-1]))
    change, deviations = batched(problem.at.references, errors)
    output = (problem.y - problem.at.activities[-1][0])[None] - change
    return masked(output, problem.mask), deviations


# Without checkpoints, differentiating the scan would copy the whole stack of weights into its residuals. One is for the
# gradient, one for the Hessian.
_checkpoint = partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)


@_checkpoint
@_checkpoint
def _perturbed_layer(below: Array, layer: tuple[AbstractSegment, Reference, Array]) -> tuple[Array, Array]:
    segment, at, e = layer
    single = jax.tree.map(lambda p: p[None], segment)
    d = e + single.difference(jax.tree.map(lambda a: a[None], at), below[None])[0]
    return d, d
