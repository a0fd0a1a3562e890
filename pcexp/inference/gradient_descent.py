"""Gradient descent on activities, all layers at once."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pcexp.inference.base import (
    AbstractInference,
    Equilibrium,
    Form,
    InferenceProblem,
    root_mean_square,
    segment_gradient,
)
from pcexp.network import Activities, Network


class GradientDescent(AbstractInference):
    """Gradient descent z <- z - beta dF_b/dz from the forward pass, for `max_steps` steps (thesis eq. 2.4).

    `activity_lr` is per sample: results do not depend on the batch size. With `max_halvings` h > 0 the published
    schedule of chapter 4 holds: beta is halved when the batch's energy rises, the halved step stays for the rest of this
    inference, and rise h + 1 ends it. `tol` > 0 (on the residual) ends inference early.

    With `wavefront`, descent in deviations skips the segments that no signal has reached yet.
    """

    activity_lr: float
    max_steps: int
    form: Form = "deviations"
    max_halvings: int = 0
    tol: float | None = None
    wavefront: bool = True

    def __check_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps must not be negative, not {self.max_steps}")
        if self.max_halvings < 0:
            raise ValueError(f"max_halvings must not be negative, not {self.max_halvings}")

    def solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None = None) -> Equilibrium:
        start = problem.start(self.form)
        if self.max_halvings == 0 and self.tol is None:
            hidden, n_steps, halvings = self._fixed(problem, start)
        else:
            hidden, n_steps, halvings = self._adaptive(problem, start)
        errors, gradient = problem.errors_and_gradient(self.form, hidden)
        residual = root_mean_square(gradient)
        return Equilibrium(
            activities=problem.activities(self.form, hidden),
            errors=errors,
            n_steps=n_steps,
            residual=residual,
            converged=residual <= (0.0 if self.tol is None else self.tol),
            halvings=jnp.minimum(halvings, self.max_halvings),  # the last rise ended inference, it halved nothing
        )

    def forward_passes(self) -> float:
        return 2.0 * (self.max_steps + 1)

    def check(self, network: Network) -> None:
        if self.max_halvings:  # they look at the energy
            super().check(network)

    def _fixed(self, problem: InferenceProblem, start: Activities) -> tuple[Activities, Int[Array, ""], Int[Array, ""]]:
        tops = list(itertools.accumulate(segment.depth for segment in problem.network.segments))
        # Before step t only the last t hidden layers have left the forward pass: a segment below them has no error and no
        # pull, exactly. In activities there is round-off instead, and every segment works on it, as in the published runs.
        skipping = self.wavefront and self.form == "deviations"

        def step(t: Int[Array, ""] | int, hidden: Activities) -> Activities:
            moved: list[Array] = []
            _, pull = problem.segment(self.form, hidden, len(hidden))
            for index in reversed(range(len(hidden))):
                assert pull is not None
                if not skipping or index == 0:
                    new, pull = self._step(problem, hidden, index, pull[0])
                else:
                    reached = t >= tops[-1] - tops[index]
                    work = functools.partial(self._step, problem, hidden, index)
                    new, pull = lax.cond(reached, work, functools.partial(self._arrival, hidden, index), pull[0])
                moved.append(new)
            return tuple(reversed(moved))

        return lax.fori_loop(0, self.max_steps, step, start), jnp.array(self.max_steps), jnp.array(0)

    def _step(
        self, problem: InferenceProblem, hidden: Activities, index: int, above: Float[Array, "..."]
    ) -> tuple[Array, Array | None]:
        """One step of a segment's activities, and the pull on its inputs; `above` is the pull on its own top layer."""
        errors, pull = problem.segment(self.form, hidden, index)
        return hidden[index] - self.activity_lr * segment_gradient(errors, pull, above), pull

    def _arrival(self, hidden: Activities, index: int, above: Float[Array, "..."]) -> tuple[Array, Array]:
        """The same where no layer of the segment has moved: its top one may leave zero now, and it pulls on nothing."""
        still, below = hidden[index], hidden[index - 1][-1]
        pull = jnp.zeros((still.shape[0], *below.shape), below.dtype)
        return still.at[-1].set(still[-1] - self.activity_lr * -above), pull

    def _adaptive(
        self, problem: InferenceProblem, start: Activities
    ) -> tuple[Activities, Int[Array, ""], Int[Array, ""]]:
        State = tuple[Activities, Array, Array, Array, Array]

        def unfinished(state: State) -> Array:
            _, n_steps, _, halvings, stop = state
            return (n_steps < self.max_steps) & (halvings <= self.max_halvings) & ~stop

        def step(state: State) -> State:
            hidden, n_steps, last_energy, halvings, _ = state
            energy, gradient = problem.energy_and_gradient(self.form, hidden)
            if self.max_halvings:
                halvings = halvings + (energy > last_energy)
            stop = halvings > self.max_halvings if self.max_halvings else jnp.array(False)
            if self.tol is not None:
                stop = stop | (root_mean_square(gradient) <= self.tol)
            # 2^-halvings keeps the step size itself a traced constant of the solve.
            moved = _descend(hidden, gradient, self.activity_lr * jnp.exp2(-halvings.astype(energy.dtype)))
            hidden = jax.tree.map(lambda old, new: jnp.where(stop, old, new), hidden, moved)
            return hidden, n_steps + ~stop, energy, halvings, stop

        infinite = jnp.full((), jnp.inf, start[0].dtype)
        state = (start, jnp.array(0), infinite, jnp.array(0), jnp.array(False))
        hidden, n_steps, _, halvings, _ = lax.while_loop(unfinished, step, state)
        return hidden, n_steps, halvings


def _descend(hidden: Activities, gradient: Activities, step_size: Float[Array, ""] | float) -> Activities:
    return jax.tree.map(lambda z, g: z - step_size * g, hidden, gradient)
