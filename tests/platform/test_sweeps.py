"""A sweep as a whole: its jobs are composed as Hydra composes each, and its cells run side by side to the same numbers."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import quick
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.pcexp import Compositions
from pcexp.run import lanes, sweep
from pcexp.run.job import Job
from pcexp.run.session import Session

# Composition


@pytest.fixture
def loader() -> Iterator[Any]:
    quick.register()
    with initialize_config_dir(str(quick.CONF), version_base="1.3"):
        yield GlobalHydra.instance().hydra.config_loader


def plain(config: Any) -> dict[str, Any]:
    """What a job reads of its configuration: all of it, and Hydra's record of what was chosen and what was asked for."""
    about = config.hydra
    own = OmegaConf.create({key: config._get_node(key) for key in config if key != "hydra"})
    chosen, asked = OmegaConf.to_container(about.runtime.choices), OmegaConf.to_container(about.overrides.task)
    return {"own": OmegaConf.to_container(own), "choices": chosen, "asked": asked, "lanes": own.lanes.__str__()}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("network.width=16", "lanes.seed=[0,1]"),
        ("study.width=16",),  # the key of an axis
        ("+lanes.optimiser.learning_rate=[0.1,0.2]", "++study.n_hidden=3"),
        ("~training.test_every", "learning.gradient_scale=sum"),
    ],
)
def test_a_job_of_a_sweep_is_composed_as_hydra_composes_it(loader: Any, more: Sequence[str]) -> None:
    base = ["+experiment=mupc_depth", "scale=smoke"]
    master = loader.load_configuration("config", base, run_mode=RunMode.MULTIRUN)
    axes = [
        [
            "study={arm:width,width:16,n_hidden:2}",
            "study={width:8,n_hidden:2}",
        ],  # a mapping is merged into what is there
        ["network.activation=relu", "network.activation=tanh"],
        ["learning=pc", "learning=bp"],
        ["protocol=published", "protocol=corrected"],
    ]
    compositions, several = Compositions(loader, master), []
    for job in itertools.product(*axes):
        for overrides in ([*base, *more, *job], [*base, *job, *more]):
            several.append(plain(compositions(overrides)))
            assert several[-1] == plain(loader.load_sweep_config(master, overrides))
    assert len({str(config) for config in several}) >= 16


@pytest.mark.parametrize("wrong", ["network.widht=8", "network.width.more=8", "inference.max_steps={a:1"])
def test_what_hydra_refuses_of_a_job_is_refused_in_its_words(loader: Any, wrong: str) -> None:
    base = ["+experiment=mupc_depth", "scale=smoke"]
    master = loader.load_configuration("config", base, run_mode=RunMode.MULTIRUN)
    with pytest.raises(HydraException) as expected:
        loader.load_sweep_config(master, [*base, wrong])
    with pytest.raises(HydraException) as found:
        Compositions(loader, master)([*base, wrong])
    assert str(found.value) == str(expected.value)


# Cells side by side

PROTOCOLS = ("protocol=published", "protocol=corrected")


@pytest.fixture
def both(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run two cells of three lanes each in one command."""
    monkeypatch.setattr(sweep, "_report", lambda *_: None)

    def both(*overrides: str, folder: Path = outputs) -> int:
        asked = (*quick.LONG, f"execution.outputs={folder}", *overrides)
        return quick.run_all([quick.composed(*asked, protocol) for protocol in PROTOCOLS])

    return both


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Numbers of the two cells, one lane after the other."""
    outputs = tmp_path_factory.mktemp("one_by_one") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_report", lambda *_: None)
        asked = (*quick.LONG, f"execution.outputs={outputs}", "execution.workers=1")
        assert quick.run_all([quick.composed(*asked, protocol) for protocol in PROTOCOLS]) == 0
    numbers = quick.numbers(outputs)
    assert len(numbers) == 6
    return numbers


def test_the_next_cell_compiles_while_lanes_run_and_no_more_lanes_run_than_there_are_workers(
    outputs: Path, both: Callable[..., int], one_by_one: Mapping[str, Any], short_calls: None, monkeypatch: Any
) -> None:
    call, lock, second = lanes.Pack.call, threading.Lock(), threading.Event()
    running, most, compiled, waited = set[Any](), [0], set[str](), []

    def watched(pack: Any, data: Any, spec: Any, measure: Any, n: int) -> Any:
        if n == 0:
            compiled.add(spec.cell)
            if len(compiled) == 2:
                second.set()
            return call(pack, data, spec, measure, n)
        if pack.iteration > 0:
            waited.append(
                all(waited) and second.wait(20)
            )  # a cell does not go on before the other one is being compiled
        with lock:
            running.add(pack)
            most[0] = max(most[0], len(running))
        try:
            time.sleep(0.01)
            return call(pack, data, spec, measure, n)
        finally:
            with lock:
                running.discard(pack)

    monkeypatch.setattr(lanes.Pack, "call", watched)
    assert both("execution.workers=2") == 0
    assert waited and all(waited)
    assert most == [2]
    assert quick.differences(quick.numbers(outputs), one_by_one) == []


@pytest.mark.parametrize("calls", [1, 3, 5, 8, 20])
def test_a_stop_with_two_cells_under_way_changes_no_number(
    outputs: Path, both: Callable[..., int], one_by_one: Mapping[str, Any], stopping_after: Any, calls: int
) -> None:
    with stopping_after(calls):
        assert both("execution.workers=2") == 130
    assert len(quick.numbers(outputs)) < 6
    assert both("execution.workers=2") == 0
    assert quick.differences(quick.numbers(outputs), one_by_one) == []


def test_an_error_in_one_cell_ends_the_command_with_it_and_what_the_other_has_is_kept(
    outputs: Path, both: Callable[..., int], one_by_one: Mapping[str, Any], short_calls: None, monkeypatch: Any
) -> None:
    call, stop, stopped = lanes.Pack.call, Session.stop, threading.Event()

    def broken(pack: Any, data: Any, spec: Any, measure: Any, n: int) -> Any:
        if spec.labels["protocol"] == "corrected" and pack.iteration >= 40:
            raise ZeroDivisionError("a mistake in a study")
        if pack.iteration == 100:  # of 300: it has something to lose
            stopped.wait(20)
        return call(pack, data, spec, measure, n)

    with monkeypatch.context() as patch:
        patch.setattr(lanes.Pack, "call", broken)
        patch.setattr(Session, "stop", lambda session: (stop(session), stopped.set()))
        with pytest.raises(ZeroDivisionError, match="a mistake in a study"):
            both("execution.workers=4")  # three lanes of the one wait in their places for the other
    assert not list(outputs.glob("*/*/lock"))
    assert len(quick.numbers(outputs)) < 3  # it was stopped, not run to its end
    assert both("execution.workers=2") == 0
    assert quick.differences(quick.numbers(outputs), one_by_one) == []


def test_cells_that_do_not_train_follow_one_another(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, running, seen = Job._record, [0], []

    def watched(job: Job, *rest: Any) -> None:
        running[0] += 1
        seen.append(running[0])
        time.sleep(0.1)
        record(job, *rest)
        running[0] -= 1

    monkeypatch.setattr(sweep, "_report", lambda *_: None)
    monkeypatch.setattr(Job, "_record", watched)
    base = ("+experiment=forward_pass", "scale=smoke", "network.activation=tanh", f"execution.outputs={outputs}")
    jobs = [quick.composed(f"network.n_hidden={h}", "execution.workers=2", base=base) for h in (4, 6, 8)]
    assert quick.run_all(jobs) == 0
    assert seen == [1, 1, 1]
