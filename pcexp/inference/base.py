"""What every inference solver is given and what it returns."""

import abc
import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.energy import (
    Batch,
    ForwardPass,
    Mask,
    deviation_errors,
    forward_pass,
    masked,
    prediction_errors,
    segment_errors,
    summed_energy,
)
from pcexp.model.network import Activities, Network
from pcexp.model.output import Squared
from pcexp.model.segments import Precision

Form = Literal["activities", "deviations"]
"""The variables of inference: z itself (as published) or d = z - zhat (no cancellation near the forward pass)."""


class InferenceProblem(eqx.Module):
    """Energy of the free activities of a network between a clamped input x and an output y, clamped where `mask` is 1."""

    network: Network
    x: Float[Array, "..."]
    y: Float[Array, "d_out batch"]
    at: ForwardPass
    mask: Mask = None

    @classmethod
    def from_batch(
        cls,
        network: Network,
        batch: Batch,
        *,
        precision: Precision = "float32",
    ) -> "InferenceProblem":
        """The problem of one batch, with its forward pass."""
        products = network.in_products(precision).for_inference()
        return cls(products, batch.x, batch.y, forward_pass(network, batch.x), batch.mask)

    def start(self, form: Form) -> Activities:
        """Free variables at the forward pass: zhat, or deviations of exactly zero."""
        hidden = self.at.activities[:-1]
        return hidden if form == "activities" else jax.tree.map(jnp.zeros_like, hidden)

    def errors(self, form: Form, hidden: Activities) -> Activities:
        """Prediction errors of all layers when the free variables are `hidden`."""
        if form == "activities":
            found = prediction_errors(self.network, self.x, (*hidden, self.y[None]))
        else:
            output = (self.y - self.at.activities[-1][0])[None]
            found = deviation_errors(self.network, self.at, (*hidden, output))
        return (*found[:-1], masked(found[-1], self.mask))

    def errors_and_gradient(self, form: Form, hidden: Activities) -> tuple[Activities, Activities]:
        """Errors and the per-sample gradient dF_b/dz, a segment at a time from the output down."""
        errors, pull = self.segment(form, hidden, len(hidden))
        all_errors, gradient = [errors], []
        for index in reversed(range(len(hidden))):
            assert pull is not None  # only the first layer has none
            above = pull[0]
            errors, pull = self.segment(form, hidden, index)
            all_errors.append(errors)
            gradient.append(segment_gradient(errors, pull, above))
        return tuple(reversed(all_errors)), tuple(reversed(gradient))

    def energy_and_gradient(self, form: Form, hidden: Activities) -> tuple[Float[Array, ""], Activities]:
        """Energy summed over the batch and its per-sample gradient dF_b/dz."""
        errors, gradient = self.errors_and_gradient(form, hidden)
        return summed_energy(errors), gradient

    def segment(self, form: Form, hidden: Activities, index: int) -> tuple[Array, Array | None]:
        """Errors of a segment and their pull on its inputs; None for the first layer, whose input does not move."""
        deviations = form == "deviations"
        if index == len(hidden):
            z = (self.y - self.at.activities[-1][0] if deviations else self.y)[None]
        else:
            z = hidden[index]
        if index == 0 and self.network.segments[0].depth == 1:
            # Its prediction is the forward pass, whatever the activities are: no product.
            return (z if deviations else z - self.at.activities[0]), None
        inputs = jnp.zeros_like(self.x) if deviations else self.x
        below = inputs if index == 0 else hidden[index - 1][-1]
        mask = self.mask if index == len(hidden) else None
        return segment_errors(self.network, self.at if deviations else None, index, below, z, mask)

    def activities(self, form: Form, hidden: Activities) -> Activities:
        """Activities z_1..z_L with the output at y, masked or not."""
        free = hidden if form == "activities" else jax.tree.map(jnp.add, self.at.activities[:-1], hidden)
        return (*free, self.y[None])


class Equilibrium(eqx.Module):
    """Where a solver stopped. `residual` is the root mean square of dF_b/dz over hidden units and samples.

    `converged`: it is not above the solver's `tol`; never where a solve ended on its energy or its steps only.
    """

    activities: Activities
    errors: Activities
    n_steps: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    halvings: Int[Array, ""]


class AbstractInference(eqx.Module):
    """A solver; its fields are its hyperparameters. Fields of one name mean the same in all of them, and are checked here.

    `tol` ends a solve on the residual: it has converged. `energy_tol` ends it where the energy has stopped falling, for
    networks with kinks (relu), where no gradient gets small: it has converged only if the residual is not above `tol`.
    Solvers that step in activities look at 64, 128, 256, ... steps, at what the second half of them has gained (`stepped`).
    """

    def __check_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, null = getattr(self, field.name), " or null" if field.default is None else ""
            if field.name in ("max_steps", "max_halvings") and value < 0:
                raise ValueError(f"{field.name} must not be negative, not {value}")
            if field.name == "n_eigen_steps" and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {value}")
            if field.name in ("activity_lr", "tol", "energy_tol") and value is not None and not value > 0:  # NaN is not
                raise ValueError(f"{field.name} must be positive{null}, not {value}")

    @abc.abstractmethod
    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        """Activities at (or on the way to) an equilibrium, with the residual that says which."""

    @abc.abstractmethod
    def forward_passes(self) -> float:
        """Matrix products of a solve in units of one forward pass: what the cost of a run is estimated from."""

    def check(self, network: Network) -> None:
        """Raise ValueError where this solver cannot work on a network; called before anything is compiled."""
        if not isinstance(network.output, Squared):
            raise ValueError(
                f"inference: this solver is for squared errors; with output={network.output.name} choose gradient_descent, "
                "with max_halvings=0"
            )


def segment_gradient(errors: Array, pull: Array | None, above: Float[Array, "..."]) -> Float[Array, "depth ..."]:
    """Gradient dF_b/dz_l = e_l - J_{l+1}^T e_{l+1} of a segment; `above` is the pull of the layer on top of it."""
    if pull is None or errors.shape[0] == 1:
        return errors - above[None]
    return errors - jnp.concatenate([pull[1:], above[None]])


def root_mean_square(tree: Activities) -> Float[Array, ""]:
    """Root mean square over all entries of all arrays."""
    total = jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in tree]))
    return jnp.sqrt(total / sum(leaf.size for leaf in tree))
