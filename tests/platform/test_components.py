"""Every file in conf/ builds, and holds to the contract of its group; a new file is held to it too."""

import builtins
import inspect
import io
import itertools
import os
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import quick
from hydra.utils import get_class
from omegaconf import OmegaConf

from pcexp.config.targets import ALLOWED_TARGETS, build
from pcexp.data import AbstractData
from pcexp.energy import Batch
from pcexp.inference import AbstractInference, InferenceProblem
from pcexp.learning import AbstractLearning
from pcexp.model import FullyConnected, Pair, Standard
from pcexp.model.network import Network
from pcexp.model.parameterisation import AbstractParameterisation
from pcexp.run.session import Execution
from pcexp.run.tracking import AbstractTracker

GROUPS = tuple(quick.composer(base=()).settings["choices"])
NEEDED = {"npz": ("data.path=mine.npz",)}
"""What an option asks of its user."""


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (quick.CONF / group).glob("*.yaml"))


def component(group: str, option: str) -> Any:
    """The component that an option builds in the configuration without an experiment."""
    config = quick.composed(f"{group}={option}", *NEEDED.get(option, ()), base=())
    return build(config[group], group, ALLOWED_TARGETS, partial=group == "optimiser")


def small_net(
    parameterisation: AbstractParameterisation, seed: int = 0, activation: str = "linear", n_hidden: int = 3
) -> Network:
    node = {
        "_target_": "pcexp.model.architecture.FullyConnected", "width": 6, "n_hidden": n_hidden, "activation": activation,
    }  # fmt: skip
    return build(node, "network", ALLOWED_TARGETS).build(parameterisation, (5,), 4, key=jr.key(seed))


def weights(network: Network) -> list[np.ndarray]:
    """Weight matrices, from the input side, with their premultipliers."""
    return [segment.premultiplier * np.asarray(w) for segment in network.segments for w in segment.weight]


def test_every_group_is_known_and_has_the_option_that_is_chosen_when_nothing_is() -> None:
    there = {path.name for path in quick.CONF.iterdir() if path.is_dir()}
    assert there == {*GROUPS, "experiment", "execution", "hydra"}
    defaults = OmegaConf.to_container(OmegaConf.load(quick.CONF / "config.yaml"))["defaults"]
    chosen = {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}
    assert all(chosen[group] in options(group) for group in GROUPS)


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS if g != "protocol" for o in options(g)])
def test_every_option_builds_a_component_of_its_group(group: str, option: str) -> None:
    kinds = {
        "data": AbstractData,
        "parameterisation": AbstractParameterisation,
        "inference": AbstractInference,
        "learning": AbstractLearning,
        "tracker": AbstractTracker,
    }
    built = component(group, option)
    if group in kinds:
        assert isinstance(built, kinds[group])
    elif group == "optimiser":
        assert isinstance(built(), optax.GradientTransformation)


@pytest.mark.parametrize("option", options("data"))
def test_making_a_data_source_reads_nothing(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick.composed(f"data={option}", *NEEDED.get(option, ()), base=())
    first = build(config["data"], "data", ALLOWED_TARGETS)  # imports may read

    def refuse(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"read {arguments[:1]}")

    with monkeypatch.context() as patch:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (socket, "socket")):
            patch.setattr(module, name, refuse)
        second = build(config["data"], "data", ALLOWED_TARGETS)
    assert first == second


@pytest.mark.parametrize("option", options("network"))
@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_every_network_builds_and_runs_forward(option: str, scale: str) -> None:
    config = quick.composed(f"network={option}", f"scale={scale}", base=())
    architecture = build(config["network"], "network", ALLOWED_TARGETS)
    shape = (8,) if architecture.arrangement.flat else (32, 32, 3)
    shapes = jax.eval_shape(
        lambda: architecture.build(component("parameterisation", "standard"), shape, 4, key=jr.key(0))
    )
    activities, _ = jax.eval_shape(lambda n, x: n.forward(x), shapes, jax.ShapeDtypeStruct(shape, "float32"))
    assert (1, 4) in {z.shape for z in activities}
    assert sum(z.shape[0] for z in activities) == sum(segment.depth for segment in shapes.stacks)


@pytest.mark.parametrize("option", options("parameterisation"))
def test_a_parameterisation_draws_finite_weights_of_the_right_shape_from_the_key_alone(option: str) -> None:
    parameterisation = component("parameterisation", option)
    network = small_net(parameterisation)
    drawn = weights(network)
    assert [w.shape for w in drawn] == [(6, 5), (6, 6), (6, 6), (4, 6)]
    assert all(np.isfinite(w).all() and w.std() > 0 for w in drawn)
    assert all(segment.premultiplier > 0 for segment in network.segments)
    again, other = weights(small_net(parameterisation)), weights(small_net(parameterisation, seed=1))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(drawn, other, strict=True))
    assert not np.array_equal(drawn[1], drawn[2])  # layers are drawn apart


def linear_equilibrium(ws: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Activities that minimise the energy of a linear network with clamped ends, by dense least squares in float64."""
    sizes = [w.shape[0] for w in ws[:-1]]
    ends = np.cumsum([0, *sizes])
    blocks, target = [], []
    for index, w in enumerate(ws):  # the residual of layer l is z_l - W_l z_{l-1}
        block = np.zeros((w.shape[0], ends[-1]))
        if index < len(sizes):
            block[:, ends[index] : ends[index + 1]] = np.eye(w.shape[0])
        if index > 0:
            block[:, ends[index - 1] : ends[index]] = -w
        blocks.append(block)
        target.append(w @ x if index == 0 else -y if index == len(sizes) else np.zeros((w.shape[0], x.shape[1])))
    z = np.linalg.lstsq(np.concatenate(blocks), np.concatenate(target), rcond=None)[0]
    return [z[start:stop] for start, stop in itertools.pairwise(ends)]


@pytest.mark.parametrize("option", options("inference"))
@pytest.mark.parametrize("form", ["activities", "deviations"])
def test_a_solver_that_is_given_time_reaches_the_exact_equilibrium_of_a_linear_network(option: str, form: str) -> None:
    config = quick.composed(f"inference={option}", base=())["inference"]
    patient = {"max_steps": 4000, "tol": None, "form": form}
    solver = build(config | {k: v for k, v in patient.items() if k in config}, "inference", ALLOWED_TARGETS)
    with jax.enable_x64(True):
        network = small_net(component("parameterisation", "standard"))
        x, y = jr.normal(jr.key(1), (5, 7)), jr.normal(jr.key(2), (4, 7))
        solver.check(network)
        problem = InferenceProblem.from_batch(network, Batch(x, y))
        found = eqx.filter_jit(lambda: solver.solve(problem, key=jr.key(3)))()
        expected = linear_equilibrium(weights(network), np.asarray(x), np.asarray(y))
        hidden = [np.asarray(z) for stack in found.activities for z in stack][:-1]
        for ours, theirs in zip(hidden, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
        np.testing.assert_array_equal(found.activities[-1][0], y)
        assert float(found.residual) < 1e-7
        assert solver.forward_passes() > 0


@pytest.mark.parametrize("option", options("inference"))
def test_a_solver_says_how_far_it_got(option: str) -> None:
    """A residual and whether that counts as converged come with every solution, also with one that was cut short."""
    config = quick.composed(f"inference={option}", base=())["inference"]
    impatient = {"max_steps": 1, "tol": 1e-3}
    solver = build(config | {k: v for k, v in impatient.items() if k in config}, "inference", ALLOWED_TARGETS)
    problem = InferenceProblem.from_batch(
        small_net(component("parameterisation", "standard")),
        Batch(jr.normal(jr.key(1), (5, 7)), jr.normal(jr.key(2), (4, 7))),
    )
    found = eqx.filter_jit(lambda: solver.solve(problem, key=jr.key(3)))()
    gradient = problem.errors_and_gradient("activities", found.activities[:-1])[1]
    size = sum(leaf.size for leaf in gradient)
    assert float(found.residual) == pytest.approx(
        float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in gradient) / size)), rel=1e-3, abs=1e-6
    )
    if "max_steps" in config:
        assert not bool(found.converged) and int(found.n_steps) <= 1


@pytest.mark.parametrize("option", options("learning"))
def test_a_learning_rule_gives_a_finite_gradient_of_the_models_shape(option: str) -> None:
    rule = component("learning", option)
    network: Any = small_net(component("parameterisation", "standard"), n_hidden=5)
    if option == "hybrid":  # the one rule of a pair
        down = FullyConnected(6, 5, "tanh").build(Standard(), (4,), 5, key=jr.key(1))
        network = Pair(network, down)
    rule.check(network)
    batch = Batch(jr.normal(jr.key(1), (5, 7)), jr.normal(jr.key(2), (4, 7)))
    out = eqx.filter_jit(lambda: rule.gradient(network, batch, key=jr.key(3)))()
    shapes = [leaf.shape for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))]
    gradients = jax.tree.leaves(out.gradient)
    assert [leaf.shape for leaf in gradients] == shapes
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in gradients)
    trained = gradients if getattr(rule, "last_layers", None) is None else gradients[-1:]
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in trained)
    assert float(out.loss) > 0 and "gradient_factor" in out.diagnostics
    assert rule.forward_passes() > 0


@pytest.mark.parametrize("option", options("optimiser"))
def test_an_optimiser_descends_and_compiles_once_for_all_learning_rates(option: str) -> None:
    optimiser = component("optimiser", option)
    traces = []

    @jax.jit
    def descended(rate: jax.Array, x: jax.Array) -> jax.Array:
        traces.append(rate)
        transformation = eqx.Partial(
            optimiser.func, *optimiser.args, **(optimiser.keywords | {"learning_rate": rate})
        )()
        updates, _ = transformation.update(2 * x, transformation.init(x), x)
        return optax.apply_updates(x, updates)

    x = jnp.array([1.0, -2.0])
    for rate in (0.01, 0.1):
        assert bool((jnp.abs(descended(jnp.asarray(rate), x)) < jnp.abs(x)).all())
    assert len(traces) == 1


@pytest.mark.parametrize("option", options("protocol"))
def test_a_protocol_is_a_label_of_explicit_leaves_and_says_its_own_name(option: str) -> None:
    for rule in options("learning"):
        config = quick.composed(f"protocol={option}", f"learning={rule}", base=())
        assert config["protocol"]["name"] == option
        built = build(config["learning"], "learning", ALLOWED_TARGETS)
        of = "bp" if rule.startswith("bp") else "pc"  # variants have the scale of what they are variants of
        assert built.gradient_scale == config["protocol"][f"{of}_gradient_scale"]
    assert config["protocol"].keys() == quick.composed(base=())["protocol"].keys()
    words = [path for path in Path(quick.CONF).parent.glob("pcexp/**/*.py") if f'"{option}"' in path.read_text()]
    assert not words  # no code branches on the word


@pytest.mark.parametrize("option", options("execution"))
def test_execution_says_every_setting_at_its_default(option: str) -> None:
    written = OmegaConf.to_container(OmegaConf.load(quick.CONF / "execution" / f"{option}.yaml"))
    assert written.keys() == {field.name for field in fields(Execution)}
    built = build({"_target_": "pcexp.run.session.Execution", **written}, "execution", ALLOWED_TARGETS)
    assert all(list(getattr(built, f.name) or ()) == list(f.default or ()) if f.name == "targets"
               else getattr(built, f.name) == f.default for f in fields(Execution))  # fmt: skip


@pytest.mark.parametrize("path", sorted((quick.CONF / "hydra").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_launcher_and_sweeper_is_one_of_ours(path: Path) -> None:
    assert get_class(OmegaConf.load(path)["_target_"]).__module__ == "hydra_plugins.pcexp"


@pytest.mark.parametrize("group", [g for g in GROUPS if g not in ("protocol", "data", "network")])
def test_an_option_file_says_every_hyperparameter_of_its_component(group: str) -> None:
    """What is not written cannot be found, overridden without a plus sign, or read in the records."""
    for option in options(group):
        node = quick.composed(f"{group}={option}", base=())[group]
        if not node["_target_"].startswith("pcexp."):
            continue
        module, _, name = node["_target_"].rpartition(".")
        parameters = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
        assert node.keys() - {"_target_"} == set(parameters)
