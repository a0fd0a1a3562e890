"""The doors of the training loop, against loops written by hand: the network after an update, events, networks side by side."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Bool, Float, Int
from trained_by_hand import (
    BATCH,
    EPOCHS,
    LAST,
    RATE,
    build,
    hand_written_training,
    key,
    lane,
    layers,
    rule,
    run,
    sgd,
    stack,
    step_of_sgd,
    training_set,
)

from pcexp.learning import Beside, Networks
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK
from pcexp.train import AbstractEvents, Training, advance_pack, initial_state

pytestmark = pytest.mark.usefixtures("x64")
TRAINING = Training(batch_size=BATCH, epochs=EPOCHS, record_every=1)


def first(network):
    return network.segments[0].weight[0]


def test_what_is_measured_after_an_update_sees_the_network_that_the_next_iteration_starts_from():
    def before(seen):
        return {"before": first(seen.network), "given": seen.given}

    def after(seen, network):
        return {"moved": first(network) - first(seen.network), "after": first(network)}

    training = dataclasses.replace(TRAINING, record_every=3)
    state = initial_state(build(), sgd(), key=key())
    end, rows = run(state, rule("BP"), sgd(), training, measure=before, after=after, given=jnp.asarray(7.0))
    seen, net = hand_written_training(build(), "BP", step_of_sgd)
    weights = [w for _, w, _ in seen] + [net[0].weight]
    np.testing.assert_array_equal(rows["iteration"], range(0, LAST, 3))
    np.testing.assert_array_equal(rows["given"], 7.0)
    for i, t in enumerate(rows["iteration"]):
        np.testing.assert_allclose(rows["before"][i], weights[t], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows["after"][i], weights[t + 1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows["moved"][i], weights[t + 1] - weights[t], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(first(end.network), weights[-1], rtol=1e-9)


class Lower(AbstractEvents):
    """A row is due where the loss is below `factor` times that of the last row; the lane has ended after `goal` rows."""

    factor: Float[Array, ""]
    goal: Int[Array, ""]
    last: Float[Array, ""]
    n_rows: Int[Array, ""]
    due: Bool[Array, ""]
    ended: Bool[Array, ""]

    def visit(self, seen):
        due = seen.loss < self.factor * self.last
        n_rows = self.n_rows + due
        last = jnp.where(due, seen.loss, self.last)
        return dataclasses.replace(self, last=last, n_rows=n_rows, due=due, ended=n_rows >= self.goal)


def lower(factor, goal):
    never = jnp.array(False)
    return Lower(
        jnp.asarray(factor), jnp.asarray(goal, jnp.int32), jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32), never, never
    )


def lower_by_hand(losses, factor, goal):
    """Iterations with a row, and the one at which the lane ends: LAST, at the weights after the last update, at the latest."""
    last, found = np.inf, []
    for t, loss in enumerate(losses):
        due = loss < factor * last
        found += [t] if due or t == LAST else []
        last = loss if due else last
        if (due and len(found) == goal) or t == LAST:
            return found, t
    raise AssertionError


LANES = {  # factor, goal, learning rate
    "ends at its goal": (0.9, 3, RATE),
    "runs to the last weights": (0.8, 100, RATE),
    "a row an iteration": (1e3, 100, RATE),
    "is no longer finite": (0.9, 100, 1e200),
}


def events_in_a_pack(calls=(1000,), capacity=LAST + 1):
    optimisers = [sgd(jnp.asarray(rate)) for *_, rate in LANES.values()]
    states = [
        initial_state(build(), optimiser, events=lower(factor, goal), key=key())
        for optimiser, (factor, goal, _) in zip(optimisers, LANES.values(), strict=True)
    ]
    alone = [
        run(state, rule("BP"), optimiser, TRAINING, capacity=capacity)
        for state, optimiser in zip(states, optimisers, strict=True)
    ]
    state, found = stack(states), []
    for n in calls:
        state, rows = advance_pack(
            state, rule("BP"), stack(optimisers), training_set(), TRAINING,
            lambda seen: {"loss": seen.loss}, capacity, jnp.asarray(n, jnp.int32),
        )  # fmt: skip
        k = int(rows.n_rows)
        found.append({"due": np.asarray(rows.due)[:k]} | {name: np.asarray(v)[:k] for name, v in rows.values.items()})
    return alone, state, {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


@pytest.mark.parametrize("calls", [(1000,), (1, 4, 1000)], ids=["one call", "three calls"])
def test_each_lane_of_a_pack_has_the_rows_and_the_end_of_its_own_events(calls):
    alone, state, rows = events_in_a_pack(calls)
    losses = [loss for loss, *_ in hand_written_training(build(), "BP", step_of_sgd, last=LAST + 1)[0]]
    ends = []
    for i, (name, (factor, goal, _)) in enumerate(LANES.items()):
        due = rows["due"][:, i]
        single, recorded = alone[i]
        np.testing.assert_array_equal(rows["iteration"][due, i], recorded["iteration"], name)
        np.testing.assert_allclose(rows["loss"][due, i], recorded["loss"], rtol=1e-9)
        mine = lane(state, i)
        assert int(mine.iteration) == int(single.iteration) and bool(mine.stopped) and bool(single.stopped)
        for w, expected in zip(jax.tree.leaves(mine.network), jax.tree.leaves(single.network), strict=True):
            np.testing.assert_allclose(w, expected, rtol=1e-8, atol=1e-11)
        ends.append(int(mine.iteration))
        assert bool(mine.diverged) == (name == "is no longer finite")
        if name != "is no longer finite":
            expected, end = lower_by_hand(losses, factor, goal)
            np.testing.assert_array_equal(rows["iteration"][due, i], expected, name)
            np.testing.assert_allclose(rows["loss"][due, i], [losses[t] for t in expected], rtol=1e-8)
            assert ends[-1] == end, name
    assert ends[0] < LAST and ends[1] == ends[2] == LAST and ends[3] < 4
    assert len(set(rows["due"].sum(axis=0))) == 4


def test_a_lane_that_ended_on_its_events_stands_at_the_weights_that_they_saw():
    state = initial_state(build(), sgd(), events=lower(0.9, 3), key=key())
    end, rows = run(state, rule("BP"), sgd(), TRAINING)
    _, net = hand_written_training(build(), "BP", step_of_sgd, last=int(end.iteration))
    for layer, wanted in zip(layers(end.network), net, strict=True):
        np.testing.assert_allclose(layer.weight, wanted.weight, rtol=1e-8, atol=1e-11)
    again, more = run(end, rule("BP"), sgd(), TRAINING)
    assert len(more["iteration"]) == 0 and int(again.iteration) == rows["iteration"][-1]


@pytest.mark.parametrize("optimiser", [sgd(), eqx.Partial(optax.adam, learning_rate=0.01)], ids=["SGD", "Adam"])
def test_networks_side_by_side_take_the_steps_that_each_takes_alone(optimiser):
    wide = FullyConnected(width=7, n_hidden=3, activation="relu", form="post", segment_size=2)
    one, other = build(), wide.build(NTK(), (3,), 2, key=jax.random.key(5))

    def both(seen):
        return seen.diagnostics | {"loss": seen.loss, "first": first(seen.network.members[0])}

    start = initial_state(Networks((one, other)), optimiser, key=key())
    end, rows = run(start, Beside((rule("PC"), rule("BP"))), optimiser, TRAINING, measure=both)
    for i, (network, name) in enumerate(((one, "PC"), (other, "BP"))):
        alone, recorded = run(initial_state(network, optimiser, key=key()), rule(name), optimiser, TRAINING)
        np.testing.assert_allclose(rows[f"loss_{i}"], recorded["loss"], rtol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(end.network.members[i]), jax.tree.leaves(alone.network), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(rows["loss"], (rows["loss_0"] + rows["loss_1"]) / 2, rtol=1e-14)
    if optimiser.func is optax.sgd:
        seen, net = hand_written_training(one, "PC", step_of_sgd)
        for column, expected in zip(("loss_0", "first"), zip(*seen, strict=True), strict=False):
            np.testing.assert_allclose(rows[column], np.stack(expected), rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(first(end.network.members[0]), net[0].weight, rtol=1e-8)
