"""pcx at its best: forward pass, inference and weight update in one jitted call, as its tutorials write it.

Variants: `scan`, inference in one `pxf.scan`; `unrolled`, its T steps written out by a Python loop.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pcx
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu
from peer_worker import Problem

VARIANTS = ("scan", "unrolled")
BATCHED = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))
PHI = {"tanh": jnp.tanh, "linear": lambda z: z}


def free() -> pxu.M:
    """Mask of the activities that move. A new one each time: `to` changes the mask that it is called on."""
    return pxu.M_hasnot(pxc.VodeParam, frozen=True)


class Model(pxc.EnergyModule):
    """The problem's network, one vode a layer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.kinds = pcx.static(problem.layers)
        self.layers = [pxnn.Linear(w.shape[1], w.shape[0], bias=False) for w in problem.weights]
        self.vodes = [pxc.Vode() for _ in problem.weights]
        self.vodes[-1].h.frozen = True

    def __call__(self, x: jax.Array, y: jax.Array | None) -> None:
        for kind, layer, vode in zip(self.kinds.get(), self.layers, self.vodes, strict=True):
            mu = PHI[kind.after](kind.premultiplier * layer(PHI[kind.before](x)))
            x = vode(mu + x if kind.skip else mu)
        if y is not None:
            self.vodes[-1].set("h", y)


@pxf.vmap(BATCHED, in_axes=(0, 0), out_axes=0)
def forward(x: jax.Array, y: jax.Array, *, model: Model) -> None:
    """Forward pass, the output clamped."""
    model(x, y)


@pxf.vmap(BATCHED, in_axes=(0,), out_axes=None, axis_name="batch")
def energy(x: jax.Array, *, model: Model) -> jax.Array:
    """Energy, averaged over the batch."""
    model(x, None)
    return jax.lax.pmean(model.energy().sum(), "batch")


class Step:
    """One training step a call."""

    def __init__(self, problem: Problem, variant: str) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant} of pcx: valid are {', '.join(VARIANTS)}")
        self.problem = problem
        self.x, self.y = jnp.asarray(problem.x), jnp.asarray(problem.y)
        batch = problem.x.shape[1]

        def infer(x: jax.Array, *, model: Model, optim_h: pxu.Optim) -> None:
            with pxu.step(model, clear_params=pxc.VodeParam.Cache):
                _, g = pxf.value_and_grad(free().to([False, True]))(energy)(x, model=model)
            optim_h.step(model, g["model"])

        @pxf.jit()
        def train(x: jax.Array, y: jax.Array, *, model: Model, optim_w: pxu.Optim, optim_h: pxu.Optim) -> None:
            model.train()
            with pxu.step(model, (pxc.STATUS.INIT, None), clear_params=pxc.VodeParam.Cache):
                forward(x, y, model=model)
            if variant == "unrolled":
                for _ in range(problem.steps):
                    infer(x, model=model, optim_h=optim_h)
            else:

                def once(_: jax.Array, x: jax.Array, *, model: Model, optim_h: pxu.Optim) -> tuple:
                    infer(x, model=model, optim_h=optim_h)
                    return x, None

                pxf.scan(once, length=problem.steps)(x, model=model, optim_h=optim_h)
            with pxu.step(model, clear_params=pxc.VodeParam.Cache):
                _, g = pxf.value_and_grad(pxu.M(pxnn.LayerParam).to([False, True]))(energy)(x, model=model)
            optim_w.step(model, g["model"])

        self.train = train
        # The energy is a mean over the batch, the step size one per sample.
        self.activity_lr = problem.activity_lr * batch
        self.start("adam", problem.learning_rate)

    def start(self, optimiser: str, learning_rate: float) -> None:
        self.model = Model(self.problem)
        for layer, weight in zip(self.model.layers, self.problem.weights, strict=True):
            layer.nn.weight.set(jnp.asarray(weight))
        self.done = 0
        with pxu.step(self.model, (pxc.STATUS.INIT, None), clear_params=pxc.VodeParam.Cache):
            forward(self.x[0], self.y[0], model=self.model)
        self.optim_h = pxu.Optim(lambda: optax.sgd(self.activity_lr), free()(self.model))
        rule = {"adam": optax.adam, "sgd": optax.sgd}[optimiser]
        self.optim_w = pxu.Optim(lambda: rule(learning_rate), pxu.M(pxnn.LayerParam)(self.model))

    def run(self, n: int) -> None:
        for _ in range(n):
            i = self.done % len(self.x)
            self.train(self.x[i], self.y[i], model=self.model, optim_w=self.optim_w, optim_h=self.optim_h)
            self.done += 1
        jax.block_until_ready([layer.nn.weight.get() for layer in self.model.layers])

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(layer.nn.weight.get()) for layer in self.model.layers]
