"""The gradient flow of the activities, by a solver of ordinary differential equations."""

from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from pcexp.inference.base import STEPS, TOLERANCE, AbstractInference, Equilibrium, root_mean_square, stopped
from pcexp.model.network import Activities
from pcexp.problem import Form, InferenceProblem


class ODE(AbstractInference):
    """Flow dz/dt = -dF_b/dz from the forward pass to the time `horizon`, by Heun's or Euler's method (diffrax).

    Time is per sample: an energy averaged over B examples and without the 1/2, as published, flows 2/B times as fast, so
    that its horizon t is 2t/B here. Steps are of the constant `step_size`; or, by Heun's method, as long as a PID controller
    allows whose rtol and atol are `step_tol`. That one looks at the root mean square of a step's error over all units and the
    whole batch, relative to the size of the variables of `form`: its steps, and with them an example's activities, within
    the tolerance, depend on who else is in the batch, as they did where they were published.

    An explicit method is stable up to steps of 2 / Lmax, Lmax the largest eigenvalue of the activity Hessian. The
    controller goes beyond where errors are below its tolerance, and then hovers about the equilibrium: `longest_step` keeps it
    from that. With `tol` the flow ends before the horizon where it is at rest; looking costs one gradient a step.
    """

    horizon: float
    max_steps: int
    method: Literal["heun", "euler"] = "heun"
    step_size: float | None = None
    step_tol: float = 1e-3
    longest_step: float | None = None
    form: Form = "deviations"
    tol: float | None = None

    def __check_init__(self) -> None:
        if self.method == "euler" and self.step_size is None:
            raise ValueError(
                "step_size must be a number with method=euler, whose steps have no error to control them by"
            )

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        limit = 0.0 if self.tol is None else self.tol

        def rate(t: Any, hidden: Activities, _: Any) -> Activities:
            return jax.tree.map(jnp.negative, problem.errors_and_gradient(self.form, hidden)[1])

        def at_rest(t: Any, hidden: Activities, args: Any, **_: Any) -> Bool[Array, ""]:
            # An event is shown the activities and not their rate, which is what has to vanish: it is evaluated here.
            return root_mean_square(rate(t, hidden, args)) <= limit

        start = problem.start(self.form)
        flow = diffrax.diffeqsolve(
            diffrax.ODETerm(rate),
            diffrax.Heun() if self.method == "heun" else diffrax.Euler(),
            t0=0.0,
            t1=self.horizon,
            dt0=self.step_size,
            y0=start,
            stepsize_controller=diffrax.ConstantStepSize()
            if self.step_size is not None
            else diffrax.PIDController(rtol=self.step_tol, atol=self.step_tol, dtmax=self.longest_step),
            event=None if self.tol is None else diffrax.Event(at_rest),
            max_steps=self.max_steps,
            adjoint=diffrax.ForwardMode(),  # a plain loop: nothing is differentiated
            throw=False,  # steps used up is an outcome: the residual says so
        )
        assert flow.ys is not None
        hidden = jax.tree.map(lambda saved: saved[-1], flow.ys)
        by = jnp.where(flow.result == diffrax.RESULTS.event_occurred, TOLERANCE, STEPS)
        return stopped(problem, self.form, hidden, n_steps=flow.stats["num_steps"], tol=self.tol, by=by)

    def forward_passes(self) -> float:
        # How many steps a controller takes is not known before; they are stable up to 2 / Lmax, here of Lmax = 10.
        steps = min(self.max_steps, self.horizon / (self.step_size or min(self.longest_step or 0.2, 0.2)))
        evaluations = (2.0 if self.method == "heun" else 1.0) + (self.tol is not None)
        return 2.0 * (evaluations * steps + 1)
