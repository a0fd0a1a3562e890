"""Wrong shapes and words as a user of the library meets them, without the tests' type checker; prints what was said, as JSON."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from pcexp import energy, learning
from pcexp.data import Split
from pcexp.energy import Batch
from pcexp.evaluation import evaluate
from pcexp.inference import GradientDescent, InferenceProblem
from pcexp.model import Convolutional, FullyConnected, Standard
from pcexp.theory import equilibrated, hessian, saddles

D, K, B = 3, 2, 4
net = FullyConnected(5, 2, "linear").build(Standard(), (D,), K, key=jax.random.key(0))
zero = replace(net, segments=(*net.segments[:-1], replace(net.segments[-1], weight=jnp.zeros((1, K, 5)))))
square = FullyConnected(5, 2, "linear").build(Standard(), (B,), K, key=jax.random.key(0))
images = Convolutional((2,), (), "relu").build(Standard(), (4, 4, 1), K, key=jax.random.key(0))
x, y = jnp.ones((D, B)), jnp.ones((K, B))
at = energy.forward_pass(net, x)
pc = learning.PC(GradientDescent(0.1, 2), "batch_mean")

TAKE_BOTH = {
    "loss": lambda x, y: energy.loss(net, x, y),
    "loss of a known forward pass": lambda x, y: energy.loss_at(net, energy.forward_pass(net, x), y),
    "problem": lambda x, y: InferenceProblem.from_batch(net, Batch(x, y)),
    "problem without a batch": lambda x, y: InferenceProblem(net, x, y, energy.forward_pass(net, x)),
    "prediction errors": lambda x, y: energy.prediction_errors(net, x, (*at.activities[:-1], y[None])),
    "energy gradient": lambda x, y: energy.energy_gradient(net, x, (*at.activities[:-1], y[None]), at.activities),
    "BP": lambda x, y: learning.BP("batch_mean").gradient(net, Batch(x, y)),
    "PC": lambda x, y: pc.gradient(net, Batch(x, y)),
    "equilibrated": lambda x, y: learning.Equilibrated("batch_mean").gradient(net, Batch(x, y)),
    "equilibrated energy": lambda x, y: equilibrated.equilibrated_energy(net, x, y),
    "equilibrated gradient": lambda x, y: equilibrated.equilibrated_gradient(net, x, y),
    "free input": lambda x, y: equilibrated.free_input(net, y, x, 1.0),
    "Hessian of the loss": lambda x, y: hessian.zero_output_loss_hessian(net, x, y),
    "Hessian of F*": lambda x, y: hessian.zero_output_equilibrated_hessian(net, x, y),
    "spectra": lambda x, y: hessian.origin_spectra(net, x, y),
    "negative curvature": lambda x, y: saddles.negative_curvature(zero, x, y),
    "loss change": lambda x, y: saddles.loss_change(net, net, x, y),
    "F* change": lambda x, y: saddles.equilibrated_change(net, net, x, y),
    "fitted": lambda x, y: saddles.fitted(net, x, y),
    "evaluation": lambda x, y: evaluate(net, Split(np.asarray(x).T, np.asarray(y).T)),
}
WRONG = {
    "x transposed": (x.T, y),
    "x of one example": (x[:, 0], y),
    "x of another size": (x[:2], y),
    "x with another batch": (x[:, :3], y),
    "y transposed": (x, y.T),
    "y of one output, flat": (x, y[0]),
    "y of one row": (x, y[:1]),
    "y of one column": (x, y[:, :1]),
}


def said(call, *arguments):
    """What a ValueError says; None where nothing was refused."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    except TypeError:  # of JAX, deep inside
        return None
    return None


FOUND = {f"{name}: {kind}": said(call, *both) for name, call in TAKE_BOTH.items() for kind, both in WRONG.items()}
FOUND |= {
    f"{name}: {kind}": said(call, *both)
    for name, call in {
        "outputs": lambda x, _: energy.outputs(net, x),
        "forward pass": lambda x, _: energy.forward_pass(net, x),
        "rank-zero spectrum": lambda x, y: hessian.zero_rank_spectrum(zero, y),
    }.items()
    for kind, both in WRONG.items()
    if ("x" in kind.split()[0]) == (name != "rank-zero spectrum")
    and kind not in ("x with another batch", "y of one column")
}
FOUND |= {
    "square: y transposed": said(lambda: energy.loss(square, jnp.ones((B, B)), y.T)),
    "square: x of another batch": said(lambda: energy.loss(square, jnp.ones((B, B)), jnp.ones((K, 3)))),
    "mask: one row": said(lambda: energy.loss(net, x, y, y[:1])),
    "mask: transposed": said(lambda: InferenceProblem.from_batch(net, Batch(x, y, y.T))),
    "mask of F*: transposed": said(lambda: equilibrated.equilibrated_energy(net, x, y, mask=y.T)),
    "x_mask: one column": said(lambda: InferenceProblem.from_batch(net, Batch(x, y, None, x[:, :1]))),
    "images: batch last": said(lambda: energy.outputs(images, jnp.ones((4, 4, 1, 7)))),
    "images: flat": said(lambda: energy.outputs(images, jnp.ones((16, 7)))),
    "activation": said(lambda: FullyConnected(5, 2, "tanhh")),
    "activation of a convolutional net": said(lambda: Convolutional((2,), (), "rleu")),
    "form": said(lambda: FullyConnected(5, 2, "tanh", "poste")),
    "inference form": said(lambda: GradientDescent(0.1, 2, form="deviation")),
    "gradient scale": said(lambda: learning.BP("batch_men")),
    "distribution": said(lambda: Standard("unifrom")),
    "precision": said(lambda: net.in_products("bfloat")),
    "bfloat16 in activities": said(
        lambda: learning.PC(GradientDescent(0.1, 2, form="activities"), "batch_mean", "bfloat16")
    ),
    "bfloat16 in activities, by hand": said(
        lambda: GradientDescent(0.1, 2, form="activities").solve(
            InferenceProblem.from_batch(net, Batch(x, y), precision="bfloat16")
        )
    ),
}
ACCEPTED = {name: said(call, x, y) for name, call in TAKE_BOTH.items() if name != "negative curvature"} | {
    "images": said(lambda: energy.outputs(images, jnp.ones((7, 4, 4, 1)))),
    "flattened images": said(lambda: energy.outputs(net, jnp.ones((1, D, B)))),
    "x with as many examples as features": said(lambda: energy.loss(square, jnp.ones((B, B)), y)),
}

if __name__ == "__main__":
    print(json.dumps({"refused": FOUND, "accepted": ACCEPTED}))
