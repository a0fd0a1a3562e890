"""fabricpc at its best: its own `make_train_step`, which jits state, inference and weight update as one.

Variants: `explicit`, nodes with written-out derivatives (`LinearExplicitGrad`; without skips only); `autodiff`, `Linear`, or
for residual layers a node of our own as its guide to custom nodes asks; `looped-...`, the same step in one jitted loop.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fabricpc.core.activations import IdentityActivation, TanhActivation
from fabricpc.core.inference import InferenceSGD
from fabricpc.core.topology import Edge
from fabricpc.graph_assembly import TaskMap, graph
from fabricpc.graph_initialization import initialize_params
from fabricpc.graph_initialization.state_initializer import FeedforwardStateInit
from fabricpc.nodes import IdentityNode, Linear
from fabricpc.nodes.linear_explicit_grad import LinearExplicitGrad
from fabricpc.training import make_train_step
from peer_worker import Layer, Problem

VARIANTS = ("explicit", "autodiff", "looped-explicit", "looped-autodiff")


class ChapterFive(Linear):
    """mu = a W phi(z), plus z where there is a skip: the pre-activation layer, which fabricpc has no node for."""

    def __init__(self, shape: tuple[int, ...], name: str, layer: Layer) -> None:
        super().__init__(shape, name, use_bias=False)
        self._extra_config: dict[str, Any] = {**self._extra_config, "layer": layer}

    @staticmethod
    def predict(params, inputs, state, node_info):
        (edge,) = inputs
        layer, z = node_info.node_config["layer"], inputs[edge]
        mu = layer.premultiplier * ((jnp.tanh(z) if layer.before == "tanh" else z) @ params.weights[edge])
        return (mu + z if layer.skip else mu), None


class Step:
    """One training step a call, or as many as asked in one."""

    def __init__(self, problem: Problem, variant: str) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant} of fabricpc: valid are {', '.join(VARIANTS)}")
        self.problem, self.looped = problem, variant.startswith("looped-")
        explicit = variant.endswith("explicit")
        self.x, self.y = jnp.asarray(problem.x), jnp.asarray(problem.y)
        nodes = [IdentityNode(shape=(problem.x.shape[-1],), name="x")]
        for i, (layer, w) in enumerate(zip(problem.layers, problem.weights, strict=True)):
            shape, name = (w.shape[0],), f"z{i + 1}"
            if layer.before == "linear" and not layer.skip and layer.premultiplier == 1:
                phi = TanhActivation() if layer.after == "tanh" else IdentityActivation()
                kind = LinearExplicitGrad if explicit else Linear
                nodes.append(kind(shape=shape, name=name, activation=phi, use_bias=False))
            elif explicit:
                raise ValueError("variant=explicit of fabricpc: it has no written-out derivatives for residual layers")
            else:
                nodes.append(ChapterFive(shape, name, layer))
        edges = [Edge(source=a, target=b.slot("in")) for a, b in itertools.pairwise(nodes)]
        self.structure = graph(
            nodes=nodes,
            edges=edges,
            task_map=TaskMap(x=nodes[0], y=nodes[-1]),
            inference=InferenceSGD(eta_infer=problem.activity_lr, infer_steps=problem.steps),
            graph_state_initializer=FeedforwardStateInit(),
        )
        self.key = jax.random.key(0)
        drawn = initialize_params(self.structure, self.key)
        self.names = [node.name for node in nodes[1:]]
        for name, w in zip(self.names, problem.weights, strict=True):
            (edge,) = drawn.nodes[name].weights
            drawn.nodes[name].weights[edge] = jnp.asarray(w.T)
        self.initial = drawn
        self.start("adam", problem.learning_rate)

    def start(self, optimiser: str, learning_rate: float) -> None:
        rule = {"adam": optax.adam, "sgd": optax.sgd}[optimiser](learning_rate)
        self.params = jax.tree.map(jnp.copy, self.initial)
        self.optimiser_state, self.done = rule.init(self.params), 0
        step = make_train_step(self.structure, rule, algorithm="pc")

        def batch(i):
            return {"x": self.x[i % len(self.x)], "y": self.y[i % len(self.x)]}

        @jax.jit
        def loop(params, state, first, n):
            def once(i, carry):
                return step(*carry, batch(i), self.key)[:2]

            return jax.lax.fori_loop(first, first + n, once, (params, state))

        self.step, self.loop, self.batch = step, loop, batch

    def run(self, n: int) -> None:
        if self.looped:
            self.params, self.optimiser_state = self.loop(self.params, self.optimiser_state, self.done, n)
        else:
            for i in range(self.done, self.done + n):
                self.params, self.optimiser_state, _, _ = self.step(
                    self.params, self.optimiser_state, self.batch(i), self.key
                )
        self.done += n
        jax.block_until_ready(self.params)

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(next(iter(self.params.nodes[name].weights.values()))).T for name in self.names]
