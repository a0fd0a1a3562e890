"""Every solver against the exact equilibrium, in error variables, and against the others."""

from pathlib import Path
from typing import Any

import by_hand
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omegaconf import OmegaConf
from solving import BATCH, D_OUT, N_HIDDEN, WIDTH, agree, batch, build, heavy_ball, residual, solved

import pcexp.inference
from pcexp.energy import Batch
from pcexp.inference import (
    AdamInference,
    ClosedForm,
    ErrorDescent,
    GradientDescent,
    InferenceProblem,
    Momentum,
    Sequential,
)
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.model.parameterisation import NTK, MuPC, Standard
from pcexp.problem import perturbed_pass

pytestmark = pytest.mark.usefixtures("x64")

CONF = Path(__file__).parents[2] / "conf" / "inference"


def nodes():
    """What conf/inference says of each solver; options that only change another one's numbers are left out."""
    read = {path.stem: OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in CONF.glob("*.yaml")}
    solvers = {name: node for name, node in sorted(read.items()) if "_target_" in node}
    return solvers | {"error_descent, descent": solvers["error_descent"] | {"method": "descent"}}


NODES = nodes()


def patient(name):
    """The solver of conf/inference/NAME.yaml with its own settings and time enough."""
    node = {k: v for k, v in NODES[name].items() if not str(v).startswith("${")}
    cls = getattr(pcexp.inference, node.pop("_target_").removeprefix("pcexp.inference."))
    return cls(**node | {k: v for k, v in {"max_steps": 10_000, "tol": None}.items() if k in node})


# The exact equilibrium


@pytest.mark.parametrize("name", NODES)
def test_a_solver_that_is_given_time_reaches_the_exact_equilibrium_of_a_linear_network(name):
    network, net = build("linear", skips=False)
    x, y = batch()
    exact, found = solved(ClosedForm(), network, x, y), solved(patient(name), network, x, y)
    agree(by_hand.unstacked(found.activities), by_hand.unstacked(exact.activities), rtol=1e-8, atol=1e-8)
    agree(by_hand.unstacked(found.errors), by_hand.unstacked(exact.errors), rtol=1e-8, atol=1e-8)
    # Theorem 3.1, with products of weight matrices written out.
    s = by_hand.rescaling(by_hand.jacobians(net, x[:, :1]))
    agree([found.errors[-1][0]], [np.linalg.solve(s, y - by_hand.forward(net, x)[-1])], rtol=1e-8, atol=1e-8)
    assert float(found.residual) < 1e-8
    assert patient(name).forward_passes() > 0


SOLVERS: dict[str, Any] = {
    "heavy ball": Momentum(2000, tol=1e-10),
    "sequential": Sequential(0.3, 2000, tol=1e-10),
    "error descent": ErrorDescent(500, "descent", tol=1e-10),
    "conjugate gradients": ErrorDescent(200, tol=1e-10),
}


def test_solvers_agree_on_the_equilibrium_of_a_tanh_network():
    network, net = build("tanh")
    x, y = batch()
    expected = heavy_ball(net, x, y, 0.2, 0.9, 500)
    assert residual(net, x, expected) < 1e-11
    for name, solver in SOLVERS.items():
        found = solved(solver, network, x, y)
        agree(by_hand.unstacked(found.activities), expected, rtol=1e-7, atol=1e-7)
        agree(by_hand.unstacked(found.errors), by_hand.errors(net, x, expected), rtol=1e-7, atol=1e-7)
        assert bool(found.converged) and float(found.residual) <= 1e-10, name
        assert 0 < int(found.n_steps) < solver.max_steps, name


def test_solvers_agree_on_the_equilibrium_of_a_convolutional_network_with_max_pooling():
    network = Convolutional(channels=(2,), widths=(3,), activation="tanh").build(
        NTK(), (4, 4, 1), D_OUT, key=jax.random.key(1)
    )
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(3, 4, 4, 1)), rng.normal(size=(D_OUT, 3))
    names = ("heavy ball", "sequential", "conjugate gradients")
    reference, *others = [solved(SOLVERS[name], network, x, y) for name in names]
    for found in others:
        assert bool(reference.converged) and bool(found.converged)
        agree(found.activities, reference.activities, rtol=1e-7, atol=1e-7)


SHORT: dict[str, Any] = {
    "heavy ball": Momentum(6),
    "Adam": AdamInference(0.1, 6),
    "sequential": Sequential(0.3, 6),
    "conjugate gradients": ErrorDescent(4),
}


@pytest.mark.parametrize("name", SHORT)
def test_an_example_does_not_depend_on_the_rest_of_its_batch_and_a_short_solve_reports_its_residual(name):
    network, net = build("tanh")
    (x, y), (other_x, other_y) = batch(), batch(seed=7)
    found = solved(SHORT[name], network, x, y)
    others = solved(SHORT[name], network, *(np.c_[a[:, :1], 3 * b[:, 1:]] for a, b in ((x, other_x), (y, other_y))))
    agree([z[..., 0] for z in found.activities], [z[..., 0] for z in others.activities])
    agree([e[..., 0] for e in found.errors], [e[..., 0] for e in others.errors])
    agree([found.residual], [residual(net, x, by_hand.unstacked(found.activities))], rtol=1e-9)
    agree(by_hand.unstacked(found.errors), by_hand.errors(net, x, by_hand.unstacked(found.activities)))
    assert (bool(found.converged), int(found.n_steps)) == (False, SHORT[name].max_steps)


@pytest.mark.parametrize("name", SHORT)
def test_a_solver_stays_in_the_precision_of_the_network(name):
    network, _ = build("tanh")
    x, y = batch()
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (network, x, y))
    solver = eqx.tree_at(lambda s: s.tol, SHORT[name], 1e-3, is_leaf=lambda leaf: leaf is None)
    out = jax.eval_shape(lambda n, x, y: solver.solve(InferenceProblem.from_batch(n, Batch(x, y))), *single)
    assert {leaf.dtype for leaf in (*out.activities, *out.errors, out.residual)} == {jnp.dtype("float32")}


# Error variables


@pytest.mark.parametrize(("activation", "form"), [("tanh", "pre"), ("relu", "post")])
def test_the_perturbed_pass_rebuilds_the_activities_that_have_the_given_errors(activation, form):
    network, net = build(activation, form)
    x, y = batch()
    rng = np.random.default_rng(8)
    errors = [rng.normal(size=(WIDTH, BATCH)) for _ in range(N_HIDDEN)]
    given = tuple(map(jnp.asarray, by_hand.stacked(network, errors)))
    output, deviations = eqx.filter_jit(
        lambda n, x, y, e: perturbed_pass(InferenceProblem.from_batch(n, Batch(x, y)), e)
    )(network, jnp.asarray(x), jnp.asarray(y), given)
    zhat = by_hand.forward(net, x)
    rebuilt = [*by_hand.unstacked(deviations), y - zhat[-1]]
    agree([*errors, output[0]], by_hand.deviation_errors(net, zhat, rebuilt))


def test_conjugate_gradients_end_within_d_out_steps_on_a_linear_network():
    """H_e is the identity plus a matrix of rank d_out, in whose range the gradient lies: the theorem on their termination."""
    network, _ = build("linear", parameterisation=Standard)
    x, y = batch()
    found = solved(ErrorDescent(100, tol=1e-12), network, x, y)
    assert bool(found.converged) and int(found.n_steps) == D_OUT


@pytest.mark.parametrize(("activation", "evaluations"), [("linear", 30), ("tanh", 80)])
def test_a_deep_mupc_network_is_at_equilibrium_for_the_price_of_a_few_backward_passes(activation, evaluations):
    """Relative residual 1e-6 at H = 32, where descent in activities takes tens of thousands of steps."""
    architecture = FullyConnected(64, 32, activation, form="pre", skips=True, segment_size=32)
    network = architecture.build(MuPC(), (64,), 10, key=jax.random.key(0))
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(64, 4)), np.eye(10)[:, rng.integers(10, size=4)]
    scales = by_hand.premultipliers("MuPC", 64, 64, 33, True)
    net = by_hand.layers(network, activation=activation, form="pre", skips=True, scales=scales)
    start = residual(net, x, [*by_hand.forward(net, x)[:-1], y])
    found = solved(ErrorDescent(200, tol=1e-6 * start), network, x, y)
    assert bool(found.converged)
    assert residual(net, x, by_hand.unstacked(found.activities)) <= 1.001e-6 * start
    # A step evaluates one gradient and one product with the Hessian, which costs as much.
    assert 2 * (int(found.n_steps) + 1) < evaluations


def test_with_relu_a_solve_ends_on_the_energy_and_says_that_it_has_not_converged():
    network, net = build("relu")
    x, y = batch()
    found = solved(ErrorDescent(1000, tol=1e-8, energy_tol=1e-5), network, x, y)
    assert 0 < int(found.n_steps) < 1000
    activities = by_hand.unstacked(found.activities)
    # The residual is measured where the solve ended, and is no smaller than it is.
    agree([found.residual], [residual(net, x, activities)], rtol=1e-8)
    assert bool(found.converged) == (float(found.residual) <= 1e-8) is False
    long = by_hand.energy(net, x, by_hand.descended(net, x, y, 0.1, 1500))
    assert by_hand.energy(net, x, activities) < 1.01 * long


def test_lanes_with_networks_and_tolerances_of_their_own_are_solved_as_they_are_one_by_one():
    networks = [build("tanh")[0], jax.tree.map(lambda leaf: 0.5 * leaf, build("tanh")[0])]
    x, y = batch()
    tols = [1e-3, 1e-9]
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)

    @eqx.filter_jit
    def together(lanes, tols, x, y):
        def one(network, tol):
            solver = eqx.tree_at(lambda s: s.tol, SOLVERS["conjugate gradients"], tol)
            return solver.solve(InferenceProblem.from_batch(network, Batch(x, y)))

        return jax.vmap(one)(lanes, tols)

    packed = together(lanes, jnp.asarray(tols), jnp.asarray(x), jnp.asarray(y))
    for lane, (network, tol) in enumerate(zip(networks, tols, strict=True)):
        alone = solved(ErrorDescent(200, tol=tol), network, x, y)
        agree([z[lane] for z in packed.activities], alone.activities)
        assert int(packed.n_steps[lane]) == int(alone.n_steps) > 0 and bool(packed.converged[lane])
    assert len(set(map(int, packed.n_steps))) == 2


# What is refused


def test_asking_for_the_closed_form_in_a_nonlinear_network_names_exactly_the_solvers_that_work():
    network, _ = build("tanh")
    with pytest.raises(ValueError, match="inference=closed_form") as refused:
        ClosedForm().check(network)
    named = str(refused.value).rpartition("a solver that works here: inference=")[2].replace(" or ", ", ")
    # Options of conf/inference that take the network and reach an equilibrium of it, the way `patient` asks them to.
    works = {name for name in NODES if "," not in name and name != "closed_form"}
    assert {name.strip() for name in named.split(",")} == works
    x, y = batch()
    for name in sorted(works):
        patient(name).check(network)
        assert float(solved(patient(name), network, x, y).residual) < 1e-8, name


@pytest.mark.parametrize(
    ("solver", "field", "value"),
    [
        *[(solver, "max_steps", -1) for solver in (GradientDescent, Momentum, AdamInference, Sequential, ErrorDescent)],
        *[(solver, "tol", 0.0) for solver in (GradientDescent, Momentum, AdamInference, Sequential, ErrorDescent)],
        *[(solver, "activity_lr", -0.1) for solver in (GradientDescent, Momentum, AdamInference, Sequential)],
        *[(solver, "n_eigen_steps", 0) for solver in (Momentum, ErrorDescent)],
        (Momentum, "momentum", 1.0),
        (AdamInference, "b1", 1.0),
        (AdamInference, "b2", -0.5),
        (AdamInference, "eps", 0.0),
        (ErrorDescent, "energy_tol", float("nan")),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(solver, field, value):
    valid = {"max_steps": 3} | ({"activity_lr": 0.1} if solver not in (Momentum, ErrorDescent) else {})
    solver(**valid)
    with pytest.raises(ValueError, match=f"^{field} must .*{value}$"):
        solver(**valid | {field: value})
