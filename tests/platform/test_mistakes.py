"""No mistake of a user ends in a traceback: every command answers every kind of bad input in a few lines that name the culprit."""

import io
import os
import shlex
import sys
import tarfile
from pathlib import Path

import made_up
import pytest
import quick

from pcexp.__main__ import main
from pcexp.config.spec import Spec
from pcexp.experiments import saddle_escape

LONG, STRANGE = "w" * 5000, "wörd☃"
HEAD = b"# @package _global_\n"
BAD_YAML = {
    "tab": HEAD + b"network:\n\twidth: 8\n",
    "doubled": HEAD + b"scale: small\nscale: smoke\n",
    "mark": b"\xef\xbb\xbf" + HEAD + b"scale: small\n",
    "headless": b"scale: small\n",
    "open": HEAD + b"scale: [small\n",
    "latin": HEAD + b"scale: \xe9t\xe9\n",
    "list": HEAD + b"- 1\n- 2\n",
    "nothing": HEAD + b"defaults: [/data: nosuch]\n",
}
PLAIN = (
    f"study: {{_target_: {saddle_escape.__name__}.SaddleEscape, probe_size: 8}}\nnetwork: {{width: 8, n_hidden: 2}}\n"
)
"""An experiment without a grid, which is composed at once."""
RUN = "+experiment=own scale=smoke dry_run=true --config-dir mine "
OWN = "+experiment=own --config-dir yaml/"
NPZ = RUN + "data=npz data.path="
MISTAKES = [
    # a command, and what its message has
    ("--nosuch", "--nosuch"),
    ("nosuch", "no verb nosuch"),
    (STRANGE, STRANGE),
    ("/a", "'/a'"),
    (RUN + "network.nosuch=3", "network.nosuch"),
    (RUN + "+nosuch.key=3", "nosuch"),
    (RUN + f"network.width={LONG}", "network.width"),
    (RUN + "network=nosuch", "network/nosuch"),
    (RUN + "data=nosuch", "data/nosuch"),
    (RUN + "data=digitz", "did you mean digits?"),
    (RUN + "data=npz", "data.path=FILE.npz"),
    (RUN + "scale=nosuch", "scale=nosuch"),
    (RUN + "blocks=[nosuch]", "no block nosuch"),
    (RUN + "lanes.seed=many", "lanes.seed"),
    (RUN + "network.width=", "network.width"),
    (RUN + f"execution.outputs={LONG}", "no name of a file"),
    (RUN + "execution.outputs=foreign/x dry_run=false", "foreign"),
    (RUN + "x=[1,", "not closed"),
    (RUN + "stray", "'stray'"),
    ("+experiment=nosuch", "experiment/nosuch"),
    ("+experiment=", "experiment"),
    ("+experiment=été", "'été'"),
    (NPZ + "a=b.npz", "data.path"),
    (NPZ + "nosuch.npz", "nosuch.npz"),
    (NPZ + "foreign", "foreign"),
    (NPZ + "unreadable", "unreadable"),
    ("+experiment=own --config-dir nosuch-folder", "nosuch-folder"),
    (RUN + "-m hydra/launcher=joblib", "hydra/launcher=joblib"),
    (RUN + "hydra/sweeper=basic", "hydra/sweeper"),
    (RUN + "hydra.mode=RUN", "hydra.mode"),
    (RUN + "hydra.sweep.dir=x", "hydra.sweep.dir"),
    (RUN + "hydra.sweeper.max_batch_size=2", "max_batch_size"),
    (RUN + "'execution.outputs=${oc.env:NOSUCH}'", "NOSUCH"),
    ("--cfg nosuch", "nosuch"),
    ("--cfg job network.nosuch=3", "network.nosuch"),
    ("--cfg job -m", "--multirun"),
    ("--cfg job --package nosuch", "nosuch"),
    ("--resolve", "--resolve"),
    ("--info nosuch", "nosuch"),
    ("--experimental-rerun nosuch", "--experimental-rerun"),
    ("-sc nosuch", "subcommand"),
    *((f"{OWN}{name}/mine", f"own.yaml, line {n}") for name, n in zip(BAD_YAML, (3, 3, 1, 1, 3), strict=False)),
    (OWN + "latin/mine", "own.yaml"),
    (OWN + "list/mine", "own"),
    (OWN + "nothing/mine", "data/nosuch"),
    ("campaign nosuch dry_run=true", "no experiment nosuch"),
    (f"campaign {quick.STUDY} network.nosuch=3 dry_run=true", "network.nosuch"),
    (f"campaign {quick.STUDY} x=[1,", "not closed"),
    (f"campaign {quick.STUDY} scale=huge", "scale=huge"),
    ("data nosuch", "nosuch"),
    ("data mnsit", "did you mean mnist"),
    ("data ''", "without a name"),
    ("data mnist --from x", "--from"),
    ("data tiny_imagenet --from nosuch", "nosuch"),
    *((f"records unpack {name}", name) for name in ("nosuch", "foreign", "other.tar", "outputs")),
    ("records nosuch", "nosuch"),
    ("records", "verb"),
    (f"records pack {quick.STUDY} --to foreign/x", "foreign/x"),
    (f"records collect {quick.STUDY} --results foreign", "foreign"),
    (f"report {quick.STUDY} --scale nosuch", "nosuch"),
    *((f"{verb} {quick.STUDY} --nosuch", "--nosuch") for verb in ("status", "report", "records pack", "campaign")),
    ("status --outputs foreign", "foreign"),
    *(
        (f"{verb} {shlex.quote(word)}", word)
        for verb in ("status", "report", "records pack", "records collect")
        for word in ("nosuch", STRANGE, "", "..", LONG)
    ),
    *(
        (f"{verb} {quick.STUDY} --outputs bad-{name}", where)
        for name, where in (("manifest", "manifest-small.json"), ("lanes", "lanes.jsonl"), ("rows", "rows.jsonl"))
        for verb in ("status", "report", "records pack", "records collect")
        if (verb, name) != ("status", "rows")  # which reads none
    ),
    *((f"{verb} {quick.STUDY} --outputs bad-folder", "lanes.jsonl") for verb in ("status", "report", "records pack")),
]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory, small: list[Spec]) -> Path:
    """Files and folders of all wrong kinds, each under a name that says so."""
    folder = tmp_path_factory.mktemp("spoilt")
    (folder / "foreign").write_bytes(b"\x00\xff\xfe hello")
    quick.experiment_file(folder, PLAIN)
    (folder / "unreadable").mkdir(mode=0o000)
    with tarfile.open(folder / "other.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    for name, text in BAD_YAML.items():
        (folder / "yaml" / name).mkdir(parents=True)
        (quick.experiment_file(folder / "yaml" / name, "") / "experiment" / "own.yaml").write_bytes(text)
    cell = f"{quick.STUDY}/{small[0].cell}"
    for name in ("outputs", "bad-manifest", "bad-lanes", "bad-rows", "bad-folder"):
        made_up.written(folder / name, small[:1], "small")
    (folder / "bad-manifest" / quick.STUDY / "manifest-small.json").write_text("[1, 2")
    (folder / "bad-lanes" / cell / "lanes.jsonl").write_text('{"a": 1}\n')
    (folder / "bad-rows" / cell / "rows.jsonl").write_text("[1]\n")
    (folder / "bad-folder" / cell / "lanes.jsonl").unlink()
    (folder / "bad-folder" / cell / "lanes.jsonl").mkdir()
    return folder


@pytest.mark.parametrize(("words", "culprit"), MISTAKES, ids=lambda text: text[:60])
def test_a_mistake_is_answered_in_a_few_lines_that_name_it(
    words: str, culprit: str, spoilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(spoilt)
    monkeypatch.setattr(sys, "argv", ["pcexp", *shlex.split(words)])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it
    with pytest.raises(SystemExit) as ended:  # any other exception would be a traceback
        main()
    printed, code = capsys.readouterr(), ended.value.code
    said = printed.out + printed.err + (code if isinstance(code, str) else "")
    assert code not in (0, None)
    assert culprit in said and "Traceback" not in said
    lines = [line for line in said.splitlines() if not line.startswith(("usage:", " ", "\t"))]
    assert len(lines) < 12 and sum(map(len, lines)) < 2500 + len(words)
    assert not os.path.exists("wandb") and not os.path.exists("multirun")
