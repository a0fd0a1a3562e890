"""muPC at depth: does it train 100+ layers as well as BP, where SP fails (figures 5.1 right, C.14, C.16-C.20, C.27)?

Setting. Pre-activation ResNets without biases, squared error on one-hot targets, Adam not rescaled with width or depth,
batch 64; PC by gradient descent on activities from the forward pass. Models: muPC at eta = 0.1 and beta = 1 (linear,
tanh) or 0.5 (relu), of the batch mean: 1/64 of it per sample; SP with skips over a grid of rates; BP with Depth-muP,
muPC's net, at the rates tuned at H = 8. Arms: `depth` (T = n_hidden); `width` at H = 8 (C.20); `one_step`, T = 1 (C.14,
C.27; their condition numbers are of another study); `long`, 5, 15 or 20 epochs (C.17-C.19); `rates`, eta times and over
sqrt(N L) (5.8); `forward_only` (5.8), over eta and beta; `anchor`, N = 128, H = 29, T = 30, relu; `beyond`, more of
SP's grid, which the published one has from eta = 0.01 up.

What 5.8 means by "premultipliers only in the forward pass" is open. Here predictions, errors and energies have them,
and derivatives take them as 1: J_l = W_l diag(phi'(z)) + tau_l pulls errors down, and e phi(z)^T moves the weights
(network.premultipliers=forward_pass).

Text and code. SP is drawn U(+-1/sqrt(fan_in)), a third of the variance of Table 5.1. An epoch was 937 iterations with a
test every 300: a run has 900. SP's rates were chosen on test accuracy; here on that of the validation split, its mean
over seeds, a run that diverged counting as 0. Failed runs were entered as 10 %; here a run that diverged has no
accuracy, and both it and one without learning are drawn as failed. `published` infers in activities, where Adam
amplifies float32 round-off; `corrected` in deviations. BP has no inference: it is run once. C.19 is the text's: squared
error, batch 64, images as they are; its code had output=softmax (cross-entropy), training.batch_size=128 and
data.augmentation (crop 4, flip, rotation by 10 degrees), which make a variant.

Definitions. Accuracies are of all test examples, in per cent, at the end of a run unless said. No learning: at most 15
(a constant guess has 11.4 on MNIST); failed: diverged, or no learning; trains: above 50 (CIFAR-10: above 30).
layers_reached: layers whose weight gradient is above 1e-6 of the largest layer's. Ours too: "a few points" is 3, "a
little" 5, "does not fall" within 0.5.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from pcexp.config.study import AbstractStudy
from pcexp.data import Dataset
from pcexp.evaluation import evaluate
from pcexp.experiments.mupc_depth.claims import CLAIMS as CLAIMS
from pcexp.experiments.mupc_depth.figures import FIGURES as FIGURES
from pcexp.model.network import Network
from pcexp.run.job import Job
from pcexp.train import Observation, weight_norms

ROUND_OFF = 1e-6


class MuPCDepth(AbstractStudy):
    """Training, tested on the way."""

    def run(self, job: Job) -> None:
        dataset = job.session.datasets(job.spec)
        job.train(
            measure,
            probe_size=job.spec.training.batch_size,
            at_end=lambda _, final: {"validation_accuracy": validation_accuracy(final, dataset)},
        )


def measure(seen: Observation) -> dict[str, Array]:
    """Loss of the batch at the forward pass, and how many layers get a gradient above round-off, before the update."""
    norms = weight_norms(seen.gradient)
    return {"loss": seen.loss, "layers_reached": jnp.sum(norms > ROUND_OFF * jnp.max(norms))}


def validation_accuracy(network: Network, dataset: Dataset) -> float:
    """Share of the validation split whose largest output is that of its class; NaN of an empty split."""
    if not len(dataset.validation.x):
        return math.nan
    return float(evaluate(network, dataset.validation)["accuracy"])
