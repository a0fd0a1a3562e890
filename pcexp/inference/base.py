"""What every inference solver is given and what it returns."""

import abc
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.energy import ForwardPass, deviation_errors, forward_pass, prediction_errors, summed_energy
from pcexp.network import Activities, Network

Form = Literal["activities", "deviations"]
"""The variables of inference: z itself (as published) or d = z - zhat (no cancellation near the forward pass)."""


class InferenceProblem(eqx.Module):
    """Energy of the free activities of a network between a clamped input x and a clamped output y."""

    network: Network
    x: Float[Array, "..."]
    y: Float[Array, "d_out batch"]
    at: ForwardPass

    @classmethod
    def from_batch(cls, network: Network, x: Float[Array, "..."], y: Float[Array, "d_out batch"]) -> "InferenceProblem":
        """The problem of one batch, with its forward pass."""
        return cls(network, x, y, forward_pass(network, x))

    def start(self, form: Form) -> Activities:
        """Free variables at the forward pass: zhat, or deviations of exactly zero."""
        hidden = self.at.activities[:-1]
        return hidden if form == "activities" else jax.tree.map(jnp.zeros_like, hidden)

    def errors(self, form: Form, hidden: Activities) -> Activities:
        """Prediction errors of all layers when the free variables are `hidden`."""
        if form == "activities":
            return prediction_errors(self.network, self.x, (*hidden, self.y[None]))
        output = (self.y - self.at.activities[-1][0])[None]
        return deviation_errors(self.network, self.at, (*hidden, output))

    def energy_and_gradient(self, form: Form, hidden: Activities) -> tuple[Float[Array, ""], Activities]:
        """Energy summed over the batch and its per-sample gradient dF_b/dz."""
        return jax.value_and_grad(lambda h: summed_energy(self.errors(form, h)))(hidden)

    def activities(self, form: Form, hidden: Activities) -> Activities:
        """Activities z_1..z_L with the output clamped."""
        free = hidden if form == "activities" else jax.tree.map(jnp.add, self.at.activities[:-1], hidden)
        return (*free, self.y[None])


class Equilibrium(eqx.Module):
    """Where a solver stopped. `residual` is the root mean square of dF_b/dz over hidden units and samples."""

    activities: Activities
    errors: Activities
    n_steps: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    halvings: Int[Array, ""]


class AbstractInference(eqx.Module):
    """A solver; its fields are its hyperparameters."""

    @abc.abstractmethod
    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        """Activities at (or on the way to) an equilibrium, with the residual that says which."""

    @abc.abstractmethod
    def forward_passes(self) -> float:
        """Matrix products of a solve in units of one forward pass: what the cost of a run is estimated from."""

    def check(self, network: Network) -> None:
        """Raise ValueError where this solver cannot work on a network; called before anything is compiled."""


def root_mean_square(tree: Activities) -> Float[Array, ""]:
    """Root mean square over all entries of all arrays."""
    total = jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in tree]))
    return jnp.sqrt(total / sum(leaf.size for leaf in tree))
