"""Do networks from labels up to images, trained by predictive coding, classify by inference? (beyond the sources)

Setting. Fully connected tanh networks of two hidden layers from a label up to an image (generative), with biases; Adam on
weights. PC clamps both ends and infers the hidden layers, by plain descent on activities or by conjugate gradients in the
errors. Hybrid PC has an amortiser beside it, the same layers in reverse, whose guess inference starts from; it learns where
inference ends.

Definitions. A test image is classified by inference: it is clamped above, the label is free (no prior), inference starts where
all labels are alike, or at the amortiser's guess, and takes 200 steps of gradient descent, whatever solver trained; the
largest entry of the inferred label is the class. Guess: the class that the amortiser's forward pass names. Generated image:
the forward pass from a label.

The claims are ours: the floor of 80 % of the test images was set before the committed runs.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.energy import outputs
from pcexp.report import plotting
from pcexp.report.claims import Case, Claim, Records, Verdict, done, missing, rule, vectors, verdict
from pcexp.run.cost import training
from pcexp.run.job import Job
from pcexp.train import Observation

FLOOR = 0.8
CLASSES = 10
DIAGNOSTICS = ("gradient_factor", "inference_residual", "inference_steps", "inference_halvings")


class NetworkKinds(AbstractStudy):
    """Training from labels to images, with the image of every label."""

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        return training(spec, dataset, programs=3)  # of training, of its first row, of inference in the test

    def run(self, job: Job) -> None:
        job.train(measure, probe_size=1)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"first_loss": float(rows["loss"][0]), "last_loss": float(rows["loss"][-1])}


def measure(seen: Observation) -> dict[str, Array]:
    """Loss of the batch, what its inference says, and the image that is generated from each label, one after the other."""
    network = seen.network.generator
    images = outputs(network, jnp.eye(seen.data.x.shape[1], dtype=seen.data.x.dtype)).T
    diagnostics = {name: value for name, value in seen.diagnostics.items() if name in DIAGNOSTICS}
    return {"loss": seen.loss, "image": images.reshape(-1), **diagnostics}


# Claims

ARMS = {
    "generative, trained by gradient descent": {"learning": "pc", "inference": "gradient_descent"},
    "generative, trained by conjugate gradients": {"learning": "pc", "inference": "error_descent"},
    "hybrid, trained by gradient descent": {"learning": "hybrid", "inference": "gradient_descent"},
}


@rule
def _above_floor(records: Records, column: str, labels: Mapping[str, str]) -> Verdict:
    part = records.select(labels)
    # Of free latents no label can be inferred: such runs decide nothing.
    seen = [run.get(column) for run in done(part)]
    cases = [(column, None if value is None else Case(value >= FLOOR, value)) for value in seen]
    expected = f"{column.replace('_', ' ')} >= {FLOOR} for every seed"
    return verdict(part, expected, cases, missing=missing(part))


INFERRED = "inference of the label classifies test images"
CLAIMS = tuple(
    Claim("kinds.generated", f"ours, {statement}", _above_floor(column, labels))
    for statement, column, labels in (
        *((f"{arm}: {INFERRED}", "test_accuracy", labels) for arm, labels in ARMS.items()),
        ("hybrid: the amortiser's guess alone classifies test images", "test_guess_accuracy", {"learning": "hybrid"}),
    )
)


# Figures


def _montage(images: np.ndarray) -> np.ndarray:
    """Square images beside one another, a column of nothing between them."""
    side = round(images.shape[1] ** 0.5)
    gap = np.full((side, 1), np.nan)
    return np.concatenate([part for image in images for part in (image.reshape(side, side), gap)], axis=1)[:, :-1]


def figure_generated(records: Records) -> plotting.Figure | None:
    """The image that each label generates, of one run an arm, and the share of test images that inference classifies."""
    named = {arm: done(records.select(**labels)) for arm, labels in ARMS.items()}
    shown = {arm: runs for arm, runs in named.items() if any(run.get("test_accuracy") is not None for run in runs)}
    if not shown:
        return None
    title = "Images generated from labels by networks trained with predictive coding"
    below = "label that is clamped; above it the image that seed 0 generates (per cent: one number a seed)"
    figure, axes = plotting.panels(len(shown), 1, title, below, width=6.2, height=1.15)
    for axis, (arm, runs) in zip(axes[:, 0], shown.items(), strict=True):
        last = records.lane(runs[0]["cell"], runs[0]["lane"]).drop_nulls("image_1").tail(1)
        picture = _montage(vectors(last, "image").reshape(CLASSES, -1))
        axis.imshow(picture, cmap="gray_r", interpolation="nearest")
        axis.grid(False)
        axis.spines[:].set_visible(False)
        side = picture.shape[0]
        axis.set_xticks([(side + 1) * label + (side - 1) / 2 for label in range(CLASSES)], range(CLASSES))
        axis.set_yticks([])
        axis.tick_params(length=0)
        right = ", ".join(f"{100 * run['test_accuracy']:.1f}" for run in runs[:5])
        more = " ..." if len(runs) > 5 else ""
        title = f"{arm}: {right}{more} % of test images named right"
        plotting.dress(axis, records.about, len(runs), title, fontsize=8)
    return figure


FIGURES = {"kinds.generated": figure_generated}
