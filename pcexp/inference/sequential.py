"""Gauss-Seidel sweeps: gradient descent on activities, one layer after the other from the output down."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from pcexp.energy import weighted
from pcexp.inference.base import AbstractInference, Equilibrium
from pcexp.inference.steps import stepped
from pcexp.model.network import Activities
from pcexp.model.segments import over_layers
from pcexp.problem import Form, InferenceProblem


class Sequential(AbstractInference):
    """Sweeps z_l <- z_l - beta dF_b/dz_l for l = H, ..., 1, each at the z_{l+1} just updated (SeqIL, Alonso et al. 2024).

    A step is one sweep. From the forward pass the first one gives every layer an error, of order beta^(L-l), where
    simultaneous steps need H. An update of z_l changes mu_{l+1}, whose layer has had its turn, and not mu_l: so errors are
    taken once a sweep, of all layers together, and carried along. A sweep costs a forward pass and a backward pass that
    goes down layer by layer, with another product a layer where phi' is taken of one (post-activation); weights are read
    where they lie. `tol` on the residual adds one gradient of all layers a sweep.
    """

    activity_lr: float
    max_steps: int
    form: Form = "deviations"
    tol: float | None = None
    energy_tol: float | None = None

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        return stepped(self, problem, lambda at, memory: (self._swept(problem, at.hidden), memory), None)[0]

    def forward_passes(self) -> float:
        return (3.0 if self.tol is None else 5.0) * self.max_steps + 2.0

    def _swept(self, problem: InferenceProblem, hidden: Activities) -> Activities:
        """Free variables after one sweep: gradients dF_b/dz_l, each taken when its layer's turn has come."""
        network = problem.network
        activities = problem.activities(self.form, hidden)
        errors = weighted(network, problem.errors(self.form, hidden))
        below, gradients = network.inputs(problem.x, activities), []
        pulled = jnp.zeros_like(activities[-1][0])
        for index, segment in reversed(list(enumerate(network.segments))):
            moved, own = network.input_axes[index], network.batch_axes[index]
            # Errors come weighted, p_l e_l: once z_l has moved by -beta g they have changed by -p_l beta g. The output stays.
            rate = 0.0 if index == len(hidden) else self.activity_lr
            rates = rate * jnp.asarray(network.precisions_of(index), errors[index].dtype)

            def layer(pulled: Array, one: Any, moved: int = moved, own: int = own) -> tuple[Array, Array]:
                parameters, below, e, rate = one
                gradient = e - pulled
                predict = jax.tree.map(lambda p: p[None], parameters).predict
                _, pull = jax.vjp(jax.vmap(predict, moved, own), below[None])
                return pull((e - rate * gradient)[None])[0][0], gradient

            pulled, gradient = over_layers(layer, pulled, (segment, below[index], errors[index], rates), reverse=True)
            gradients.append(gradient)
        gradient = problem.projected(tuple(reversed(gradients))[:-1])
        return jax.tree.map(lambda z, g: z - self.activity_lr * g, hidden, gradient)
