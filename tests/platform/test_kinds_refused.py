"""Networks, rules and evaluations that do not go together are refused before anything is compiled."""

import pytest
import quick

from pcexp.config.composition import Refused

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
        (GENERATIVE, ("start=random", "start.scale=-1"), "scale must not be negative"),
        (GENERATIVE, ("lanes.learning.input_precision=[0,1]",), "learning.input_precision cannot vary inside a cell"),
    ],
)
def test_what_does_not_go_together_is_refused(base: tuple[str, ...], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        quick.plans([quick.composed(*overrides, base=(*base, "scale=smoke"))])


@pytest.mark.parametrize("overrides", [("network.latents=16",), ("learning=bp",), ("start=random",)])
def test_what_goes_together_is_not(overrides: tuple[str, ...]) -> None:
    assert quick.plans([quick.composed(*overrides, base=(*GENERATIVE, "scale=smoke"))])
