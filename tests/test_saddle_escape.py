"""Saddle escape: its events are where their definitions put them."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import quick

from pcexp.experiments import saddle_escape
from pcexp.model.network import Network
from pcexp.train import Observation, TrainingSet


def events(losses: list[float], constant: float) -> dict[str, object]:
    """Summary of a run with these probe losses, recorded every fifth iteration."""
    n = len(losses)
    rows = {
        "iteration": 5 * np.arange(n), "probe_loss": np.array(losses), "constant_map_loss": np.full(n, constant),
        "map_rank": np.ones(n), "gradient_norm": np.ones((n, 2)), "gradient_factor": np.ones(n),
    }  # fmt: skip
    return quick.grid("scale=small")[0].study.summary(rows)


def test_an_event_is_the_first_recorded_iteration_below_its_level() -> None:
    found = events([0.5, 0.48, 0.47, 0.451, 0.44, 0.436, 0.4], constant=0.45)
    assert (found["departed"], found["departure_iteration"]) == (True, 10)  # < 0.475
    assert (found["escaped"], found["escape_iteration"]) == (True, 20)  # < 0.45
    assert (found["beyond_constant"], found["beyond_constant_iteration"]) == (True, 25)  # < 0.4365


def test_an_event_that_was_not_seen_says_so_beside_the_last_iteration() -> None:
    found = events([0.5, 0.48, 0.46], constant=0.45)
    assert found["departed"] and not found["escaped"] and not found["beyond_constant"]
    assert found["escape_iteration"] == found["beyond_constant_iteration"] == 10


@pytest.mark.parametrize("classes", [2, 10])
def test_the_level_of_the_second_plateau_is_the_least_squares_fit_by_a_constant(classes: int) -> None:
    draw = np.random.default_rng(classes)
    y = np.eye(classes)[draw.integers(classes, size=50)]
    x = draw.standard_normal((3, 50)).astype(np.float32)
    fit = np.linalg.lstsq(np.ones((50, 1)), y, rcond=None)[0]
    wanted = np.sum((y - fit) ** 2) / (2 * 50)
    data = TrainingSet(x=jnp.asarray(x.T), y=jnp.asarray(y), probe_x=jnp.asarray(x), probe_y=jnp.asarray(y.T))
    network = quick_network(classes)
    seen = Observation(network, network, jnp.zeros(()), {}, data)
    assert float(saddle_escape.measure(seen)["constant_map_loss"]) == pytest.approx(wanted, rel=1e-5)


def quick_network(d_out: int) -> Network:
    spec = quick.grid("scale=small")[0]
    return spec.network.build(spec.parameterisation, (3,), d_out, key=jr.key(0))
