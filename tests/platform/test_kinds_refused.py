"""Networks, rules and evaluations that do not go together are refused before anything is compiled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.experiments import network_kinds
from pcexp.records.tables import read_outputs, thinned
from pcexp.report import rendering

GENERATIVE = ("+experiment=network_kinds", "blocks=[generative]")
HYBRID = ("+experiment=network_kinds", "blocks=[hybrid]")
ESCAPE = ("+experiment=saddle_escape",)


@pytest.mark.parametrize(
    ("base", "overrides", "message"),
    [
        (GENERATIVE, ("network.latents=16", "learning=bp"), "network.latents are free inputs.* choose learning=pc"),
        (GENERATIVE, ("evaluation=forward",), "this network is generative: choose evaluation=inference"),
        (ESCAPE, ("evaluation=inference",), "this network is discriminative: choose evaluation=forward"),
        (ESCAPE, ("network=generative",), "this network is generative"),
        (GENERATIVE, ("learning=hybrid",), "choose network=hybrid"),
        (HYBRID, ("learning=pc",), "choose learning=hybrid"),
        (GENERATIVE, ("network.precisions=[1,2]",), "3 are needed, one a layer"),
        (GENERATIVE, ("network.latents=0",), "latents=0"),
        (GENERATIVE, ("evaluation.top=0",), "top=0"),
        (GENERATIVE, ("learning.input_precision=-1",), "input_precision=-1"),
        (GENERATIVE, ("evaluation.input_precision=-1",), "input_precision=-1"),
        (GENERATIVE, ("start=random", "lanes.learning.start.scale=[1,-1]"), "scale must not be negative"),
        (GENERATIVE, ("precision=float64", "learning.precision=bfloat16"), "set precision alone"),
        (GENERATIVE, ("learning=bp", "lanes.inference.activty_lr=[0.1]"), "did you mean .*activity_lr"),
        (
            ESCAPE,
            ("lanes.optimizer.learning_rate=[1,2]",),
            r"lanes.optimizer is no key \(did you mean optimiser\?\); valid",
        ),
        (
            ESCAPE,
            ("learning=bp", "lanes.learning.inference.activity_lr=[1]"),
            "learning.inference is no key; valid .*gradient_scale",
        ),
        (GENERATIVE, ("start=random", "start.scale=-1"), "scale must not be negative"),
        (GENERATIVE, ("lanes.learning.input_precision=[0,1]",), "learning.input_precision cannot vary inside a cell"),
    ],
)
def test_what_does_not_go_together_is_refused(base: tuple[str, ...], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        quick.plans([quick.composed(*overrides, base=(*base, "scale=smoke"))])


def test_data_on_which_no_block_runs_are_refused_with_those_on_which_one_does() -> None:
    with pytest.raises(Refused, match=r"on data=mnist has no cells with these settings; its grid runs on digits$"):
        quick.composer("data=mnist", base=("+experiment=network_kinds", "scale=smoke")).asked()


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_a_platform_without_a_device_is_refused_by_its_name(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("jax.devices", none)
    with pytest.raises(Refused, match="JAX_PLATFORMS=cuda: JAX finds no such device here"):
        quick.plans([quick.composed(base=(*ESCAPE, "scale=smoke"))])


@pytest.mark.parametrize("overrides", [("network.latents=16",), ("learning=bp",), ("start=random",)])
def test_what_goes_together_is_not(overrides: tuple[str, ...]) -> None:
    assert quick.plans([quick.composed(*overrides, base=(*GENERATIVE, "scale=smoke"))])


def test_free_latents_run_with_tests_on_the_way_and_claims_and_figures_say_nothing_of_them(
    outputs: Path, run: Callable[..., int]
) -> None:
    chosen = ("scale=smoke", "network.latents=4", "inference=gradient_descent", "training.test_every=2")
    assert run(*chosen, base=GENERATIVE) == 0
    (entry,) = quick.entries(outputs).values()
    assert entry["outcome"] == "done" and "test_accuracy" not in entry["summary"]
    assert entry["summary"]["test_reconstruction_loss"] > 0
    records = read_outputs(outputs, "network_kinds", "smoke")
    assert {claim.rule(records).status for claim in network_kinds.CLAIMS} == {"insufficient"}
    assert network_kinds.figure_generated(records) is None
    tested = records.rows["test_loss"].is_not_null()
    assert (
        tested.sum() > 1 and (tested != records.rows["loss"].is_not_null()).all()
    )  # rows of a kind have no columns of the other
    assert len(thinned(records.rows, points=tested.sum())) == len(records.rows)  # each kind for itself


def test_a_study_whose_rule_fails_is_named_and_the_others_are_reported(
    outputs: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    monkeypatch.setattr(rendering, "judge", lambda *_: 1 // 0)
    assert rendering.main(["--outputs", str(outputs)]) == 1
    assert "left out: saddle_escape at smoke: ZeroDivisionError" in capsys.readouterr().out
