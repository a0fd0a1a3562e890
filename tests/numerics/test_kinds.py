"""Generative, unsupervised and hybrid networks: what is below, what is above, where inference starts, and how they are evaluated."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcexp.data import Arrangement, Dataset, Split
from pcexp.energy import Batch, outputs
from pcexp.evaluation import ByForwardPass, ByInference, evaluate
from pcexp.inference import (
    AmortisedStart,
    ClosedForm,
    ErrorDescent,
    GradientDescent,
    InferenceProblem,
    RandomStart,
)
from pcexp.learning import BP, PC, GradientScale, Hybrid
from pcexp.model import FullyConnected, Network, Pair, Standard
from pcexp.model.architecture import Hybrid as HybridNetwork
from pcexp.train import Training, TrainingSet, advance, initial_state

pytestmark = pytest.mark.usefixtures("x64")
K, D, N, B = 3, 6, 5, 7
draw = np.random.default_rng(0)
LABELS = np.arange(B) % K
X, Y = np.eye(K)[LABELS].T, draw.normal(size=(D, B))


def generator(activation: Any = "tanh", n_hidden: int = 3, **more: Any) -> Network:
    return architecture(activation, n_hidden, **more).build(Standard(), (K,), D, key=jax.random.key(1))


def architecture(activation: Any = "tanh", n_hidden: int = 3, **more: Any) -> FullyConnected:
    return FullyConnected(N, n_hidden, activation, biases=True, generative=True, **more)


def pair(n_hidden: int = 3, **more: Any) -> Pair:
    return HybridNetwork(architecture(n_hidden=n_hidden, **more)).build(Standard(), (K,), D, key=jax.random.key(1))


def layers_of(network: Network) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(w), np.asarray(b)) for s in network.segments for w, b in zip(s.weight, s.bias, strict=True)]


def up(layers: list[tuple[Any, Any]], z: Any, np: Any = np) -> list[Any]:
    """Activities of all layers of a tanh network, written out."""
    found = [z]
    for i, (w, b) in enumerate(layers):
        u = w @ found[-1] + b[:, None]
        found.append(u if i == len(layers) - 1 else np.tanh(u))
    return found


def unstacked(activities: Any) -> list[np.ndarray]:
    return [np.asarray(layer) for stack in activities for layer in stack]


@pytest.mark.parametrize("segment_size", [1, 2, 4])
def test_a_pairs_guess_is_the_amortisers_forward_pass_in_reverse(segment_size: int) -> None:
    model = pair(n_hidden=5, segment_size=segment_size)
    down = up(layers_of(model.amortiser), Y)[1:]
    guess = model.guess(jnp.asarray(Y))
    assert [z.shape[0] for z in guess[1:]] == [s.depth for s in model.generator.segments[:-1]]
    for mine, theirs in zip(unstacked(guess), down[::-1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    again = model.as_amortised(guess[0][0], guess[1:])
    for mine, theirs in zip(unstacked(again), down, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


@pytest.mark.parametrize("free", [False, True])
def test_hybrid_pc_descends_both_energies_at_the_activities_that_were_inferred_from_the_guess(free: bool) -> None:
    model, steps, beta, p = pair(), 4, 0.1, 0.5
    x_mask = jnp.zeros((K, B)) if free else None
    scale: GradientScale = "batch_sum" if free else "batch_mean"
    rule = Hybrid(GradientDescent(beta, steps, form="activities"), scale, input_precision=p)
    out = jax.jit(lambda: rule.gradient(model, Batch(jnp.asarray(X), jnp.asarray(Y), None, x_mask)))()

    ups, downs = layers_of(model.generator), layers_of(model.amortiser)
    start = up(downs, Y)[1:][::-1]

    def energy_up(layers: Any, z: Any) -> Any:
        e = [
            z[i + 1] - (w @ z[i] + b[:, None] if i == 3 else jnp.tanh(w @ z[i] + b[:, None]))
            for i, (w, b) in enumerate(layers)
        ]
        prior = p * jnp.sum((z[0] - X) ** 2) if free else 0.0
        return (sum(jnp.sum(one**2) for one in e) + prior) / 2

    def energy_down(layers: Any, q: Any) -> Any:
        e = [
            q[i + 1] - (w @ q[i] + b[:, None] if i == 3 else jnp.tanh(w @ q[i] + b[:, None]))
            for i, (w, b) in enumerate(layers)
        ]
        return sum(jnp.sum(one**2) for one in e) / 2

    z = [jnp.asarray(one) for one in (start if free else [X, *start[1:]])] + [jnp.asarray(Y)]
    slope = jax.jit(jax.grad(energy_up, argnums=1))
    for _ in range(steps):
        g = slope(ups, z)
        z = [one if i == 4 or (i == 0 and not free) else one - beta * g[i] for i, one in enumerate(z)]
    exact_up = jax.grad(energy_up)(ups, z)
    exact_down = jax.grad(energy_down)(downs, z[::-1])
    for network, exact in ((out.gradient.generator, exact_up), (out.gradient.amortiser, exact_down)):
        for mine, theirs in zip(layers_of(network), exact, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(a, b / (1 if free else B), rtol=1e-9, atol=1e-13)


def test_a_random_start_has_the_scale_that_it_says_and_ends_at_the_same_equilibrium() -> None:
    network = generator("linear")
    problem = InferenceProblem.from_batch(network, Batch(jnp.asarray(X), jnp.asarray(Y)))
    at = RandomStart(2.0)(problem, network, key=jax.random.key(3))
    assert at.initial is not None
    drawn = np.concatenate([z.ravel() for z in unstacked(at.initial)])
    assert 1.5 < drawn.std() < 2.5 and abs(drawn.mean()) < 0.6
    exact = jax.jit(lambda: ClosedForm().solve(problem))()
    for solver in (GradientDescent(0.1, 5000, tol=1e-10), ErrorDescent(200, tol=1e-10)):
        found = jax.jit(lambda solver=solver: solver.solve(at))()
        assert bool(found.converged)
        for mine, theirs in zip(unstacked(found.activities), unstacked(exact.activities), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-8)


def test_a_start_leaves_clamped_inputs_where_they_are() -> None:
    x_mask = (draw.random((K, B)) > 0.5).astype(float)
    problem = InferenceProblem.from_batch(generator(), Batch(jnp.asarray(X), jnp.asarray(Y), None, jnp.asarray(x_mask)))
    z = np.asarray(RandomStart(1.0)(problem, None, key=jax.random.key(0)).start("activities")[0][0])
    np.testing.assert_array_equal(z[x_mask == 1], X[x_mask == 1])
    assert (z[x_mask == 0] != X[x_mask == 0]).all()


def test_pc_starts_where_it_is_told_and_a_random_start_follows_the_key() -> None:
    network, batch = generator(), Batch(jnp.asarray(X), jnp.asarray(Y))
    rule = PC(GradientDescent(0.1, 0, form="activities"), "batch_mean", start=RandomStart(1.0))
    one, same, other = (rule.gradient(network, batch, key=jax.random.key(seed)).gradient for seed in (0, 0, 1))
    weights = [np.asarray(g.segments[1].weight) for g in (one, same, other)]
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])
    with pytest.raises(ValueError, match="needs a key"):
        rule.gradient(network, batch)
    with pytest.raises(ValueError, match="scale must not be negative"):
        RandomStart(-1.0)
    with pytest.raises(ValueError, match="choose network=hybrid"):
        AmortisedStart()(rule.problem(network, batch, key=jax.random.key(0)), network, key=None)


def split(x: np.ndarray = X, y: np.ndarray = Y, **more: Any) -> Split:
    return Split(np.asarray(x.T, np.float32), np.asarray(y.T, np.float32), **more)


@pytest.mark.parametrize(("examples", "p"), [(3, 0.0), (1000, 0.7)])
def test_inference_of_the_label_is_the_least_squares_answer_of_a_linear_generator(examples: int, p: float) -> None:
    network = generator("linear", n_hidden=1)
    (w1, b1), (w2, b2) = layers_of(network)
    y = np.asarray(split().y.T, float)
    s = np.linalg.inv(np.eye(D) + w2 @ w2.T)
    g, r = w2 @ w1, y - (w2 @ b1 + b2)[:, None]
    below = np.linalg.solve(g.T @ s @ g + p * np.eye(K), g.T @ s @ r + p / K)
    found = evaluate(network, split(), ByInference(ClosedForm(), input_precision=p, top=2), examples=examples)
    order = np.argsort(-below, axis=0)
    assert found["accuracy"] == pytest.approx(np.mean(order[0] == LABELS))
    assert found["accuracy_top_2"] == pytest.approx(np.mean(np.any(order[:2] == LABELS, axis=0)))
    again = y - (g @ below + (w2 @ b1 + b2)[:, None])
    assert found["reconstruction_loss"] == pytest.approx(np.sum(again**2) / 2 / B)
    assert found["loss"] == pytest.approx(np.sum((r - g @ X) ** 2) / 2 / B)


def test_inference_of_the_label_starts_where_all_are_alike_and_knows_nothing_of_the_true_one() -> None:
    none = evaluate(generator(), split(), ByInference(GradientDescent(0.1, 0)))  # no step: the first of equal entries
    assert none["accuracy"] == pytest.approx(np.mean(LABELS == 0))
    some = [evaluate(generator(), split(x), ByInference(GradientDescent(0.1, 3))) for x in (X, X[::-1])]
    assert some[0]["reconstruction_loss"] == some[1]["reconstruction_loss"]


def test_an_evaluation_by_inference_says_how_that_ended_where_it_is_asked() -> None:
    network, solvers = generator("linear", n_hidden=1), (ClosedForm(), GradientDescent(0.1, 0))
    exact, none = (evaluate(network, split(), ByInference(solver, outcome=True)) for solver in solvers)
    assert exact["inference_converged"] == 1 and exact["inference_residual"] < 1e-5
    assert none["inference_converged"] == 0
    # Without a step only the output has an error, which pulls on z_1 alone, and z_0 is at rest.
    (w1, b1), (w2, b2) = layers_of(network)
    error = np.asarray(split().y.T, float) - (w2 @ (w1 @ np.full((K, B), 1 / K) + b1[:, None]) + b2[:, None])
    rms = np.sqrt(np.sum((w2.T @ error) ** 2) / (B * (K + len(b1))))
    assert none["inference_residual"] == pytest.approx(rms, rel=1e-5)
    plain = evaluate(network, split(), ByInference(solvers[0]))
    assert exact.keys() - plain.keys() == {"inference_residual", "inference_converged"}


def test_a_pair_is_evaluated_from_its_guess_whose_own_accuracy_is_there_too() -> None:
    model = pair()
    found = evaluate(model, split(), ByInference(GradientDescent(0.1, 0, form="activities")))
    guess = up(layers_of(model.amortiser), np.asarray(split().y.T, float))[-1]
    accuracy = np.mean(np.argmax(guess, axis=0) == LABELS)
    assert found["accuracy"] == found["guess_accuracy"] == pytest.approx(accuracy)  # no step of inference was taken


def test_lanes_are_evaluated_as_alone_each_with_its_own_solver() -> None:
    nets, rates = [generator(), generator(n_hidden=3)], (0.05, 0.2)
    nets[1] = jax.tree.map(lambda w: 1.5 * w, nets[1])
    rules = [PC(GradientDescent(b, 2), "batch_mean", evaluation=ByInference(GradientDescent(b, 9))) for b in rates]
    rules = [jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, rule) for rule in rules]
    alone = [rule.evaluate(net, split()) for rule, net in zip(rules, nets, strict=True)]
    stacked = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)
        for trees in (rules, nets)
    ]
    together = stacked[0].evaluate(stacked[1], split(), stacked=True)
    for name, values in together.items():
        np.testing.assert_allclose(values, [one[name] for one in alone], rtol=1e-12)
    assert alone[0]["reconstruction_loss"] != alone[1]["reconstruction_loss"]


def test_the_top_of_the_outputs_counts_the_classes_among_the_largest() -> None:
    network = FullyConnected(N, 1, "tanh").build(Standard(), (D,), K, key=jax.random.key(0))
    found = evaluate(network, split(Y, X), ByForwardPass(top=2))
    f = np.asarray(outputs(network, jnp.asarray(split(Y, X).x.T, float)))
    order = np.argsort(-f, axis=0)
    assert found["accuracy_top_2"] == pytest.approx(np.mean(np.any(order[:2] == LABELS, axis=0)))
    with pytest.raises(ValueError, match="top=0"):
        ByForwardPass(top=0)


def test_data_are_arranged_as_a_network_takes_them() -> None:
    images, targets = draw.normal(size=(4, 2, 2, 3)).astype(np.float32), np.eye(4, K, dtype=np.float32)
    known = np.ones_like(targets)
    known[1] = 0
    hidden = np.where(known == 1, targets, np.float32(1 / K))
    one = Split(images, targets, known)
    data = Dataset("made up", one, one, one, "", "")
    flat = np.moveaxis(images, -1, 1).reshape(4, -1)
    for arrangement, (x, y, mask, x_mask) in {
        Arrangement(flat=False): (images, targets, known, None),
        Arrangement(): (flat, targets, known, None),
        Arrangement(generative=True): (hidden, flat, None, known),  # a label that is not known is free, and not told
        Arrangement(generative=True, latents=2): (np.zeros((4, 2)), flat, None, np.zeros((4, 2))),
    }.items():
        for found, expected in zip(data.arranged(arrangement).test, (x, y, mask, x_mask), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_training_clamps_inputs_where_their_mask_says_and_infers_the_others() -> None:
    network = generator(n_hidden=1)
    x_mask = (draw.random((B, K)) > 0.5).astype(float)
    data = TrainingSet(
        jnp.asarray(X.T), jnp.asarray(Y.T), jnp.asarray(X[:, :1]), jnp.asarray(Y[:, :1]), x_mask=jnp.asarray(x_mask)
    )
    rule = PC(GradientDescent(0.1, 5), "batch_mean", input_precision=0.5)
    state = initial_state(network, lambda: optax.sgd(0.1), key=jax.random.key(0))
    training = Training(batch_size=B, epochs=1, record_every=1)
    new, _ = advance(
        state, rule, lambda: optax.sgd(0.1), data, training, lambda seen: {"loss": seen.loss}, 2, jnp.asarray(1)
    )
    gradient = rule.gradient(network, Batch(jnp.asarray(X), jnp.asarray(Y), None, jnp.asarray(x_mask.T))).gradient
    clamped = rule.gradient(network, Batch(jnp.asarray(X), jnp.asarray(Y))).gradient
    for was, g, other, now in zip(
        layers_of(network), layers_of(gradient), layers_of(clamped), layers_of(new.network), strict=True
    ):
        np.testing.assert_allclose(now[0], was[0] - 0.1 * g[0], rtol=1e-12)
        assert not np.allclose(g[0], other[0], rtol=1e-6)


def test_a_rule_for_one_network_refuses_a_pair_and_the_other_way_round() -> None:
    for rule in (PC(GradientDescent(0.1, 1), "batch_mean"), BP("batch_mean")):
        with pytest.raises(ValueError, match="choose learning=hybrid"):
            rule.check(pair())
    with pytest.raises(ValueError, match="choose network=hybrid"):
        Hybrid(GradientDescent(0.1, 1), "batch_mean").check(generator())
    with pytest.raises(ValueError, match="network=hybrid"):
        PC(GradientDescent(0.1, 1), "batch_mean", start=AmortisedStart()).check(generator())
    with pytest.raises(ValueError, match=r"generator\.generative=false"):
        HybridNetwork(FullyConnected(N, 1, "tanh"))
    with pytest.raises(ValueError, match="latents=2"):
        FullyConnected(N, 1, "tanh", latents=2)
    for rule in (
        lambda p: PC(GradientDescent(0.1, 1), "batch_mean", input_precision=p),
        lambda p: ByInference(ClosedForm(), p),
    ):
        for precision in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="input_precision="):
                rule(precision)
    with pytest.raises(ValueError, match="a pair has the same, in reverse"):
        Pair(generator(), FullyConnected(N + 1, 3, "tanh").build(Standard(), (D,), K, key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"\[5, 5, 5\] units up and \[5, 5\] down"):
        dataclasses.replace(pair(), amortiser=generator(n_hidden=2))
