"""Matrix completion: how many iterations do PC and BP take to leave each saddle on their way to a map of rank 3? (figure 4.6)

Setting. The published 10x10 matrix of rank 3 (`data=published_matrix`), 16 entries hidden; inputs are the rows with hidden
entries at zero. 10-3x100-10, post-activation, no biases, W ~ N(0, 0.005^2); gradient descent on all ten rows at once with
eta = 0.01, to a loss of 0.01. Inference by gradient descent, beta = 0.1 per sample, T = 50. Published with one seed.

Text and code. Two leaves of `protocol` decide what is compared. `..._gradient_scale`: at one learning rate PC's gradient was
summed over the batch, BP's a mean over rows and outputs, B K / 2 = 50 times smaller; `corrected` sums both. `mask_pc`: PC was
given the whole matrix as its target, BP the observed entries; `corrected` masks both (an output whose entry is hidden has no
error and pulls on nothing). The halving of beta is in both protocols. The one rate of `corrected` is 0.002, chosen in trials. The
published code updates the weights with the errors before the last activity step; here T counts activity steps, and the errors
after the last are used.

Definitions. loss: mean squared error over all 100 outputs, hidden ones counted as zero, for both rules. Saddle 0 is where runs
start. Saddle k = 1, 2 (text: where the map has rank k) is visited at the first iterate whose loss is below `levels[k - 1]`, the
published levels: 1.1 and 0.15 (linear), 1.2 and 0.15 (tanh), 2.0 and 0.6 (relu). It is left when the next level is passed, the
last being 0.01. `start` = k begins at the weights at which BP visits saddle k: a lane with it first runs BP of the same seed
there, at `bp_learning_rate` and BP's scale (the run of the BP lane of that seed), and iterations count from there. Rank of the
map: singular values of the outputs above a tenth of the largest of the observed target (1.46), at the first iterate and when the
next level is passed. Gradient norms are of F, the scale taken out. The plateau of a saddle lasts until the loss is half-way to
the next level on a log scale: below the geometric mean of the two levels (of saddle 0: of the loss that the run starts from).
Best learning rate: the fewest iterations to the end from the origin, as a mean over seeds that all get there.

Thresholds were set before the runs. Changed after trials with one seed: what "rank at a saddle" and "plateau" are (at first taken
over the whole way to the next level), and the one rate.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax

from pcexp.config.composition import Refused
from pcexp.config.identity import Lane
from pcexp.config.spec import Spec
from pcexp.config.study import AbstractStudy, Work
from pcexp.data import Dataset
from pcexp.experiments.matrix_completion.claims import CLAIMS as CLAIMS
from pcexp.experiments.matrix_completion.descent import Levels, WholeTargets, levels_above, measure
from pcexp.experiments.matrix_completion.figures import FIGURES as FIGURES
from pcexp.learning import BP, AbstractLearning
from pcexp.model.network import Network
from pcexp.run.cost import training
from pcexp.run.draw import Start, arithmetic, components, initial_network
from pcexp.run.job import Job
from pcexp.train import iterations

ENDS = {True: 0.2, False: 0.05}
"""Share of the iterations allowed after which a run of BP, or of another rule, is expected to end at its error: for the estimate alone."""


class MatrixCompletion(AbstractStudy):
    """Descent from saddle `start`, which `bp` visits when its loss is first below `levels[start - 1]`, to `training.stop_error`.

    `mask_targets`: the learning rule of this cell sees observed entries only; `bp` always does.
    """

    start: int
    levels: Sequence[float]
    mask_targets: bool
    bp: AbstractLearning
    bp_learning_rate: float
    bp_iterations: int
    precisions = ("float32", "float64")

    def __check_init__(self) -> None:
        if not 0 <= self.start <= len(self.levels):
            raise ValueError(
                f"start={self.start}: valid are 0 (the origin) to {len(self.levels)}, the number of levels"
            )
        if any(a <= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"levels={list(self.levels)}: each must be below the one before")

    def cost(self, spec: Spec, dataset: Dataset) -> Work:
        n = iterations(spec.training, len(dataset.train.x))
        work = training(spec, dataset, n_iterations=ENDS[isinstance(spec.learning, BP)] * n)
        if self.start:  # a run of BP leads there
            learns = dataclasses.replace(spec, learner=eqx.tree_at(lambda s: s.learning, spec.learner, self.bp))
            before = training(learns, dataset, n_iterations=ENDS[True] * self.bp_iterations)
            work = Work(*(a + b for a, b in zip(work, before, strict=True)))
        return work

    def run(self, job: Job) -> None:
        training, dataset = job.spec.training, job.session.datasets(job.spec)
        if dataset.train.mask is None:
            raise Refused("data: no entries are hidden in this data set; choose data=published_matrix or data=matrix")
        error, rows = training.stop_error, len(dataset.train.x)
        if error is None or not error < min(self.levels):
            raise Refused(f"training.stop_error={error}: it ends a run, set it below the last of study.levels")
        if training.batch_size != rows:
            raise Refused(f"training.batch_size={training.batch_size}: this study descends on all {rows} rows")
        starts: dict[int, tuple[Network, int]] = {}
        with arithmetic(job.spec.precision):
            for lane in job.lanes():
                if int(lane.values["seed"]) not in starts:
                    starts[int(lane.values["seed"])] = self._start(job, lane, dataset)

        def at(lane: Lane, dataset: Dataset) -> Start:
            network, visited_at = starts[int(lane.values["seed"])]
            _, rule, optimiser = components(job.spec, lane)
            rule = rule if self.mask_targets else WholeTargets(rule)
            return Start(network, rule, optimiser, self._events(job, len(self.levels) + 1, visited_at))

        job.train(measure, training.batch_size, at=at, tested=False)

    def _start(self, job: Job, lane: Lane, dataset: Dataset) -> tuple[Network, int]:
        """The network that a lane starts from, and BP's iteration there; -1 where BP did not get there."""
        network = initial_network(job.spec, lane, dataset)
        if self.start == 0:
            return network, 0
        # A number that is traced, as in the lanes of BP: the same program, the same run.
        rate = jnp.asarray(self.bp_learning_rate, jnp.result_type(float))
        optimiser = eqx.Partial(optax.sgd, learning_rate=rate, momentum=None, nesterov=False)
        begin = Start(network, self.bp, optimiser, self._events(job, self.start))
        training = dataclasses.replace(job.spec.training, epochs=self.bp_iterations, max_iterations=None)
        at = job.brought(f"saddle-{self.start}-{lane.values['seed']}", lane, begin, training)
        assert isinstance(at.events, Levels)
        return at.network, int(at.iteration) if int(at.events.passed) >= self.start else -1

    def _events(self, job: Job, goal: int, start: int = 0) -> Levels:
        assert job.spec.training.stop_error is not None
        return levels_above([*self.levels, job.spec.training.stop_error], goal, start)

    def summary(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        n_levels, iteration, passed = len(self.levels) + 1, rows["iteration"], rows["passed"]
        found: dict[str, Any] = {
            "visited_at": int(rows["visited_at"][0]),
            "iterations": int(iteration[-1]),
            "ended": bool(passed[-1] >= n_levels),
            "final_loss": float(rows["loss"][-1]),
            "final_hidden_loss": float(rows["hidden_loss"][-1]),
            "rank_threshold": float(rows["rank_threshold"][0]),
        }
        levels = [float(rows["loss"][0]), *self.levels, float(rows["end"][0])]  # of no level: where the run starts
        for saddle in range(self.start, n_levels) if found["visited_at"] >= 0 else ():
            # Where the run was at this saddle: from the row that passed the level above it to the one that passed its own.
            here = np.flatnonzero(passed >= saddle) if saddle > self.start else np.arange(len(passed))
            if not here.size:
                continue
            first = int(here[0])
            gone = np.flatnonzero(passed > saddle)
            last = int(gone[0]) if gone.size else len(passed) - 1
            below = np.sqrt(levels[saddle] * levels[saddle + 1])
            plateau = first + int(np.argmax(np.append(rows["loss"][first : last + 1] < below, True)))
            # Of the first row its own norm: what was least before it belongs to the saddle above.
            norms = [rows["gradient_norm"][first], *rows["least_gradient_norm"][first + 1 : plateau]]
            found |= {
                f"left_{saddle}": bool(gone.size),
                f"iterations_{saddle}": int(iteration[last] - iteration[first]),
                f"norm_{saddle}": float(np.min(norms)),
                f"norm_seen_{saddle}": plateau <= last,
                f"rank_at_{saddle}": int(rows["map_rank"][first]),
                f"rank_after_{saddle}": int(rows["map_rank"][last]),
            }
        return found
