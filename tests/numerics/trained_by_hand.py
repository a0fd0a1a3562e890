"""A training written by hand: gradients from by_hand, the optimiser from its definition, and the same by the training loop."""

from collections.abc import Callable

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcexp.inference import GradientDescent
from pcexp.learning import BP, PC
from pcexp.model.architecture import FullyConnected
from pcexp.model.parameterisation import NTK
from pcexp.train import Observation, TrainingSet, advance, epoch_permutation, weight_norms

D_IN, WIDTH, N_HIDDEN, D_OUT, N_EXAMPLES, BATCH, EPOCHS = 3, 4, 2, 2, 23, 5, 3
PER_EPOCH = N_EXAMPLES // BATCH  # 4: three examples an epoch are dropped
LAST = EPOCHS * PER_EPOCH
BETA, STEPS = 0.2, 3
RATE = 0.05


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N_EXAMPLES, D_IN))
    return x, x @ rng.normal(size=(D_IN, D_OUT))


def training_set():
    x, y = (jnp.asarray(v) for v in arrays())
    return TrainingSet(x, y, x[:4].T, y[:4].T)


def build(seed=0):
    architecture = FullyConnected(width=WIDTH, n_hidden=N_HIDDEN, activation="tanh", form="pre", biases=True)
    return architecture.build(NTK(), (D_IN,), D_OUT, key=jax.random.key(seed))


def layers(network):
    scales = by_hand.premultipliers("NTK", D_IN, WIDTH, N_HIDDEN + 1, False)
    return by_hand.layers(network, activation="tanh", form="pre", skips=False, scales=scales)


def rule(name):
    if name == "BP":
        return BP(gradient_scale="batch_sum")
    return PC(GradientDescent(activity_lr=BETA, max_steps=STEPS), gradient_scale="batch_sum")


def sgd(learning_rate=RATE, momentum=None):
    return eqx.Partial(optax.sgd, learning_rate=learning_rate, momentum=momentum)


def measure(seen: Observation):
    first = seen.network.segments[0].weight[0]
    return {"loss": seen.loss, "first": first, "norms": weight_norms(seen.gradient)}


def run(state, learning, optimiser, training, *, calls=(1000,), capacity=LAST, measure: Callable = measure, **more):
    """Final state and the recorded rows of as many calls as there are iteration counts."""
    data, recorded = training_set(), []
    for n in calls:
        n_iterations = jnp.asarray(n, jnp.int32)
        state, rows = advance(state, learning, optimiser, data, training, measure, capacity, n_iterations, **more)
        recorded.append({name: np.asarray(values[: int(rows.n_rows)]) for name, values in rows.values.items()})
    return state, {name: np.concatenate([rows[name] for rows in recorded]) for name in recorded[0]}


def key():
    return jax.random.key(17)


def step_of_sgd(parameters, gradients, memory, t):
    return [p - RATE * g for p, g in zip(parameters, gradients, strict=True)], memory


def step_of_adam(parameters, gradients, memory, t):
    memory = memory or [(0.0, 0.0)] * len(parameters)
    memory = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2) for (m, v), g in zip(memory, gradients, strict=True)]
    corrected = [(m / (1 - 0.9**t), v / (1 - 0.999**t)) for m, v in memory]
    return [p - 0.01 * m / (np.sqrt(v) + 1e-8) for p, (m, v) in zip(parameters, corrected, strict=True)], memory


def hand_written_training(network, name, step, last=LAST):
    """Weights before each update and loss of each batch, then the final weights and biases."""
    x, y = arrays()
    net, memory, seen = layers(network), None, []
    for t in range(last):
        epoch, place = divmod(t, PER_EPOCH)
        chosen = np.asarray(epoch_permutation(key(), epoch, N_EXAMPLES))[place * BATCH : (place + 1) * BATCH]
        bx, by = x[chosen].T, y[chosen].T
        if name == "BP":
            gradients = by_hand.loss_gradient(net, bx, by)
        else:
            gradients = by_hand.weight_gradient(net, bx, by_hand.descended(net, bx, by, BETA, STEPS))
        gradients = [BATCH * g for pair in gradients for g in pair]
        loss = np.sum((by - by_hand.forward(net, bx)[-1]) ** 2) / (2 * BATCH)
        seen.append((loss, net[0].weight, [np.linalg.norm(g) for g in gradients[::2]]))
        parameters, memory = step([p for layer in net for p in (layer.weight, layer.bias)], gradients, memory, t + 1)
        pairs = zip(parameters[::2], parameters[1::2], strict=True)
        net = [layer._replace(weight=w, bias=b) for layer, (w, b) in zip(net, pairs, strict=True)]
    return seen, net


def stack(trees):
    arrays, rest = zip(*(eqx.partition(tree, eqx.is_array) for tree in trees), strict=True)
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), rest[0])


def lane(tree, index):
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def identical(a, b):
    leaves = [
        [jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in jax.tree.leaves(tree)]
        for tree in (eqx.filter(a, eqx.is_array), eqx.filter(b, eqx.is_array))
    ]
    return all(np.array_equal(v, w) for v, w in zip(*leaves, strict=True))
