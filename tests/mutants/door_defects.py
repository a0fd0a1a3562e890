"""Known defects of what only a GPU runs, of derivatives that users take, of digits, and of what is refused at the door."""

from platform_defects import Defect

NUMERICS = "tests/numerics/"
ON_A_GPU = f"{NUMERICS}test_convolution.py::test_what_a_gpu_runs_is_the_same_convolution_with_the_same_derivatives"
SUMMED = f"{NUMERICS}test_precision.py::test_products_of_bfloat16_factors_are_summed_and_returned_in_float32"
OWN = f"{NUMERICS}test_derivatives.py::test_an_objective_of_ones_own_on_the_outputs_has_the_gradient_of_its_value"
ACCURATE = (
    f"{NUMERICS}test_activation.py::test_differences_keep_their_relative_accuracy_however_saturated_the_activation"
)
DEEP = (
    "tests/theory/test_equilibrated.py::test_float32_keeps_the_energy_and_the_errors_of_deep_standard_nets_with_skips"
)
CHECKS = f"{NUMERICS}test_checks.py::"
REFUSED = (f"{CHECKS}test_every_entry_refuses_arrays_that_are_transposed_flat_or_of_another_batch",)

DOOR_DEFECTS = (
    Defect(
        "a convolution on a GPU whose even kernels are off by one",
        "model/convolution.py",
        '(1, 1), "SAME", dimension_numbers',
        '(1, 1), "SAME_LOWER", dimension_numbers',
        (f"{ON_A_GPU}[2]",),
    ),
    Defect(
        "a convolution on a GPU with transposed kernels",
        "model/convolution.py",
        '("NHWC", "HWIO", "NHWC")',
        '("NHWC", "WHIO", "NHWC")',
        (f"{ON_A_GPU}[3]",),
    ),
    Defect(
        "products of bfloat16 that are returned in bfloat16",
        "model/segments.py",
        "preferred_element_type=jnp.float32)",
        "preferred_element_type=jnp.bfloat16)",
        (f"{SUMMED}[forward]",),
    ),
    Defect(
        "products of bfloat16 that are rounded to it",
        "model/segments.py",
        "dimensions, preferred_element_type=jnp.float32)",
        "dimensions).astype(jnp.float32)",
        (f"{SUMMED}[weights]",),
    ),
    Defect(
        "a softmax with the derivative of its linear map",
        "model/output.py",
        "return jax.nn.softmax(u, axis=1)",
        "return u + jax.lax.stop_gradient(jax.nn.softmax(u, axis=1) - u)",
        (f"{OWN}[softmax-everywhere]",),
    ),
    Defect(
        "outputs with the derivative that inference takes",
        "model/segments.py",
        "if self.forward_only and self.solving:",
        "if self.forward_only:",
        (f"{OWN}[squared-forward_pass]",),
    ),
    Defect(
        "a difference of tanh that cancels where tanh is near 1",
        "model/activation.py",
        "tail = jnp.where(u * z < 0, 1, jnp.exp(-2 * jnp.minimum(jnp.abs(u), jnp.abs(z))))",
        "return t * (1 - activated * jnp.tanh(z))",
        (f"{ACCURATE}[tanh-float32-4e-06]",),
    ),
    Defect(
        "a slope of tanh that cancels where tanh is near 1",
        "model/activation.py",
        "return 4 * tail / jnp.square(1 + tail)",
        "return 1 - jnp.square(jnp.tanh(u))",
        (f"{ACCURATE}[tanh-float32-4e-06]",),
    ),
    Defect(
        "an eliminated layer without the noise of those above",
        "theory/equilibrated.py",
        "noise + r @ r.T / p",
        "unit + r @ r.T / p",
        (f"{DEEP}[8]",),
    ),
    Defect(
        "shapes of which the number of axes is looked at alone",
        "model/checks.py",
        "if array.shape != valid:",
        "if array.ndim != len(valid):",
        REFUSED,
    ),
    Defect(
        "bfloat16 products with inference in activities",
        "problem.py",
        'if precision == "bfloat16" and form == "activities":',
        'if precision == "bfloat16" and form == "deviation":',
        REFUSED,
    ),
)
