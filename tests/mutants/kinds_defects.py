"""Known defects of generative, unsupervised and hybrid networks."""

from platform_defects import Defect

KINDS = "tests/numerics/test_kinds.py::"
HYBRID = f"{KINDS}test_hybrid_pc_descends_both_energies_at_the_activities_that_were_inferred_from_the_guess"
ARRANGED = (f"{KINDS}test_data_are_arranged_as_a_network_takes_them",)
CLAMPED = (f"{KINDS}test_training_clamps_inputs_where_their_mask_says_and_infers_the_others",)

KINDS_DEFECTS = (
    Defect(
        "an amortiser whose layers are not mirrored",
        "model/pair.py",
        "jnp.concatenate(hidden)[::-1]",
        "jnp.concatenate(hidden)",
        (f"{KINDS}test_a_pairs_guess_is_the_amortisers_forward_pass_in_reverse[2]",),
    ),
    Defect(
        "an amortiser that learns the mean of the prior instead of what was inferred",
        "learning/hybrid.py",
        "(batch.x, z) if problem.free is None else (z[0][0], z[1:])",
        "(batch.x, z) if problem.free is None else (batch.x, z[1:])",
        (f"{HYBRID}[True]",),
    ),
    Defect(
        "an amortiser without the scale of the gradient",
        "learning/hybrid.py",
        "factor = gradient_factor(self.gradient_scale, batch.y)",
        "factor = 1.0",
        (f"{HYBRID}[True]",),
    ),
    Defect(
        "classification that starts at the true label",
        "evaluation.py",
        "jnp.full_like(batch.x, 1 / batch.x.shape[0]) if known else batch.x",
        "batch.x",
        (f"{KINDS}test_inference_of_the_label_starts_where_all_are_alike_and_knows_nothing_of_the_true_one",),
    ),
    Defect(
        "a start without its scale",
        "inference/starts.py",
        "self.scale * jax.random.normal",
        "jax.random.normal",
        (f"{KINDS}test_a_random_start_has_the_scale_that_it_says_and_ends_at_the_same_equilibrium",),
    ),
    Defect(
        "an unknown label that is clamped",
        "data/dataset.py",
        "Split(below, split.x, split.x_mask, split.mask)",
        "Split(below, split.x)",
        ARRANGED,
    ),
    Defect("free inputs that training clamps", "train.py", "(data.mask, data.x_mask)", "(data.mask, None)", CLAMPED),
    Defect(
        "the prior of free inputs has no precision",
        "learning/pc.py",
        "network, prior = model.generator, self.input_precision",
        "network, prior = model.generator, 0.0",
        (f"{HYBRID}[True]",),
    ),
)
