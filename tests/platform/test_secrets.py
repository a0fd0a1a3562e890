"""No secret of a user's environment or command line stands in a file that a run leaves, or that is committed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.config.plain import discreet
from pcexp.records.tables import collect

SENTINEL = "sentinel-5f3759df"


@pytest.mark.parametrize(
    "override",
    [
        "study.probe_size=${oc.env:MINE}",
        "network.width='${oc.decode:${oc.env:MINE}}'",
        "training.epochs=${tracker.project}",
    ],
)
def test_nothing_of_the_environment_enters_what_a_number_depends_on(
    override: str, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the platform's half neither."""
    monkeypatch.setenv("MINE", SENTINEL)
    with pytest.raises(Refused) as refused:
        run(override, "tracker=wandb", "tracker.project=${oc.env:MINE}")
    assert SENTINEL not in str(refused.value)
    assert override.partition("=")[0] in str(refused.value) or "tracker" in str(refused.value)


@pytest.mark.parametrize("key", ["study.api_key", "study.token", "data.hub.password", "network.AUTH_KEY"])
def test_a_key_of_a_secret_is_refused_where_it_would_be_recorded(
    key: str, run: Callable[..., int], outputs: Path
) -> None:
    with pytest.raises(Refused, match=rf"{key}: .*secret"):
        run(f"+{key}={SENTINEL}")
    assert not outputs.exists()


def test_the_platforms_half_may_have_secrets_and_no_file_has_them(
    outputs: Path, run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", SENTINEL)
    words = ["tracker=wandb", "tracker.entity=${oc.env:MINE}", f"tracker.directory={tmp_path / 'mirror'}"]
    monkeypatch.setattr(
        "sys.argv", ["pcexp", *words, f"tracker.api_key={SENTINEL}", f"tracker={{password: {SENTINEL}}}"]
    )
    assert run(*words[::2]) == 0  # its settings are resolved; W&B itself is told the entity, and has its own files
    config = quick.composed(*words)
    assert config["tracker"]["entity"] == SENTINEL and SENTINEL not in str({**config, "tracker": None})
    collect(outputs, tmp_path / "results", quick.STUDY, "smoke")
    files = [path for folder in (outputs, tmp_path / "results") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if SENTINEL.encode() in path.read_bytes()] == []


def test_words_of_a_command_are_kept_without_the_values_of_secrets() -> None:
    assert discreet("tracker.api_key=abc") == "tracker.api_key=***"
    assert discreet("+a={Token: x, b: 1}").startswith("+a={Token:***")
    assert discreet('x.password="a b"') == "x.password=***"
    for word in ("network.width=3", "study.n_tokens=4", "key=3", "study.tokens=2", "+experiment=secret_santa"):
        assert discreet(word) == word
