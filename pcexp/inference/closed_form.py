"""The exact equilibrium of a linear network."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pcexp.inference.base import AbstractInference, Equilibrium, InferenceProblem, root_mean_square
from pcexp.model.network import Network
from pcexp.theory.equilibrated import equilibrium


class ClosedForm(AbstractInference):
    """Exact equilibrium z* of a linear network: errors e_l = G_l^T S^-1 (y - yhat) (theorem 3.1), one pass up and down."""

    def check(self, network: Network) -> None:
        if not network.is_linear:
            raise ValueError(
                "inference=closed_form is exact for linear networks only; this network is not linear. "
                "Choose network.activation=linear, or a solver that works here: inference=gradient_descent, momentum, adam, "
                "sequential, ode or error_descent"
            )

    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        found = equilibrium(problem.network, problem.at, problem.y, mask=problem.mask)
        hidden, errors = found.deviations, found.errors
        _, gradient = problem.energy_and_gradient("deviations", hidden)
        residual = root_mean_square(gradient)
        return Equilibrium(
            activities=problem.activities("deviations", hidden),
            errors=errors,
            n_steps=jnp.array(1),
            residual=residual,
            # Direct solve: what is left is round-off, a few thousand ulps of the errors at most.
            converged=residual <= 1e4 * jnp.finfo(residual.dtype).eps * (root_mean_square(errors) + 1),
            halvings=jnp.array(0),
        )

    def forward_passes(self) -> float:
        return 4.0
