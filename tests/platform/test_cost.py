"""What a run costs is estimated before it, and what the memory does not hold is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.model.architecture import Convolutional, FullyConnected
from pcexp.run import cost, draw

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import costs  # noqa: E402 (benchmarks/costs.py)

RECORDED = {(study, data): costs.undisturbed(runs) for study, _, data, runs in costs.committed(("small",))}
Run = Callable[..., int]


@pytest.mark.parametrize(("study", "data"), [key for key, runs in RECORDED.items() if len(runs)])
def test_cells_of_committed_runs_are_estimated_within_a_factor_of_three_of_what_they_took(
    study: str, data: str
) -> None:
    runs = RECORDED[study, data]
    cells = runs["cell"].unique(maintain_order=True)
    found = costs.compared(runs.filter(pl.col("cell").is_in(cells.gather_every(max(1, len(cells) // 4)).to_list())))
    assert 1 / 3 < found.estimated / found.recorded < 3


def test_the_operations_of_a_forward_pass_are_those_counted_by_hand() -> None:
    dense = cost.sizes(FullyConnected(5, 3, "tanh", segment_size=1), (3,), 2)
    assert dense == cost.Sizes(2 * 15, 2 * (25 + 25 + 10), 5 + 5 + 5 + 2, 15 + 50 + 10, segments=4, depth=4)
    images = cost.sizes(Convolutional([2], [6], "relu"), (4, 4, 3), 5)
    weights = 3 * 3 * 3 * 2
    assert images.first_flops == 2 * weights * 4 * 4 * cost.CONVOLUTION
    assert images.flops == 2 * (2 * 2 * 2 * 6 + 6 * 5)
    assert images.parameters == weights + 2 + 48 + 30


def test_a_cell_beyond_the_memory_is_refused_by_name_before_anything_is_drawn_and_so_is_its_dry_run(
    run: Run, outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError("a network was drawn")

    monkeypatch.setattr(draw, "lane_key", drawn)
    monkeypatch.setattr(cost, "memory", lambda: 1e6)
    named = (
        r"cell \w{12} \(digits fully_connected pc network.width=512 .*\) would hold about 0.0 GB, .* memory is 0.0 GB"
    )
    for more in ((), ("dry_run=true",)):
        with pytest.raises(Refused, match=named + r": choose one lane at a time \(execution.workers=1\), a smaller"):
            run("network.width=512", "lanes.seed=[0,1]", *more)
        assert "1 cells, 2 lanes, 2 to run" in capsys.readouterr().out
    assert not outputs.exists()


def test_no_more_lanes_are_counted_than_are_held_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def held(*overrides: str) -> float:
        assert run("dry_run=true", "network.width=4096", *overrides) == 0
        return float(capsys.readouterr().out.splitlines()[0].split(" and ")[1].split(" GB")[0])

    one = held("lanes.seed=[0,1,2]", "execution.workers=1")
    assert held("lanes.seed=[0]", "execution.workers=3") == one
    assert held("lanes.seed=[0,1,2]", "execution.workers=3") == pytest.approx(3 * one, rel=0.1)


def test_an_impossible_width_is_refused_by_the_command(tmp_path: Path) -> None:
    done = quick.command(*quick.QUICK, "network.width=10000000", cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "outputs").exists()
    assert "network.width=10000000" in done.stderr and "memory" in done.stderr and "Traceback" not in done.stderr
