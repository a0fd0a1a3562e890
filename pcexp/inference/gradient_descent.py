"""Gradient descent on activities, all layers at once."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pcexp.inference.base import AbstractInference, Equilibrium, stopped
from pcexp.inference.steps import Point, stepped
from pcexp.model.network import Activities
from pcexp.problem import Form, InferenceProblem


class _Schedule(NamedTuple):
    """The batch's energy before the last step, and how often it has risen."""

    last_energy: Float[Array, ""]
    halvings: Int[Array, ""]

    def seen(self, energy: Float[Array, ""]) -> "_Schedule":
        return _Schedule(energy, self.halvings + (energy > self.last_energy))


class GradientDescent(AbstractInference):
    """Gradient descent z <- z - beta dF_b/dz from the forward pass, for `max_steps` steps (thesis eq. 2.4).

    `activity_lr` is per sample: results do not depend on the batch size. With `max_halvings` h > 0 the published
    schedule of chapter 4 holds: beta is halved when the batch's energy rises, the halved step stays for the rest of this
    inference, and rise h + 1 ends it. `tol` (on the residual) and `energy_tol` end inference early. Steps are taken whatever
    they do to the energy: that it ends above its start is said by how it stopped.

    With `wavefront`, descent in deviations from the forward pass skips the segments that no signal has reached yet.
    """

    activity_lr: float
    max_steps: int
    form: Form = "deviations"
    max_halvings: int = 0
    tol: float | None = None
    energy_tol: float | None = None
    wavefront: bool = True

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        if not self.max_halvings:
            if self.tol is None and self.energy_tol is None:
                hidden = self._fixed(problem, problem.start(self.form))
                equilibrium = stopped(problem, self.form, hidden, n_steps=jnp.array(self.max_steps), tol=None)
            else:
                equilibrium, _ = stepped(self, problem, self._descended, None)
            return dataclasses.replace(equilibrium, stats={"halvings": jnp.array(0)})
        schedule = _Schedule(jnp.full((), jnp.inf, problem.y.dtype), jnp.array(0))
        equilibrium, schedule = stepped(
            self, problem, self._descended, schedule, given_up=lambda schedule: schedule.halvings > self.max_halvings
        )
        # The last rise ended inference, it halved nothing.
        return dataclasses.replace(equilibrium, stats={"halvings": jnp.minimum(schedule.halvings, self.max_halvings)})

    def forward_passes(self) -> float:
        return 2.0 * (self.max_steps + 1)

    def _fixed(self, problem: InferenceProblem, start: Activities) -> Activities:
        """Free variables after `max_steps` steps of one size."""
        tops = list(itertools.accumulate(segment.depth for segment in problem.network.segments))
        # Before step t only the last t hidden layers have left the forward pass: a segment below them has no error and no
        # pull, exactly. In activities there is round-off instead, and every segment works on it, as in the published runs.
        skipping = self.wavefront and self.form == "deviations" and problem.initial is None

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

        return lax.fori_loop(0, self.max_steps, step, start)

    def _step(
        self, problem: InferenceProblem, hidden: Activities, index: int, above: Array
    ) -> tuple[Array, Array | None]:
        """One step of a segment's activities, and the pull on its inputs; `above` is the pull on its own top layer."""
        errors, pull = problem.segment(self.form, hidden, index)
        return hidden[index] - self.activity_lr * problem.segment_gradient(index, errors, pull, above), pull

    def _arrival(self, hidden: Activities, index: int, above: Float[Array, "..."]) -> tuple[Array, Array]:
        """The same where no layer of the segment has moved: its top one may leave zero now, and it pulls on nothing."""
        still, below = hidden[index], hidden[index - 1][-1]
        pull = jnp.zeros((still.shape[0], *below.shape), below.dtype)
        return still.at[-1].set(still[-1] - self.activity_lr * -above), pull

    def _descended(self, at: Point, schedule: _Schedule | None) -> tuple[Activities, _Schedule | None]:
        """One step of all layers, halved as often as the energy has risen."""
        if schedule is None:
            step_size: Float[Array, ""] | float = self.activity_lr
        else:
            schedule = schedule.seen(at.energy)
            # 2^-halvings keeps the step size itself a traced constant of the solve.
            step_size = self.activity_lr * jnp.exp2(-schedule.halvings.astype(at.energy.dtype))
        return jax.tree.map(lambda z, g: z - step_size * g, at.hidden, at.gradient), schedule
