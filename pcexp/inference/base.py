"""What every inference solver returns, and why it stopped."""

import abc
import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.energy import summed_energy
from pcexp.model.checks import check_choices
from pcexp.model.network import Activities, Network
from pcexp.model.output import Squared
from pcexp.problem import Form, InferenceProblem

STOPPED_BY = ("steps", "tolerance", "energy", "given up", "not finite")
"""What a solve ended on: all its steps, the residual, an energy that has stopped falling, a schedule's end, or numbers without value."""
STEPS, TOLERANCE, ENERGY, GIVEN_UP, NOT_FINITE = range(len(STOPPED_BY))

RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("max_steps", "max_halvings"), lambda value: value >= 0, "not be negative"),
    (("n_eigen_steps",), lambda value: value >= 1, "be at least 1"),
    (("activity_lr", "tol", "energy_tol", "eps"), lambda value: value > 0, "be positive"),
    (("horizon", "step_size", "step_tol", "longest_step"), lambda value: value > 0, "be positive"),
    (("b1", "b2", "momentum"), lambda value: 0 <= value < 1, "be at least 0 and below 1"),
)
"""What fields of these names have to be, in every solver."""


class Equilibrium(eqx.Module):
    """Where a solver stopped, and why (an index of STOPPED_BY).

    `energy` is F, averaged over the batch; `residual` the root mean square of dF_b/dz over the units of layers that have free
    ones (zero where they are clamped) and samples. `stats` has what one solver alone can say.
    """

    activities: Activities
    errors: Activities
    energy: Float[Array, ""]
    residual: Float[Array, ""]
    n_steps: Int[Array, ""]
    stopped_by: Int[Array, ""]
    stats: dict[str, Array]

    @property
    def converged(self) -> Bool[Array, "*lanes"]:
        """Whether the residual is not above the solver's `tol`; never where a solve ended on its energy or its steps only."""
        return self.stopped_by == TOLERANCE


def stopped(
    problem: InferenceProblem,
    form: Form,
    hidden: Activities,
    *,
    n_steps: Int[Array, ""],
    tol: float | Float[Array, ""] | None,
    by: Int[Array, ""] | int = STEPS,
    errors: Activities | None = None,
) -> Equilibrium:
    """What a solver returns that ends at `hidden`: by its tolerance if the residual there is not above it.

    `errors` are the solver's own, where it has them without the round-off of a subtraction.
    """
    found, gradient = problem.errors_and_gradient(form, hidden)
    errors = found if errors is None else errors
    residual = root_mean_square(gradient)
    energy = summed_energy(problem.network, errors) / problem.y.shape[-1]
    reason = jnp.where(residual <= (0.0 if tol is None else tol), TOLERANCE, by)
    return Equilibrium(
        activities=problem.activities(form, hidden),
        errors=errors,
        energy=energy,
        residual=residual,
        n_steps=n_steps,
        stopped_by=jnp.where(jnp.isfinite(residual) & jnp.isfinite(energy), reason, NOT_FINITE),
        stats={},
    )


class AbstractInference(eqx.Module):
    """A solver; its fields are its hyperparameters. Fields of one name mean the same in all of them, and are checked here.

    `tol` ends a solve on the residual: it has converged. `energy_tol` ends it where the energy has stopped falling, for
    networks with kinks (relu), where no gradient gets small: it has converged only if the residual is not above `tol`.
    """

    def __check_init__(self) -> None:
        check_choices(self)
        for field in dataclasses.fields(self):
            value, nullable = getattr(self, field.name), "None" in str(field.type)
            null = " or null" if nullable else ""
            for names, inside, valid in RANGES:
                if field.name in names and not (nullable if value is None else inside(value)):  # NaN is not
                    raise ValueError(f"{field.name} must {valid}{null}, not {value}")

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


def root_mean_square(tree: Activities) -> Float[Array, ""]:
    """Root mean square over all entries of all arrays."""
    total = jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in tree]))
    return jnp.sqrt(total / sum(leaf.size for leaf in tree))
