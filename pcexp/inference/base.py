"""What every inference solver returns, and why it stopped."""

import abc
import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pcexp.model.checks import check_choices
from pcexp.model.network import Activities, Network
from pcexp.problem import Form, InferenceProblem

STOPPED_BY = ("steps", "tolerance", "energy", "given up", "not finite", "risen")
"""What a solve ended on, by its place here, which records keep: all its steps, the residual, an energy that has stopped falling, a schedule's end, or numbers without value.

"risen" stands in the place of all but the residual where the energy at the end is above that at the start."""
STEPS, TOLERANCE, ENERGY, GIVEN_UP, NOT_FINITE, RISEN = range(len(STOPPED_BY))

RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("max_steps", "max_halvings"), lambda value: value >= 0, "not be negative"),
    (("n_eigen_steps",), lambda value: value >= 1, "be at least 1"),
    (("activity_lr", "tol", "energy_tol", "eps"), lambda value: 0 < value < math.inf, "be positive"),
    (("horizon", "step_size", "step_tol", "longest_step"), lambda value: 0 < value < math.inf, "be positive"),
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
        """Whether the residual, as the solver saw it, is not above its `tol`; never where it ended on its energy or steps only.

        `residual` is that of the same point computed once more: it may be above a `tol` that was met, by round-off.
        """
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
    """What a solver returns that ends at `hidden`: `by` its tolerance, also where it did not look and the residual meets it.

    `errors` are the solver's own, where it has them without the round-off of a subtraction.
    """
    found, gradient = problem.errors_and_gradient(form, hidden)
    errors = found if errors is None else errors
    residual = root_mean_square(gradient)
    energy = problem.summed_energy(form, hidden, errors)
    start = problem.start(form)
    before = problem.summed_energy(form, start, problem.errors(form, start))
    reason = jnp.where(residual <= (0.0 if tol is None else tol), TOLERANCE, by)
    reason = jnp.where((reason != TOLERANCE) & ~not_above(energy, before), RISEN, reason)
    return Equilibrium(
        activities=problem.activities(form, hidden),
        errors=errors,
        energy=energy / problem.y.shape[-1],
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

    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        """Activities at (or on the way to) an equilibrium, with the residual that says which. Raises ValueError as `check` does."""
        self.check(problem.network if problem.free is None else problem.network.above_prior)
        return self._solve(problem, key=key)

    @abc.abstractmethod
    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        """What `solve` returns, of a problem that this solver can work on."""

    @abc.abstractmethod
    def forward_passes(self) -> float:
        """Matrix products of a solve in units of one forward pass: what the cost of a run is estimated from."""

    def check(self, network: Network) -> None:
        """Raise ValueError where this solver cannot work on a network; called before anything is compiled."""


def not_above(energy: Float[Array, "*batch"], other: Float[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """Whether an energy is not above another but by the round-off of a sum; one that is no number is above all."""
    return energy <= other + 32 * jnp.finfo(energy.dtype).eps * jnp.abs(other)


def root_mean_square(tree: Activities) -> Float[Array, ""]:
    """Root mean square over all entries of all arrays."""
    total = jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in tree]))
    return jnp.sqrt(total / sum(leaf.size for leaf in tree))
