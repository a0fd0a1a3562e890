"""One peer library at one training problem: in this process, or in an interpreter of its own that answers on a pipe.

    python benchmarks/peer_worker.py pcx PROBLEM.npz VARIANT

Nothing here needs pcexp: a peer may ask for another JAX, and then lives in another environment.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class Layer(NamedTuple):
    """mu = after(a W before(z)) + z where there is a skip; phi is tanh or nothing."""

    premultiplier: float
    before: str
    after: str
    skip: bool


class Problem(NamedTuple):
    """A network, its data in batches (batches x examples x features), and the step sizes of one PC training step."""

    weights: list[np.ndarray]
    layers: list[Layer]
    x: np.ndarray
    y: np.ndarray
    steps: int
    activity_lr: float
    learning_rate: float

    def save(self, path: Path) -> None:
        about = {"layers": self.layers, "steps": self.steps, "activity_lr": self.activity_lr}
        about["learning_rate"] = self.learning_rate
        weights = {f"w{i}": w for i, w in enumerate(self.weights)}
        np.savez(path, allow_pickle=False, about=json.dumps(about), x=self.x, y=self.y, **weights)


def load(path: Path) -> Problem:
    """The problem that `Problem.save` wrote."""
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        layers = [Layer(*layer) for layer in about.pop("layers")]
        weights = [file[f"w{i}"] for i in range(len(layers))]
        return Problem(weights, layers, file["x"], file["y"], **about)


class Peer(Protocol):
    """A library's training step at one problem."""

    def start(self, optimiser: str, learning_rate: float) -> None:
        """Back to the initial weights, with `adam` or `sgd`."""

    def run(self, n: int) -> None:
        """n training steps, to their end."""

    def weights(self) -> list[np.ndarray]:
        """Weights now, each d_out x d_in."""


def build(name: str, problem: Problem, variant: str) -> Peer:
    """The named library's step: benchmarks/peer_NAME.py."""
    return importlib.import_module(f"peer_{name}").Step(problem, variant)


def seconds(peer: Peer, n: int) -> float:
    """Seconds of n training steps."""
    begun = time.perf_counter()
    peer.run(n)
    return time.perf_counter() - begun


def answer(peer: Peer, request: dict[str, Any]) -> Any:
    """What a request asks of a peer: a start, a timed run, or its weights in a file."""
    if request["do"] == "start":
        return peer.start(request["optimiser"], request["learning_rate"])
    if request["do"] == "run":
        return seconds(peer, request["n"])
    assert request["do"] == "weights", request
    np.savez(request["path"], *peer.weights())
    return None


def main() -> None:
    """Answer requests, one line of JSON each, until there are no more."""
    name, path, variant = sys.argv[1:]
    # A library that prints must not spoil the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    peer = build(name, load(Path(path)), variant)
    for line in sys.stdin:
        print(json.dumps(answer(peer, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
