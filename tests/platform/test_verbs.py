"""The verbs of the command: what they answer to, and where `status` says that studies stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import made_up
import pytest
import quick

import pcexp.__main__ as command
from pcexp.config.spec import Spec
from pcexp.records import status
from pcexp.records.cell import Cell


def said(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The status with which `python -m pcexp ARGUMENTS` ends, in this process."""
    monkeypatch.setattr(sys, "argv", ["pcexp", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


@pytest.mark.parametrize("verb", list(command.VERBS))
def test_a_verb_says_what_it_takes_as_the_module_of_its_name_does(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert said(verb, "--help", monkeypatch=monkeypatch) == 0
    usage = capsys.readouterr().out
    assert usage.startswith("usage: python -m pcexp") and "--help" in usage
    if verb != "status":
        done = subprocess.run(
            [sys.executable, "-m", f"pcexp.{verb}", "--help"],
            cwd=tmp_path, env=quick.environment(tmp_path), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == usage


@pytest.mark.parametrize(("word", "meant"), [("reprot", "report"), ("stauts", "status"), ("campain", "campaign")])
def test_a_typo_in_a_verb_gets_a_suggestion(word: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = said(word, monkeypatch=monkeypatch)
    assert isinstance(message, str) and f"there is no verb {word} (did you mean {meant}?)" in message
    assert all(verb in message for verb in command.VERBS) and "+experiment=NAME" in message


def test_status_says_what_is_finished_who_works_what_failed_and_how_to_go_on(
    outputs: Path, small: list[Spec], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy, broken, *rest = [spec.cell for spec in small]

    def fate(spec: Spec, lane: object) -> made_up.Fate | None:
        if spec.cell == broken:
            return made_up.Fate(None, "failed: no memory")
        return None if spec.cell == busy else made_up.Fate(100)

    made_up.written(outputs, small, "small", fate)
    with Cell(outputs / quick.STUDY / busy, []).open({}):
        assert said("status", quick.STUDY, monkeypatch=monkeypatch) is None
    first, *lines = capsys.readouterr().out.splitlines()
    n = len(small)
    assert first == f"{quick.STUDY}, small: {len(rest)} of {n} cells, {3 * len(rest)} of {3 * n} lanes finished"
    running, failed, to_do = lines
    assert f"running: {busy} by process {os.getpid()}" in running
    assert failed.strip() == "3 lanes failed: no memory"
    assert to_do.startswith("  2 cells unfinished: python -m pcexp ")
    assert to_do.endswith(f"+experiment={quick.STUDY} data=digits scale=small")


def test_a_lock_whose_process_has_died_is_nobodys_and_a_finished_study_names_no_command(
    outputs: Path, small: list[Spec]
) -> None:
    made_up.written(outputs, small, "small", lambda spec, lane: made_up.Fate(100))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Cell(outputs / quick.STUDY / small[0].cell, []).open({}):
        lock = outputs / quick.STUDY / small[0].cell / "lock"
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"pid": gone.pid}))
        assert re.fullmatch(rf"{quick.STUDY}, small: (\d+) of \1 cells, (\d+) of \2 lanes finished", status.status(
            outputs / quick.STUDY, "small"
        ))  # fmt: skip


def test_status_of_what_was_not_asked_for_says_what_was(
    outputs: Path, small: list[Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = said("status", monkeypatch=monkeypatch)
    assert isinstance(message, str) and "nothing was asked for under outputs" in message
    made_up.written(outputs, small, "small")
    message = said("status", "saddle_escpae", monkeypatch=monkeypatch)
    assert isinstance(message, str) and "saddle_escpae" in message and f"there are runs of {quick.STUDY}" in message


def test_status_imports_neither_jax_nor_tables(tmp_path: Path) -> None:
    code = "import sys; import pcexp.records.status; print(*{'jax', 'polars', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=quick.environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_command_that_continues_has_what_the_last_one_said_of_place_and_seeds(
    outputs: Path, small: list[Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--config-dir",
        "my conf",
        "execution.targets=[mylab.]",
        "data.path=d.npz",
        "lanes.seed=[5]",
        "scale=small",
    ]
    monkeypatch.setattr(sys, "argv", ["pcexp", f"+experiment={quick.STUDY}", *words])
    made_up.written(outputs, small[:1], "small", made_up.only([1]))
    lines = status.status(outputs / quick.STUDY, "small").splitlines()
    assert lines[-1].endswith(
        "scale=small --config-dir 'my conf' 'execution.targets=[mylab.]' data.path=d.npz 'lanes.seed=[0,2]'"
    )


def test_a_command_of_a_variant_sets_the_flags_that_made_it() -> None:
    for variant, expected in (
        ("network.width=4", "python -m pcexp +experiment=s network.width=4 scale=small"),
        ("network.width=4 XLA_FLAGS=--xla_a=2,--xla_b=1", "XLA_FLAGS='--xla_a=2 --xla_b=1' python -m pcexp +experiment=s network.width=4 scale=small"),
        ("XLA_FLAGS=--xla_a=2", "XLA_FLAGS=--xla_a=2 python -m pcexp +experiment=s scale=small"),
    ):  # fmt: skip
        assert status.command("s", "small", {"variant": [variant]}) == expected
