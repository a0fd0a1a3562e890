"""What a number depends on beside the words of a configuration: the content of files, how numbers are written, the user's shell."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick

from pcexp.config.identity import Identity, Lane, cell_name, under
from pcexp.records import manifest
from pcexp.records.cell import OutputError
from pcexp.records.tables import collect, read_results
from pcexp.run.provenance import number_flags

Run = Callable[..., int]
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 8)).astype("float32"), RNG.integers(0, 3, 60)
Y[:3] = 0, 1, 2


def written(path: Path, y: np.ndarray = Y) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x_train=X[:40], y_train=y[:40], x_test=X[40:], y_test=y[40:])
    return path


def cells(outputs: Path) -> list[str]:
    return sorted(quick.manifest(outputs).keys())


def of_file(path: Path | str) -> tuple[str, ...]:
    return "data=npz", f"data.path={path}", "training.batch_size=16"


# Files


def test_a_file_whose_content_changed_is_another_cell_and_that_is_said(
    outputs: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "d.npz")
    assert run(*of_file(path)) == 0
    (first,) = cells(outputs)
    written(path, np.roll(Y, 1))
    capsys.readouterr()
    assert run(*of_file(path)) == 0
    said = capsys.readouterr().out
    assert (
        "1 lanes, 1 to run" in said
        and "data=npz: their content is not what it was for 1 cells asked for before" in said
    )
    (second,) = cells(outputs)
    assert first != second and (outputs / quick.STUDY / first / "DONE").exists()
    written(path)  # as it was
    assert run(*of_file(path)) == 0
    assert cells(outputs) == [first] and "nothing left to run" in capsys.readouterr().out


def test_the_same_bytes_of_another_shape_or_type_are_another_cell(tmp_path: Path) -> None:
    zeros = {"x_test": X[40:], "y_test": np.zeros(20, int), "y_train": np.zeros(40, int)}
    shapes = X[:40], X[:40].view(np.int32), X[:40].reshape(40, 8)[:, ::-1], X[:40].reshape(40, 2, 4, 1)
    names = []
    for i, x in enumerate(shapes):
        x_test = X[40:].reshape(20, *x.shape[1:])
        np.savez(tmp_path / f"{i}.npz", **zeros | {"x_train": x, "x_test": x_test})
        names.append(quick.cell(*of_file(tmp_path / f"{i}.npz")).cell)
    assert len(set(names)) == len(names)


def test_one_file_is_one_data_set_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "mine" / "d.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link.npz").symlink_to(path)
    spellings = [path, "mine/d.npz", "./mine/../mine/d.npz", "'~/mine/d.npz'", "link.npz"]
    assert len({quick.cell(*of_file(spelling)).cell for spelling in spellings}) == 1


def test_equal_arrays_of_other_types_are_the_same_data(tmp_path: Path) -> None:
    names = set()
    for i, (floats, integers) in enumerate([(np.float32, np.int64), (np.float64, np.int8)]):
        arrays = {"x_train": X[:40].astype(floats), "y_train": Y[:40].astype(integers)}
        np.savez(tmp_path / f"{i}.npz", x_test=X[40:].astype(floats), y_test=Y[40:].astype(integers), **arrays)
        names.add(quick.cell(*of_file(tmp_path / f"{i}.npz")).cell)
    assert len(names) == 1


def test_two_files_in_one_command_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"data.path: one value is needed here: data.path=a.npz,b.npz"):
        quick.composed("data=npz", "data.path=a.npz,b.npz")


def test_a_study_of_the_users_own_is_not_ours_though_its_folder_is_called_so() -> None:
    ours, theirs = ({"study": {"_target_": f"{at}experiments.saddle_escape.SaddleEscape"}} for at in ("pcexp.", ""))
    assert cell_name(ours) != cell_name(theirs)


def test_another_study_of_the_same_name_is_refused_where_one_has_runs(tmp_path: Path) -> None:
    def cell(name: str, target: str) -> dict[str, Any]:
        science = {"study": {"_target_": target}}
        return manifest.entries([Identity("study", 1, name, science, {"data": "digits"}, (Lane("l", {"seed": 0}),))])

    manifest.add(tmp_path, "small", cell("a", "experiments.study.Study"), {})  # as it was once called
    manifest.add(tmp_path, "small", cell("a", "pcexp.experiments.study.Study"), {})
    assert manifest.asked(tmp_path, "small")["a"]["science"]["study"]["_target_"].startswith("pcexp.")
    with pytest.raises(OutputError, match=r"runs of another study, experiments.study.Study"):
        manifest.add(tmp_path, "small", cell("b", "mylab.study.Study"), {})


@pytest.mark.parametrize("learning", ["bp", "pc"])
def test_what_a_rule_does_not_say_of_its_inference_makes_no_other_cell(learning: str) -> None:
    plain, said = (quick.cell(f"learning={learning}", f"training.regime={word}") for word in ("false", "true"))
    assert (plain.cell == said.cell) == (learning == "bp")


def test_data_of_another_content_have_cells_of_their_own() -> None:
    who = Identity("study", 1, "a", {}, {"data": "mnist"}, (Lane("l", {"seed": 0}),))
    assert under(who, "", "") is who
    one, other = under(who, "1" * 64, ""), under(who, "2" * 64, "")
    assert len({who.cell, one.cell, other.cell}) == 3 and one.labels == {"data": "mnist", "content": "1" * 12}


def test_only_the_content_that_was_asked_for_last_is_judged_and_committed(
    outputs: Path, run: Run, tmp_path: Path
) -> None:
    path, results = tmp_path / "d.npz", tmp_path / "results"
    named = []
    for y in (Y, np.roll(Y, 1)):
        written(path, y)
        assert run(*of_file(path), "scale=small") == 0
        kept = collect(outputs, results, quick.STUDY, "small")
        named.append(set(kept.runs["cell"]))
        assert set(kept.asked["cell"]) == named[-1] and len(kept.runs) == 1
    assert named[0].isdisjoint(named[1])
    again = read_results(results, quick.STUDY, "small")
    assert set(again.runs["cell"]) == named[1] and again.strays == tuple(named[0])
    (content,) = again.runs["content"]
    assert len(content) == 12


def test_of_data_that_are_called_alike_those_that_changed_are_no_longer_asked_for(tmp_path: Path) -> None:
    def cell(name: str, data: str, **content: str) -> dict[str, Any]:
        lanes = (Lane("l", {"seed": 0}),)
        return manifest.entries([Identity("study", 1, name, {}, {"data": data, **content}, lanes)])

    manifest.add(
        tmp_path, "small", cell("a", "npz", content="1") | cell("b", "npz", content="1") | cell("c", "digits"), {}
    )
    assert manifest.add(tmp_path, "small", cell("d", "npz", content="2"), {}) == ["a", "b"]
    assert manifest.asked(tmp_path, "small").keys() == {"c", "d"}
    assert manifest.add(tmp_path, "small", cell("e", "digits"), {}) == []
    # To and from the published copy, whose content the configuration says.
    assert manifest.add(tmp_path, "small", cell("f", "npz"), {}) == ["d"]
    assert manifest.add(tmp_path, "small", cell("g", "npz", content="3"), {}) == ["f"]


# Numbers


@pytest.mark.parametrize(("one", "same", "other"), [(1, 1.0, 1.5), (0, -0.0, 1e-300), (2**60, 2.0**60, 2.0**61)])
def test_equal_numbers_are_equal_configurations(one: float, same: float, other: float) -> None:
    def named(value: float) -> str:
        return cell_name({"key": [value, {"deeper": value}], "word": "1"})

    assert named(one) == named(same) != named(other)
    assert len({cell_name({"key": value}) for value in (1, True, "1", None)}) == 4


@pytest.mark.parametrize("key", ["optimiser.learning_rate", "inference.activity_lr"])
def test_a_number_is_the_same_however_it_is_written(key: str) -> None:
    cells = [quick.swept(*quick.QUICK, f"{key}={text}") for text in ("1", "1.0", "1e0")]
    assert len({(cell.cell, cell.lanes[0].variant) for (cell,) in cells}) == 1  # as a variant too


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["optimiser.learning_rate", "parameterisation.sigma", "study.probe_size"])
def test_numbers_that_are_not_finite_are_refused(key: str, value: float) -> None:
    with pytest.raises(SystemExit, match=f"{key}={value}: a finite number is needed"):
        quick.plans([quick.changed(quick.composed(), key, value)])


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ({"optimiser.learning_rate": -0.1}, "optimiser.learning_rate=-0.1: valid are 0 and above"),
        ({"root_seed": -1}, "root_seed=-1: seeds are whole numbers from 0 to 4294967295"),
        ({"root_seed": 2**32}, "root_seed=4294967296: seeds are whole numbers from 0 to 4294967295"),
        ({"lanes.seed": [0, 2**32]}, "lanes.seed=4294967296: seeds are whole numbers from 0 to 4294967295"),
        ({"lanes.seed": [-1]}, "lanes.seed=-1: seeds are whole numbers from 0 to 4294967295"),
        ({"lanes": {"seed": [0], "optimiser.learning_rate": [0.1, -0.1]}}, "optimiser.learning_rate=-0.1: valid are"),
        ({"lanes": {"seed": [0], "inference.activity_lr": [0.1, math.nan]}}, "activity_lr=nan: a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_before_the_manifest_is_written(
    said: Mapping[str, Any], refusal: str, outputs: Path
) -> None:
    config = quick.composed(f"execution.outputs={outputs}")
    for key, value in said.items():
        config = quick.changed(config, key, value)
    with pytest.raises(SystemExit, match=refusal):
        quick.run_all([config])
    assert not outputs.exists()


def test_the_largest_seed_runs(run: Run) -> None:
    assert run("lanes.seed=[4294967295]") == 0


# The shell


def test_the_shell_changes_no_number_of_a_run(tmp_path: Path) -> None:
    """In processes of their own, because JAX reads its environment once."""
    found = []
    other = {
        "EQX_ON_ERROR": "nan", "JAX_DEBUG_NANS": "1", "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16", "JAX_ENABLE_X64": "1",
        "JAX_RANDOM_SEED_OFFSET": "7", "JAX_THREEFRY_PARTITIONABLE": "0", "NVIDIA_TF32_OVERRIDE": "1",
    }  # fmt: skip
    for told in (dict[str, str](), other):
        folder = tmp_path / str(len(told))
        folder.mkdir()
        done = quick.command(*quick.QUICK, cwd=folder, **told)
        assert done.returncode == 0, done.stderr
        assert (f"left out of the environment: {', '.join(told)};" in done.stdout) == bool(told)
        found.append(quick.numbers(folder / "outputs"))
    assert quick.differences(*found) == []


@pytest.mark.parametrize(
    ("flags", "counted"),
    [
        ("", ""),
        ("--xla_force_host_platform_device_count=2 --xla_dump_to=/tmp/there", ""),
        ("--xla_cpu_enable_fast_math=true", "XLA_FLAGS=--xla_cpu_enable_fast_math=true"),
        (
            "--xla_dump_to=x --xla_allow_excess_precision=true --xla_cpu_enable_fast_math=1",
            "XLA_FLAGS=--xla_allow_excess_precision=true,--xla_cpu_enable_fast_math=1",
        ),
        ("--xla_gpu_cuda_data_dir=/usr/local/fast_math --xla_gpu_enable_command_buffer=", ""),
        ("file_of_flags.txt", "XLA_FLAGS=file_of_flags.txt"),
    ],
)
def test_flags_of_the_compiler_that_may_change_numbers_make_a_variant_in_a_cell_of_its_own(
    flags: str, counted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = quick.cell()
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert number_flags() == counted
    found = quick.cell()
    assert (found.cell != plain.cell) == bool(counted) and found.lanes[0].variant == counted
    assert found.lanes[0].name == plain.lanes[0].name and found.labels == plain.labels
