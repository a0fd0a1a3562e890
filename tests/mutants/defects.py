"""Known defects of the numerics: a piece of the package's text, what to put in its place, and the tests that must notice."""

from door_defects import DOOR_DEFECTS
from kinds_defects import KINDS_DEFECTS
from platform_defects import PLATFORM_DEFECTS, Defect
from solver_defects import SOLVER_DEFECTS

NUMERICS = "tests/numerics/"
BY_HAND = f"{NUMERICS}test_energy.py::test_energy_errors_and_gradients_are_those_of_a_loop_written_by_hand"
PRE = (f"{BY_HAND}[pre-activation, tanh, biases, skips, muPC-2]",)
POST = (f"{BY_HAND}[post-activation, relu, biases, no skips, standard-2]",)
ENDS = (
    f"{NUMERICS}test_energy.py::"
    "test_the_ends_have_no_skip_and_phi_acts_neither_on_x_nor_on_the_output_even_where_shapes_would_allow_it",
)
DRAWS = (f"{NUMERICS}test_energy.py::test_the_segment_size_does_not_change_a_drawn_weight_or_bias",)
ACTIVATION = f"{NUMERICS}test_activation.py::"
CONVOLUTION = f"{NUMERICS}test_convolution.py::"
PARAMETERISATION = f"{NUMERICS}test_parameterisation.py::"
TABLE = (f"{PARAMETERISATION}test_premultipliers_are_those_of_table_5_1",)
INFERENCE = f"{NUMERICS}test_inference.py::"
STEPS = (f"{INFERENCE}test_gradient_descent_takes_the_steps_that_a_loop_written_by_hand_takes[tanh-pre-deviations]",)
HALVING = (f"{INFERENCE}test_the_halving_schedule_is_the_published_one[2.5-1-1-False-deviations]",)
WAVEFRONT = (f"{NUMERICS}test_wavefront.py::test_skipping_changes_nothing[pre-linear-4-5]",)
LEARNING = f"{NUMERICS}test_learning.py::"
SCALES = (f"{LEARNING}test_backpropagation_is_the_gradient_of_the_written_out_objective",)
TRAIN = f"{NUMERICS}test_train.py::"
TRAINING = (f"{TRAIN}test_training_takes_the_steps_of_a_loop_written_by_hand[BP, SGD]",)
ORDER = (f"{TRAIN}test_an_epoch_visits_every_example_at_most_once_in_an_order_of_its_own",)
PRECISION = f"{NUMERICS}test_precision.py::"
OUTPUT = f"{NUMERICS}test_output.py::"
OUTPUT_ERROR = f"{OUTPUT}test_the_error_y_minus_g_is_minus_the_derivative_of_the_loss"
LOSSES = (f"{OUTPUT}test_losses_are_those_of_scipy",)
LANES = (f"{TRAIN}test_lanes_advance_together_as_they_do_one_by_one_and_one_that_diverges_stops_alone",)
EQUILIBRIUM = "tests/theory/test_equilibrium.py::"
DENSE = (f"{EQUILIBRIUM}test_the_closed_form_is_the_solution_of_the_dense_system[muPC with skips and biases]",)
THEOREM = (
    f"{EQUILIBRIUM}test_the_equilibrated_energy_is_that_of_theorem_3_1_and_of_the_dense_solution"
    "[muPC with skips and biases]",
)
HESSIAN = "tests/theory/test_hessian.py::"
MASK = f"{NUMERICS}test_mask.py::"

DEFECTS = (
    Defect("the energy without its half", "energy.py", "/ (2 * square.shape[axis])", "/ square.shape[axis]", POST),
    Defect("the summed energy without its half", "energy.py", "return 0.5 * jnp.sum(", "return jnp.sum(", PRE),
    Defect(
        "the energy divided by the width", "energy.py", "/ (2 * square.shape[axis])", "/ (2 * square.shape[1])", POST
    ),
    Defect(
        "step size over batch",
        "inference/gradient_descent.py",
        "hidden[index] - self.activity_lr * problem.segment_gradient(index, errors, pull, above)",
        "hidden[index] - self.activity_lr * problem.segment_gradient(index, errors, pull, above) / above.shape[-1]",
        (f"{INFERENCE}test_an_example_has_the_same_equilibrium_alone_and_in_a_batch",),
    ),
    Defect(
        "activities climb the energy",
        "inference/gradient_descent.py",
        "hidden[index] - self.activity_lr * problem.segment_gradient(index, errors, pull, above)",
        "hidden[index] + self.activity_lr * problem.segment_gradient(index, errors, pull, above)",
        STEPS,
    ),
    Defect(
        "activities climb the energy where a schedule looks at it",
        "inference/gradient_descent.py",
        "z - step_size * g",
        "z + step_size * g",
        HALVING,
    ),
    Defect(
        "a layer is pulled by its own error",
        "problem.py",
        "jnp.concatenate([pull[1:], above[None]])",
        "jnp.concatenate([pull[:-1], above[None]])",
        PRE,
    ),
    Defect(
        "the wavefront skips one layer too many",
        "inference/gradient_descent.py",
        "reached = t >= tops[-1] - tops[index]",
        "reached = t > tops[-1] - tops[index]",
        WAVEFRONT,
    ),
    Defect(
        "the wavefront skips in activities too",
        "inference/gradient_descent.py",
        'skipping = self.wavefront and self.form == "deviations"',
        "skipping = self.wavefront",
        (f"{NUMERICS}test_wavefront.py::test_where_its_conditions_fail_the_wavefront_is_off",),
    ),
    Defect("weights climb the energy", "energy.py", "-e / batch", "e / batch", POST),
    Defect(
        "weight gradients divided by the width",
        "energy.py",
        "batch, gradients = activities[-1].shape[-1], []",
        "batch, gradients = activities[-1].shape[-2], []",
        POST,
    ),
    Defect(
        "dense layers ignore the premultiplier",
        "model/segments.py",
        "return product if self.premultiplier == 1 else self.premultiplier * product",
        "return product",
        PRE,
    ),
    Defect(
        "the pull of dense layers ignores the premultiplier",
        "model/segments.py",
        "return self._derivative(pulled if like.ndim == 2 else pulled.reshape(like.shape))",
        "return pulled if like.ndim == 2 else pulled.reshape(like.shape)",
        PRE,
    ),
    Defect(
        "convolutions ignore the premultiplier",
        "model/convolution.py",
        "return out if self.premultiplier == 1 else self.premultiplier * out",
        "return out",
        (f"{CONVOLUTION}test_a_segment_is_a_scaled_convolution_a_bias_the_activation_and_max_pooling",),
    ),
    Defect(
        "an even kernel is padded on the wrong side",
        "model/convolution.py",
        "below = (kernel - 1) // 2",
        "below = kernel // 2",
        (f"{CONVOLUTION}test_the_linear_map_is_xlas_convolution_and_so_are_its_gradients[2]",),
    ),
    Defect(
        "biases are ignored", "model/segments.py", "return u if self.bias is None else u + self.bias", "return u", POST
    ),
    Defect(
        "square weights are transposed",
        "model/segments.py",
        "product = _product(self.weight, 2, inputs, 1)",
        "d_out, d_in = self.weight.shape[1:]\n        product = _product(self.weight, 1 + (d_out != d_in), inputs, 1)",
        PRE,
    ),
    Defect(
        "inference pulls with square weights as they are",
        "model/segments.py",
        "transposed = jnp.swapaxes(self.weight, 1, 2) if",
        "square = self.weight.shape[1] == self.weight.shape[2]\n        "
        "transposed = self.weight if square else jnp.swapaxes(self.weight, 1, 2) if",
        PRE,
    ),
    Defect(
        "differences skip one layer too many",
        "problem.py",
        "if index == 0 and self.network.segments[0].depth == 1:",
        "if index < 2 and self.network.segments[0].depth == 1:",
        (f"{BY_HAND}[pre-activation, tanh, biases, skips, muPC-1]",),
    ),
    Defect(
        "differences forget the skip",
        "model/segments.py",
        "return out + d if self.skip else out",
        "return out",
        PRE,
    ),
    Defect(
        "predictions forget the skip",
        "model/segments.py",
        "return out + inputs if self.skip else out",
        "return out",
        PRE,
    ),
    Defect(
        "the last layer has a skip",
        "model/architecture.py",
        "skip=self.skips and 1 < layers[0] < depth",
        "skip=self.skips and 1 < layers[0]",
        ENDS,
    ),
    Defect(
        "the first layer has a skip",
        "model/architecture.py",
        "skip=self.skips and 1 < layers[0] < depth",
        "skip=self.skips and layers[0] < depth",
        ENDS,
    ),
    Defect(
        "phi acts on the input",
        "model/architecture.py",
        'if self.form == "pre" and layers[0] > 1',
        'if self.form == "pre"',
        ENDS,
    ),
    Defect(
        "phi acts on the output",
        "model/architecture.py",
        'self.form == "post" and layers[0] < depth else',
        'self.form == "post" else',
        ENDS,
    ),
    Defect(
        "layers of a segment share their draw",
        "model/architecture.py",
        "jr.fold_in(key, at.layer)",
        "jr.fold_in(key, layers[0])",
        DRAWS,
    ),
    Defect(
        "relu forgets that it switches off",
        "model/activation.py",
        "jnp.where(z > 0, d, -u)",
        "jnp.where(z > 0, d, 0)",
        (f"{ACTIVATION}test_a_relu_difference_crosses_the_kink_as_the_function_does",),
    ),
    Defect(
        "the difference of tanh with a wrong sign",
        "model/activation.py",
        "(1 + jnp.abs(activated)) /",
        "(1 - jnp.abs(activated)) /",
        (f"{ACTIVATION}test_differences_keep_full_relative_accuracy_in_float32[tanh]",),
    ),
    Defect(
        "a difference has its slope at the start",
        "model/activation.py",
        "at_end = _derivative(activation, u + d)",
        "at_end = _derivative(activation, u)",
        (f"{ACTIVATION}test_derivatives_of_a_difference_are_its_finite_differences[tanh]",),
    ),
    Defect(
        "max pooling forgets that its winner changes",
        "model/activation.py",
        "return _pick(change, winner) + (_pick(old, winner) - _pick(old, _winner(old)))",
        "return _pick(change, winner)",
        (f"{ACTIVATION}test_pooled_differences_agree_with_subtraction_whether_or_not_the_winner_changes",),
    ),
    Defect(
        "muPC's output scaled as NTK's",
        "model/parameterisation.py",
        "return 1 / at.fan_in if at.layer",
        "return 1 / math.sqrt(at.fan_in) if at.layer",
        TABLE,
    ),
    Defect(
        "residual branches without the depth",
        "model/parameterisation.py",
        "at.fan_in * (at.depth if residual else 1)",
        "at.fan_in",
        TABLE,
    ),
    Defect(
        "the zero-rank saddle at the wrong layer",
        "model/parameterisation.py",
        "if at.layer == at.depth - 1:",
        "if at.layer == at.depth:",
        (f"{PARAMETERISATION}test_near_the_zero_rank_saddle_only_the_penultimate_matrix_is_at_the_default",),
    ),
    Defect(
        "uniform draws with twice their range",
        "model/parameterisation.py",
        "bound = 1 / math.sqrt(fan_in)",
        "bound = 2 / math.sqrt(fan_in)",
        (f"{PARAMETERISATION}test_standard_uniform_weights_fill_plus_minus_one_over_the_root_of_the_fan_in",),
    ),
    Defect(
        "the residual without the number of units",
        "inference/base.py",
        "jnp.sqrt(total / sum(leaf.size for leaf in tree))",
        "jnp.sqrt(total / len(tree))",
        STEPS,
    ),
    Defect(
        "the step is never halved",
        "inference/gradient_descent.py",
        "self.halvings + (energy > self.last_energy)",
        "self.halvings + (energy > jnp.inf)",
        HALVING,
    ),
    Defect(
        "a halved step is forgotten",
        "inference/gradient_descent.py",
        "schedule = schedule.seen(at.energy)\n            # 2^-halvings keeps the step size itself a traced constant of the solve.\n"
        "            step_size = self.activity_lr * jnp.exp2(-schedule.halvings.astype(at.energy.dtype))",
        "step_size = self.activity_lr * jnp.where(at.energy > schedule.last_energy, 0.5, 1.0)\n"
        "            schedule = schedule.seen(at.energy)",
        HALVING,
    ),
    Defect(
        "the tolerance is on the square",
        "inference/steps.py",
        "root_mean_square(at.gradient) <= tol",
        "root_mean_square(at.gradient) ** 2 <= tol",
        (f"{INFERENCE}test_a_tolerance_ends_inference_at_the_first_residual_below_it",),
    ),
    Defect(
        "a solve that ends on its energy has converged",
        "inference/base.py",
        "residual <= (0.0 if tol is None else tol)",
        "residual <= (jnp.inf if tol is None else tol)",
        (
            f"{NUMERICS}test_energy_tolerance.py::test_a_solve_ends_where_the_second_half_of_its_steps_has_gained_too_little",
        ),
    ),
    Defect(
        "the energy is looked at before it was seen to fall",
        "inference/steps.py",
        "self.before - lowest <= tol * self.before",
        "self.before - energy <= tol * self.before",
        (f"{NUMERICS}test_energy_tolerance.py::test_a_climb_on_the_way_down_does_not_end_a_solve",),
    ),
    Defect(
        "the summed gradient is a mean",
        "learning/base.py",
        '"batch_sum": float(batch)',
        '"batch_sum": 1.0',
        SCALES,
    ),
    Defect(
        "the mean squared error's gradient without its two",
        "learning/base.py",
        "2.0 / d_out",
        "1.0 / d_out",
        SCALES,
    ),
    Defect(
        "the rescaling without its identity",
        "theory/equilibrated.py",
        'jnp.einsum("l,lki,lmi->km", 1 / p, g, g) for p, g in pairs]',
        'jnp.einsum("l,lki,lmi->km", 1 / p, g, g) for p, g in list(pairs)[:-1]]',
        THEOREM,
    ),
    Defect(
        "the equilibrated energy without its half",
        "theory/equilibrated.py",
        "pulled_by(rescaling(network), r, mask)) / (2 * y.shape[-1])",
        "pulled_by(rescaling(network), r, mask)) / y.shape[-1]",
        THEOREM,
    ),
    Defect(
        "the closed form transposes its weights",
        "theory/equilibrated.py",
        "above = segment.premultiplier * (weight @ d) + e",
        "above = segment.premultiplier * (weight.T @ d) + e",
        DENSE,
    ),
    Defect(
        "the gradient of the equilibrated energy without precisions",
        "theory/equilibrated.py",
        "activities(at, found, y), weighted(network, found.errors))",
        "activities(at, found, y), found.errors)",
        (
            "tests/theory/test_equilibrated.py::"
            "test_the_gradient_is_that_of_the_dense_systems_energy_and_of_the_formula_differentiated"
            "[NTK with biases and precisions]",
        ),
    ),
    Defect(
        "the closed Hessian at a zero output without the hidden layers below the last",
        "theory/hessian.py",
        'jnp.einsum("l,lni,lmi->nm", 1 / p, m, m) for p, m in pairs]',
        'jnp.einsum("l,lni,lmi->nm", 1 / p, m, m) for p, m in list(pairs)[-1:]]',
        (f"{HESSIAN}test_where_the_output_is_zero_hessians_are_those_of_the_closed_form[only the output is zero]",),
    ),
    Defect(
        "the ends of a net of one hidden layer do not couple at the origin",
        "theory/hessian.py",
        "if all(skips) else 0.0",
        "if skips and all(skips) else 0.0",
        (f"{HESSIAN}test_spectra_at_the_origin_are_those_of_the_dense_hessians_and_read_no_weights[origin, H=1]",),
    ),
    Defect(
        "Lanczos that does not start anew in an invariant subspace",
        "theory/eigenpairs.py",
        "w = jnp.where(exhausted[None], fresh, w)",
        "w = jnp.where(exhausted, w, w)",
        (
            "tests/theory/test_eigenpairs.py::"
            "test_with_as_many_steps_as_rows_every_eigenvalue_is_found_as_often_as_it_is_there[zero]",
        ),
    ),
    Defect(
        "negative curvature along hidden units that are active",
        "theory/saddles.py",
        "free = rows[seen:].T",
        "free = rows.T",
        ("tests/theory/test_saddles.py::test_hidden_activities_need_only_be_uncorrelated_with_the_target",),
    ),
    Defect(
        "the order of batches is that of the first epoch",
        "train.py",
        "epoch_permutation(key, t // per_epoch, n_examples)",
        "epoch_permutation(key, 0 * t, n_examples)",
        ORDER,
    ),
    Defect(
        "the order of batches is drawn once a call",
        "train.py",
        "(t == start) | (t % per_epoch == 0)",
        "t == start",
        ORDER,
    ),
    Defect(
        "rows are recorded one iteration late",
        "train.py",
        "due = here & ((t % training.record_every == 0) | ~finite)",
        "due = here & (((t + 1) % training.record_every == 0) | ~finite)",
        (f"{TRAIN}test_calls_cut_anywhere_give_the_same_bits_as_one_call",),
    ),
    Defect(
        "measured after the update",
        "train.py",
        "over(functools.partial(see, t=t))(state, out, given, new, order, learning)",
        "over(functools.partial(see, t=t))(new, out, given, new, order, learning)",
        TRAINING,
    ),
    Defect(
        "a lane that has ended moves with its pack",
        "train.py",
        "return new if over is _one_lane else _where(active(state), new, state)",
        "return new",
        LANES,
    ),
    Defect(
        "the forward pass is rounded with the products of inference",
        "problem.py",
        "forward_pass(network, batch.x), batch.mask",
        "forward_pass(network.in_products(precision), batch.x), batch.mask",
        (f"{PRECISION}test_with_bfloat16_the_forward_pass_and_the_loss_are_those_of_float32[PC]",),
    ),
    Defect(
        "weight gradients ignore the premultiplier",
        "model/segments.py",
        "return self._derivative(_product(pulled.astype(self.weight.dtype), 2, v, 2))",
        "return _product(pulled.astype(self.weight.dtype), 2, v, 2)",
        PRE,
    ),
    Defect(
        "the flow of the activities ends where they are small, not their rate",
        "inference/ode.py",
        "return root_mean_square(rate(t, hidden, args)) <= limit",
        "return root_mean_square(hidden) <= limit",
        (f"{NUMERICS}test_ode.py::test_with_a_tolerance_the_flow_ends_at_rest_before_its_horizon",),
    ),
    Defect(
        "the flow of the activities has a rate of its own",
        "inference/ode.py",
        "return jax.tree.map(jnp.negative, problem.errors_and_gradient(self.form, hidden)[1])",
        "return jax.tree.map(lambda g: -2 * g, problem.errors_and_gradient(self.form, hidden)[1])",
        (f"{NUMERICS}test_ode.py::test_constant_steps_of_eulers_method_are_gradient_descent",),
    ),
    Defect(
        "errors of a softmax output pass its Jacobian too",
        "model/segments.py",
        "return errors, self._pulled(pulling, v, pull_before, pull_after)",
        "return errors, self._pulled(pulling * (predicted if output is not None else 1), v, pull_before, pull_after)",
        (
            f"{NUMERICS}test_cross_entropy.py::test_steps_of_inference_and_the_weight_gradient_are_those_of_the_energy_written_out"
            "[pre-activation, skips-activities]",
        ),
    ),
    Defect(
        "the squared loss without its half",
        "model/output.py",
        "return jnp.square(y - u) / 2",
        "return jnp.square(y - u)",
        (f"{OUTPUT_ERROR}[squared]",),
    ),
    Defect(
        "a softmax over the batch",
        "model/output.py",
        "jax.nn.softmax(u, axis=1)",
        "jax.nn.softmax(u, axis=2)",
        (f"{OUTPUT_ERROR}[softmax]",),
    ),
    Defect(
        "the cross-entropy is climbed",
        "model/output.py",
        "return -y * jax.nn.log_softmax",
        "return y * jax.nn.log_softmax",
        (f"{OUTPUT_ERROR}[softmax]",),
    ),
    Defect(
        "the cross-entropy normalised over the batch",
        "model/output.py",
        "jax.nn.log_softmax(u, axis=1)",
        "jax.nn.log_softmax(u, axis=2)",
        LOSSES,
    ),
    Defect(
        "the binary cross-entropy of the other class",
        "model/output.py",
        "return jax.nn.softplus(u) - y * u",
        "return jax.nn.softplus(u) - (1 - y) * u",
        LOSSES,
    ),
    Defect(
        "a difference of outputs is taken at the origin",
        "model/output.py",
        "return self.value(u + d) - self.value(u)",
        "return self.value(d) - self.value(0 * u)",
        (f"{OUTPUT_ERROR}[sigmoid]",),
    ),
    Defect(
        "the forward pass ends before its output",
        "model/network.py",
        "activities[-1] = self.output.value(activities[-1])",
        "pass",
        (f"{NUMERICS}test_cross_entropy.py::test_bp_is_the_gradient_of_the_cross_entropy[no hidden nonlinearity]",),
    ),
    Defect(
        "the first layers learn in place of the last",
        "learning/bp.py",
        "weight = segment.weight.at[:frozen].set(0)",
        "weight = segment.weight.at[segment.depth - frozen :].set(0)",
        (f"{LEARNING}test_with_last_layers_the_others_have_a_gradient_of_exactly_zero[5]",),
    ),
    Defect("a diverged lane goes on", "train.py", "diverged=~finite,\n", "diverged=jnp.array(False),\n", LANES),
    Defect(
        "a lane stops within an epoch",
        "train.py",
        "stopped=jnp.any(jnp.array(met, bool)) & ends_epoch",
        "stopped=jnp.any(jnp.array(met, bool))",
        (f"{TRAIN}test_a_lane_stops_at_the_end_of_the_first_epoch_that_meets_its_rule[stop_improvement]",),
    ),
    Defect(
        "a checkpoint of another width is read",
        "records/checkpoint.py",
        "there.shape != leaf.shape or ",
        "",
        (
            f"{NUMERICS}test_checkpoint.py::test_a_checkpoint_of_another_width_depth_or_precision_is_refused_by_file_and_entry",
        ),
    ),
    Defect(
        "inference sees premultipliers that are in the forward pass only",
        "model/segments.py",
        "return product if self.forward_only or self.premultiplier == 1 else",
        "return product if self.premultiplier == 1 else",
        (f"{NUMERICS}test_forward_only.py::test_backpropagation_takes_the_premultipliers_as_1[tanh]",),
    ),
    Defect(
        "an interrupted write is put in place",
        "files.py",
        "        os.replace(temporary, path)\n    finally:\n",
        "    finally:\n        os.replace(temporary, path)\n",
        (f"{NUMERICS}test_checkpoint.py::test_a_write_that_is_interrupted_leaves_the_old_checkpoint",),
    ),
    Defect(
        "the two eigenvalue loops of heavy ball run side by side",
        "theory/activity_hessian.py",
        "hidden_inverse_product(problem, after), after, n_products",
        "hidden_inverse_product(problem, start), start, n_products",
        (f"{NUMERICS}test_solver_steps.py::test_heavy_balls_two_eigenvalue_loops_run_one_after_the_other[linear]",),
    ),
    Defect(
        "a masked output that pulls",
        "model/segments.py",
        "errors = errors if mask is None else errors * mask[None]",
        "errors = errors",
        (f"{MASK}test_inference_and_learning_descend_the_energy_of_the_observed_entries[post-activities]",),
    ),
    Defect(
        "backpropagation of masked targets",
        "learning/bp.py",
        "error = masked(y - at.activities[-1][0], mask)",
        "error = y - at.activities[-1][0]",
        (f"{MASK}test_backpropagation_of_masked_targets_is_the_derivative_of_the_written_out_loss",),
    ),
    Defect(
        "a rescaling of all outputs where some are free",
        "theory/equilibrated.py",
        "jnp.outer(seen, seen) * s + jnp.diag(1 - seen)",
        "s",
        (f"{MASK}test_the_equilibrated_energy_of_masked_targets_is_the_least_energy_over_free_outputs_too",),
    ),
    *DOOR_DEFECTS,
    *SOLVER_DEFECTS,
    *KINDS_DEFECTS,
    *PLATFORM_DEFECTS,
)
