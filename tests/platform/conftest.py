"""Every test in a folder of its own; runs in this process."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick

from pcexp.config.spec import Spec
from pcexp.records.cell import Cell
from pcexp.run import lanes, sweep
from pcexp.run.session import Session


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PCEXP_DATA_DIR", str(tmp_path / "copies"))
    monkeypatch.setenv("PCEXP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The outputs of another machine."""
    return tmp_path / "there"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return tmp_path / "archives"


@pytest.fixture(scope="module")
def small() -> list[Spec]:
    """Cells at scale small, three seeds each: linear networks only."""
    return quick.grid("scale=small", "lanes.seed=[0,1,2]", activations=("linear",))


@pytest.fixture
def run(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run one quick configuration in this process, less its report; the exit status."""
    monkeypatch.setattr(sweep, "_report", lambda *_: None)

    def run(*overrides: str, base: tuple[str, ...] = quick.QUICK) -> int:
        return quick.run_all([quick.composed(f"execution.outputs={outputs}", *overrides, base=base)])

    return run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the long run of `quick` in one piece."""
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_report", lambda *_: None)
        assert quick.run_all([quick.composed(*quick.LONG, f"execution.outputs={outputs}")]) == 0
    return outputs


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of 20 iterations, however quick the machine is."""
    monkeypatch.setattr(lanes.Programs, "call_size", lambda *_: 20)


@pytest.fixture
def stopping_after(
    short_calls: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Inside the block, a run is asked to stop once so many calls have been written, as a signal between calls does."""

    @contextlib.contextmanager
    def stopping_after(calls: int) -> Iterator[None]:
        written, append = [0], Cell.append

        def counted(cell: Cell, rows: Any) -> None:
            append(cell, rows)
            written[0] += 1

        with monkeypatch.context() as patch:
            patch.setattr(Cell, "append", counted)
            patch.setattr(Session, "stopping", property(lambda _: written[0] >= calls))
            yield

    return stopping_after
