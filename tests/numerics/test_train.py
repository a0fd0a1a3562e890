"""The training loop against the same steps taken one by one in numpy, cut into calls, and packed into lanes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trained_by_hand import (
    BATCH,
    D_IN,
    D_OUT,
    EPOCHS,
    LAST,
    N_EXAMPLES,
    PER_EPOCH,
    RATE,
    arrays,
    build,
    hand_written_training,
    identical,
    key,
    lane,
    layers,
    measure,
    rule,
    run,
    sgd,
    stack,
    step_of_adam,
    step_of_sgd,
    training_set,
)

from pcexp.evaluation import batch_layout
from pcexp.learning import AbstractLearning, WeightGradient
from pcexp.model.architecture import Convolutional
from pcexp.model.parameterisation import NTK
from pcexp.train import Training, advance_pack, initial_state, iterations

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("name", "optimiser", "step"),
    [
        ("BP", sgd(), step_of_sgd),
        ("PC", sgd(), step_of_sgd),
        ("PC", eqx.Partial(optax.adam, learning_rate=0.01), step_of_adam),
    ],
    ids=["BP, SGD", "PC, SGD", "PC, Adam"],
)
def test_training_takes_the_steps_of_a_loop_written_by_hand(name, optimiser, step):
    network = build()
    state, rows = run(
        initial_state(network, optimiser, key=key()),
        rule(name),
        optimiser,
        Training(batch_size=BATCH, epochs=EPOCHS, record_every=1),
    )
    seen, net = hand_written_training(network, name, step)
    np.testing.assert_array_equal(rows["iteration"], np.arange(LAST))
    for column, expected in zip(("loss", "first", "norms"), zip(*seen, strict=True), strict=True):
        np.testing.assert_allclose(rows[column], np.stack(expected), rtol=1e-8, atol=1e-11)
    for layer, wanted in zip(layers(state.network), net, strict=True):
        np.testing.assert_allclose(layer.weight, wanted.weight, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(layer.bias, wanted.bias, rtol=1e-8, atol=1e-11)
    assert (int(state.iteration), bool(state.stopped), bool(state.diverged)) == (LAST, False, False)
    # An epoch's error: the mean over batches and outputs of the squared error.
    expected = np.mean([2 * loss / D_OUT for loss, *_ in seen[-PER_EPOCH:]])
    np.testing.assert_allclose(state.last_epoch_error, expected, rtol=1e-8)


def test_calls_cut_anywhere_give_the_same_bits_as_one_call():
    optimiser = eqx.Partial(optax.adam, learning_rate=0.01)
    training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=2)
    start = initial_state(build(), optimiser, key=key())
    whole, rows = run(start, rule("PC"), optimiser, training)
    for calls in ((5, 1, 6), (1,) * LAST, (3, 100)):
        pieces, recorded = run(start, rule("PC"), optimiser, training, calls=calls)
        assert identical(whole, pieces)
        assert all(np.array_equal(rows[name], recorded[name]) for name in rows)
    np.testing.assert_array_equal(rows["iteration"], np.arange(0, LAST, 2))


def test_a_call_ends_when_its_rows_are_full_and_the_next_goes_on_from_there():
    training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=2)
    start = initial_state(build(), sgd(), key=key())
    whole, rows = run(start, rule("BP"), sgd(), training)
    partial, first = run(start, rule("BP"), sgd(), training, capacity=2)
    np.testing.assert_array_equal(first["iteration"], [0, 2])
    assert int(partial.iteration) == 3
    pieces, recorded = run(start, rule("BP"), sgd(), training, capacity=2, calls=(1000,) * 4)
    assert identical(whole, pieces)
    assert all(np.array_equal(rows[name], recorded[name]) for name in rows)


class Witness(AbstractLearning):
    """A rule that changes nothing and reports which examples it was given, by their first input."""

    def gradient(self, network, batch, *, key=None):
        still = jax.tree.map(jnp.zeros_like, eqx.filter(network, eqx.is_inexact_array))
        return WeightGradient(
            eqx.combine(still, network), jnp.array(1.0), {"examples": batch.x[0], "targets": batch.y[0]}
        )

    def forward_passes(self):
        return 0.0


def test_an_epoch_visits_every_example_at_most_once_in_an_order_of_its_own():
    _, rows = run(
        initial_state(build(), sgd(), key=key()),
        Witness(),
        sgd(),
        Training(batch_size=BATCH, epochs=EPOCHS, record_every=1),
        measure=lambda seen: seen.diagnostics,
    )
    x, y = arrays()
    visited = np.array([[np.flatnonzero(x[:, 0] == value).item() for value in batch] for batch in rows["examples"]])
    np.testing.assert_array_equal(rows["targets"], y[visited, 0])
    epochs = visited.reshape(EPOCHS, PER_EPOCH * BATCH)
    for epoch in epochs:
        assert len(set(epoch)) == PER_EPOCH * BATCH
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    assert len({tuple(sorted(set(range(N_EXAMPLES)) - set(epoch))) for epoch in epochs}) == EPOCHS
    assert iterations(Training(batch_size=BATCH, epochs=EPOCHS, record_every=1), N_EXAMPLES) == len(visited)


def test_lanes_advance_together_as_they_do_one_by_one_and_one_that_diverges_stops_alone():
    training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=2)
    rates, betas = [RATE, 1e200, 0.003], [0.2, 0.2, 0.1]
    optimisers = [sgd(jnp.asarray(rate)) for rate in rates]
    rules = [eqx.tree_at(lambda r: r.inference.activity_lr, rule("PC"), jnp.asarray(beta)) for beta in betas]
    states = [
        initial_state(build(seed), optimiser, key=jax.random.key(seed)) for seed, optimiser in enumerate(optimisers)
    ]
    packed, rows = advance_pack(
        stack(states),
        stack(rules),
        stack(optimisers),
        training_set(),
        training,
        measure,
        LAST,
        jnp.asarray(1000, jnp.int32),
    )
    for index in range(3):
        alone, recorded = run(states[index], rules[index], optimisers[index], training)
        ours = lane(packed, index)
        assert int(ours.iteration) == int(alone.iteration)
        due = np.asarray(rows.due)[:, index]
        np.testing.assert_array_equal(rows.values["iteration"][due, index], recorded["iteration"])
        np.testing.assert_allclose(rows.values["loss"][due, index], recorded["loss"], rtol=1e-9)
        for w, expected in zip(jax.tree.leaves(ours.network), jax.tree.leaves(alone.network), strict=True):
            np.testing.assert_allclose(w, expected, rtol=1e-8, atol=1e-11)
    np.testing.assert_array_equal(packed.diverged, [False, True, False])
    assert int(packed.iteration[0]) == int(packed.iteration[2]) == LAST
    stopped_at = int(packed.iteration[1])
    assert stopped_at < 4
    # The iteration at which the loss was no longer finite is recorded, whether or not its turn had come.
    last = np.flatnonzero(np.asarray(rows.due)[:, 1])[-1]
    assert int(rows.values["iteration"][last, 1]) == stopped_at - 1
    assert not np.all(np.isfinite(rows.values["norms"][last, 1]))


def test_a_diverged_lane_does_not_move_again():
    training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=1)
    state, _ = run(initial_state(build(), sgd(1e200), key=key()), rule("PC"), sgd(1e200), training)
    assert bool(state.diverged)
    again, rows = run(state, rule("PC"), sgd(1e200), training)
    assert int(again.iteration) == int(state.iteration) < LAST
    assert len(rows["iteration"]) == 0


def epoch_errors():
    seen, _ = hand_written_training(build(), "BP", step_of_sgd)
    return np.array([2 * loss / D_OUT for loss, *_ in seen]).reshape(EPOCHS, PER_EPOCH).mean(axis=1)


def last_epoch(errors, which, threshold):
    """Epochs trained, and whether the rule ended it."""
    for epoch in range(1, EPOCHS + 1):
        improvement = errors[epoch - 2] - errors[epoch - 1] if epoch > 1 else np.inf
        if (errors[epoch - 1] if which == "stop_error" else improvement) < threshold:
            return epoch, True
    return EPOCHS, False


@pytest.mark.parametrize("which", ["stop_error", "stop_improvement"])
def test_a_lane_stops_at_the_end_of_the_first_epoch_that_meets_its_rule(which):
    errors = epoch_errors()
    quantities = errors if which == "stop_error" else -np.diff(errors)
    expected = []
    for threshold in [q * factor for q in quantities for factor in (0.999, 1.001)]:
        epochs, stopped = last_epoch(errors, which, threshold)
        training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=1, **{which: 0.0})
        training = eqx.tree_at(lambda t: getattr(t, which), training, jnp.asarray(threshold))  # traced: one compilation
        state, rows = run(initial_state(build(), sgd(), key=key()), rule("BP"), sgd(), training)
        assert (int(state.iteration), bool(state.stopped)) == (epochs * PER_EPOCH, stopped)
        assert len(rows["iteration"]) == epochs * PER_EPOCH
        expected.append((epochs, stopped))
    assert {(2, True), (3, True), (3, False)} <= set(expected)  # of the last two, only the rule says which it was


def test_images_enter_a_convolutional_network_examples_first_and_vectors_as_columns():
    image_network = Convolutional(channels=(2,), widths=(), activation="relu").build(
        NTK(), (4, 4, 1), 2, key=jax.random.key(0)
    )
    images = jnp.zeros((5, 4, 4, 1))
    assert batch_layout(image_network, images).shape == (5, 4, 4, 1)
    assert batch_layout(build(), jnp.zeros((5, D_IN))).shape == (D_IN, 5)


def test_a_lane_with_a_limit_on_its_iterations_ends_there_within_an_epoch():
    training = Training(batch_size=BATCH, epochs=EPOCHS, record_every=1, max_iterations=6)
    state, rows = run(initial_state(build(), sgd(), key=key()), rule("BP"), sgd(), training)
    seen, _ = hand_written_training(build(), "BP", step_of_sgd, last=6)
    np.testing.assert_allclose(rows["loss"], [loss for loss, *_ in seen], rtol=1e-8)
    assert int(state.iteration) == iterations(training, N_EXAMPLES) == 6


@pytest.mark.parametrize("field", ["batch_size", "epochs", "record_every", "max_iterations"])
def test_an_impossible_training_is_refused_by_name(field):
    null = " or null" if field == "max_iterations" else ""
    with pytest.raises(ValueError, match=f"{field} must be at least 1{null}, not 0"):
        Training(**{"batch_size": 1, "epochs": 1, "record_every": 1, field: 0})
