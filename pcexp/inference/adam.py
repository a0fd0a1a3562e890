"""Adam on activities."""

import optax
from jaxtyping import PRNGKeyArray

from pcexp.inference.base import AbstractInference, Equilibrium
from pcexp.inference.steps import Point, stepped
from pcexp.model.network import Activities
from pcexp.problem import Form, InferenceProblem


class AdamInference(AbstractInference):
    """Adam in z (or d), z <- z - beta m / (sqrt(v) + eps), with dF_b/dz as its gradient (thesis figure C.8).

    Its moments are each unit's own, so an example's steps do not depend on the batch. A step is about `activity_lr` however
    small the gradient is, down to `eps`: in float32 and form "activities" it walks on round-off, and near an equilibrium it
    hovers, unless the steps beta / eps that it is left with where gradients are below `eps` are stable: beta / eps <
    2 (1 + b1) / (1 - b1) / Lmax, with Lmax the largest eigenvalue of the activity Hessian.
    """

    activity_lr: float
    max_steps: int
    form: Form = "deviations"
    tol: float | None = None
    energy_tol: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def _solve(self, problem: InferenceProblem, *, key: PRNGKeyArray | None) -> Equilibrium:
        adam = optax.adam(self.activity_lr, b1=self.b1, b2=self.b2, eps=self.eps)

        def step(at: Point, memory: optax.OptState) -> tuple[Activities, optax.OptState]:
            updates, memory = adam.update(at.gradient, memory)
            return optax.apply_updates(at.hidden, updates), memory

        return stepped(self, problem, step, adam.init(problem.start(self.form)))[0]

    def forward_passes(self) -> float:
        return 2.0 * (self.max_steps + 1)
