"""What is claimed, protocol by protocol."""

from collections.abc import Iterable

from experiments.mupc_depth.rules import (
    anchor_rule,
    forward_only_rule,
    long_rule,
    near_bp_rule,
    one_step_rule,
    rates_rule,
    sp_below_rule,
    sp_fails_rule,
    trains_rule,
    width_rule,
)
from experiments.mupc_depth.runs import PROTOCOLS
from pcexp.report.claims import Claim

TRAINS_ON_CIFAR, LITTLE = 30.0, 5.0


def _claims(p: str) -> Iterable[Claim]:
    others = ("tanh", "linear")
    for figure, part in (("5.1 right", ("relu",)), ("C.16", others)):
        names = " and ".join(part)
        yield Claim(figure, f"{p}, {names}: muPC trains at every depth", trains_rule(p, part))
        yield Claim(figure, f"{p}, {names}: muPC within 3 points of BP at H = 128", near_bp_rule(p, part, 128))
        yield Claim(
            figure, f"{p}, {names}: muPC within 3 points of BP at every depth (ours)", near_bp_rule(p, part, None)
        )
    yield Claim("5.1 right", f"{p}, relu: SP fails from H = 64", sp_fails_rule(p, "relu", 64))
    yield Claim("C.16", f"{p}, linear: SP fails from H = 32", sp_fails_rule(p, "linear", 32))
    yield Claim("C.16", f"{p}, tanh: SP trains, below muPC", sp_below_rule(p, "tanh"))
    yield Claim("C.20", f"{p}: muPC's accuracy does not fall with width", width_rule(p))
    for figure, data in (("C.14", "mnist"), ("C.27", "fashion_mnist")):
        yield Claim(
            "C.14, C.27", f"{p}, {figure}: T = 1 is worse than T = H and falls with depth", one_step_rule(p), data
        )
    long = (
        ("C.17: relu, H = 128, at least 97.5 % in 5 epochs", "mnist", 4685, ">= 97.5 %", lambda best, _: best >= 97.5),
        (
            "C.18: relu, H = 128, about 89 % in 15 epochs", "fashion_mnist", 14055, "highest 89 +- 1 %",
            lambda best, _: abs(best - 89) <= 1,
        ),
        (
            "C.19: relu, H = 128, trains, a little behind BP (squared error, no augmentation)", "cifar10", 15620,
            f"> {TRAINS_ON_CIFAR:g} %, 0 to {LITTLE:g} points below BP",
            lambda best, gap: best > TRAINS_ON_CIFAR and 0 <= gap <= LITTLE,
        ),
    )  # fmt: skip
    for statement, data, iterations, expected, holds in long:
        yield Claim("C.17-C.19", f"{p}, {statement}", long_rule(p, iterations, expected, holds), data)
    yield Claim("5.8", f"{p}: muPC at Adam's rate times sqrt(N L) does not train", rates_rule(p, above=True))
    yield Claim("5.8", f"{p}: nor at the rate over sqrt(N L), the other reading", rates_rule(p, above=False))
    yield Claim(
        "5.8 forward pass",
        f"{p}: muPC with premultipliers in the forward pass only does not train",
        forward_only_rule(p),
    )
    yield Claim("anchor", f"{p}: muPC, L = 30, N = 128, relu, as published", anchor_rule(p), "mnist")


CLAIMS = tuple(claim for protocol in PROTOCOLS for claim in _claims(protocol))
