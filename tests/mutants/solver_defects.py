"""Known defects of solvers, and of what rows say of inference."""

from platform_defects import Defect

NUMERICS = "tests/numerics/"
EQUILIBRIUM = "tests/theory/test_equilibrium.py::"
PROMISES = f"{NUMERICS}test_solver_promises.py::"
DESCENDING = f"{PROMISES}test_a_solver_that_chooses_its_steps_never_returns_more_energy_of_a_sample_than_it_met"
CONJUGATE = (f"{PROMISES}test_conjugate_gradients_restart_and_halve_as_a_loop_written_by_hand_does",)
REGIME = f"{NUMERICS}test_regime.py::"

SOLVER_DEFECTS = (
    Defect(
        "the largest eigenvalue without its residual",
        "theory/eigenpairs.py",
        "values[:, -1] + beside[-1] * jnp.abs(mixtures[:, -1, -1])",
        "values[:, -1]",
        (
            "tests/theory/test_eigenpairs.py::"
            "test_the_largest_eigenvalue_comes_from_below_and_with_the_residual_of_its_ritz_vector",
        ),
    ),
    Defect(
        "a closed form that has always converged",
        "inference/closed_form.py",
        "n_steps=jnp.array(1), tol=tol, errors=errors",
        "n_steps=jnp.array(1), tol=jnp.inf, errors=errors",
        (f"{EQUILIBRIUM}test_a_closed_form_that_is_badly_conditioned_says_that_it_has_not_converged",),
    ),
    Defect(
        "error descent accepts a higher energy",
        "inference/error_descent.py",
        "lowers = not_above(trial.energy, last.energy)",
        "lowers = trial.energy < jnp.inf",
        CONJUGATE,
    ),
    Defect(
        "conjugate gradients go on where they should restart",
        "inference/error_descent.py",
        "scaled(network, jnp.maximum(beta, 0), direction)",
        "scaled(network, beta, direction)",
        CONJUGATE,
    ),
    Defect(
        "a controller of the flow without its relative tolerance",
        "inference/ode.py",
        "rtol=self.step_tol, atol",
        "rtol=0.0, atol",
        (
            f"{NUMERICS}test_ode.py::"
            "test_the_controllers_tolerance_is_relative_to_large_variables_and_absolute_of_small_ones",
        ),
    ),
    Defect(
        "heavy ball takes a step that raises the energy",
        "inference/momentum.py",
        "falls = not_above(energies, memory.energies)",
        "falls = jnp.isfinite(energies)",
        (f"{DESCENDING}[heavy ball-relu-pre]",),
    ),
    Defect(
        "heavy ball never shortens its step",
        "inference/momentum.py",
        "jnp.where(~falls & memory.from_rest, 2 * largest, largest)",
        "largest",
        (f"{NUMERICS}test_solver_steps.py::test_heavy_balls_step_and_momentum_are_those_of_the_extreme_eigenvalues",),
    ),
    Defect(
        "a solve that ends above its start does not say so",
        "inference/base.py",
        "(reason != TOLERANCE) & ~not_above(energy, before)",
        "(reason != TOLERANCE) & (energy > jnp.inf)",
        (f"{PROMISES}test_a_solver_of_given_steps_that_ends_above_its_start_says_that_it_has_risen[gradient descent]",),
    ),
    Defect(
        "error descent that met its tolerance ended on its energy",
        "inference/error_descent.py",
        "return jnp.where(met, TOLERANCE, STEPS)",
        "return jnp.where(met, ENERGY, STEPS)",
        (
            f"{PROMISES}test_a_solve_that_met_its_tolerance_has_converged_whatever_the_residual_is_in_other_arithmetic"
            "[error_descent]",
        ),
    ),
    Defect(
        "the energy of a cross-entropy is that of squared errors",
        "problem.py",
        "return jnp.sum(self.energies(form, hidden, errors))",
        "return summed_energy(self.network, errors)",
        (f"{PROMISES}test_halving_of_a_softmax_net_looks_at_its_cross_entropy[pre-activation, skips-activities]",),
    ),
    Defect(
        "a solver asks nobody whether it can work",
        "inference/base.py",
        "self.check(problem.network if problem.free is None else problem.network.above_prior)",
        "pass",
        (
            f"{PROMISES}test_a_solver_is_right_for_an_output_or_refuses_it_before_anything_is_compiled[error_descent-softmax]",
        ),
    ),
    Defect(
        "a fraction of the energy that is left, not closed",
        "learning/regime.py",
        '(start - seen["inference_energy"]) / gap',
        '(seen["inference_energy"] - lowest.energy) / gap',
        (f"{REGIME}test_steps_and_closed_fractions_are_those_of_dense_hessians_and_of_the_closed_form[7]",),
    ),
    Defect(
        "a regime that looks at the easiest sample",
        "learning/regime.py",
        "inference.activity_lr * jnp.max(below)",
        "inference.activity_lr * jnp.min(below)",
        (f"{REGIME}test_the_step_of_a_row_is_that_of_the_sample_with_the_largest_eigenvalue",),
    ),
)
