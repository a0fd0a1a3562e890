"""The exact equilibrium of a linear network."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pcexp.energy import ForwardPass, masked
from pcexp.inference.base import AbstractInference, Equilibrium, root_mean_square, stopped
from pcexp.model.network import Activities, Network
from pcexp.problem import InferenceProblem
from pcexp.theory.equilibrated import equilibrium, free_input


class ClosedForm(AbstractInference):
    """Exact equilibrium z* of a linear network: errors e_l = G_l^T S^-1 (y - yhat) / p_l (theorem 3.1), one pass up and down.

    It has converged where its residual is round-off, which a badly conditioned S makes larger.
    """

    def check(self, network: Network) -> None:
        if not network.is_linear:
            raise ValueError(
                "inference=closed_form is exact for linear networks only; this network is not linear. "
                "Choose network.activation=linear, or a solver that works here: inference=gradient_descent, momentum, adam, "
                "sequential, ode or error_descent"
            )

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        return exactly_at(problem, *self._solved(problem))

    def _solved(self, problem: InferenceProblem) -> tuple[Activities, Activities]:
        """Deviations of the hidden layers and errors of all."""
        network, y, mask = problem.network, problem.y, problem.mask
        if problem.free is None:
            found = equilibrium(network, problem.at, y, mask=mask)
            return found.deviations, found.errors
        above, at = network.above_prior, ForwardPass(problem.at.activities[1:], problem.at.references[1:])
        p0 = float(network.precisions_of(0)[0])
        moved = free_input(above, masked(y - at.activities[-1][0], mask), problem.free[0], p0, mask)
        found = equilibrium(above, at, y, mask=mask, moved=moved)
        return (moved[None], *found.deviations), (moved[None], *found.errors)

    def forward_passes(self) -> float:
        return 4.0


def exactly_at(problem: InferenceProblem, deviations: Activities, errors: Activities) -> Equilibrium:
    """The equilibrium at deviations and errors that were solved for; it has converged where no more than round-off is left."""
    # A few thousand ulps of the errors at most.
    tol = 1e4 * jnp.finfo(problem.y.dtype).eps * (root_mean_square(errors) + 1)
    return stopped(problem, "deviations", deviations, n_steps=jnp.array(1), tol=tol, errors=errors)
