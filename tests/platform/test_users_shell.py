"""Whatever a user's shell has set, closed or taken away, a command runs, and computes and draws the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import quick
from PIL import Image
from test_command_line import OWN_STUDY

from pcexp.files import place
from pcexp.records.cell import read_lines

SHELLS: dict[str, tuple[dict[str, str | None], str]] = {
    "a notebook's backend, a matplotlibrc and caches that are none": (
        {
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "MATPLOTLIBRC": "matplotlibrc",
            "MPLCONFIGDIR": __file__,
        },
        "",
    ),
    "no home and no name, and warnings that are errors": (
        {"HOME": None, "USER": None, "LOGNAME": None, "XDG_CACHE_HOME": "/dev/null", "PYTHONWARNINGS": "error"},
        "",
    ),
    "places that are not there, output closed": (
        {"HOME": "/dev/null/home", "TMPDIR": "/dev/null/tmp", "TZ": "No/Where", "PYTHONOPTIMIZE": "2"},
        "<&- >&- 2>&-",
    ),
    "a full disk under the output, a terminal that is none": (
        {"COLUMNS": "-3", "LINES": "x", "TERM": "dumb", "FORCE_COLOR": "1", "HYDRA_FULL_ERROR": "0"},
        ">/dev/full 2>&1",
    ),
    "ASCII, and a job of a cluster": (
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        | {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_CPUS_PER_TASK": "x", "NO_COLOR": "1"},
        "",
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_runs_and_reports_alike_in_any_shell(shell: str, outputs: Path, tmp_path: Path) -> None:
    """A study of the user's own, which imports matplotlib for itself."""
    (tmp_path / "matplotlibrc").write_text("savefig.dpi: 3\nfigure.figsize: 1, 1\nno.such.key: 3\n")
    (tmp_path / "halving.py").write_text(OWN_STUDY)
    text = "study: {_target_: halving.Halving, start: 8.0}\ngrid: [{block: all, lanes: {seed: [0, 1]}}]\n"
    folder = quick.experiment_file(tmp_path, text)
    words = ["+experiment=own", "--config-dir", str(folder), "scale=smoke", "execution.targets=[halving.]"]
    said, streams = SHELLS[shell]
    environment = quick.environment(tmp_path, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}") | said
    done = subprocess.run(
        ["sh", "-c", f'umask 077; exec "$@" {streams}', "sh", sys.executable, "-m", "pcexp", *words],
        cwd=tmp_path, env={name: value for name, value in environment.items() if value is not None},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    # A status says that what was printed is lost; nothing else is.
    assert done.returncode == int("full" in streams), done.stderr
    assert b"Traceback" not in done.stderr + done.stdout and b"\x1b[" not in done.stdout
    (lanes,) = (outputs / "halving").glob("*/lanes.jsonl")
    assert [entry["summary"] for entry in read_lines(lanes)] == [{"last": 0.5}, {"last": 0.5}]
    (claims,) = (outputs / "report").rglob("claims.csv")
    assert "eight halves to a half,reproduced" in claims.read_text()
    (figure,) = (outputs / "report").rglob("*.png")
    with Image.open(figure) as image:
        assert image.size == (832, 624)  # in our style, whatever a matplotlibrc says


@pytest.mark.parametrize("folder", ["deleted", "read-only"])
def test_a_current_folder_that_cannot_be_used_is_named_or_not_needed(folder: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir(mode=0o555)
    first = "rmdir ../here; " if folder == "deleted" else ""
    done = subprocess.run(
        ["sh", "-c", f'{first}exec "$@"', "sh", sys.executable, "-m", "pcexp", *quick.QUICK, f"execution.outputs={tmp_path / 'out'}", "dry_run=true"],
        cwd=here, env=quick.environment(here), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert ("current folder is not there" in done.stderr) if folder == "deleted" else (done.returncode == 0)


def test_places_are_written_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NAME", "n")
    assert place("~/x") == tmp_path / "x" and place("$HOME/a b") == tmp_path / "a b" and place("${NAME}x") == Path("nx")
    assert place("relative") == Path("relative")
    for wrong in ("a\0b", "long" * 99, "~nobody-of-this-name/x"):
        with pytest.raises(OSError, match=r"name of a file|whole path"):
            place(wrong)


@pytest.mark.parametrize(
    "words", [("execution.outputs='~/x y'",), ("report", "--outputs", "~/x y"), ("status", "--outputs=~/x y")]
)
def test_every_path_of_a_command_may_begin_at_home(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if "=" in words[0]:
        assert quick.run_all([quick.composed(*words, "dry_run=true")]) == 0
        said = capsys.readouterr().out
    else:
        said = quick.refused(*words, monkeypatch=monkeypatch)
    assert str(tmp_path / "x y") in said
    assert not os.path.exists("~")
