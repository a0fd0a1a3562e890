"""What is wrong with a configuration is said before anything runs: the key, the value, what is valid; nothing is written."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import quick

from pcexp.config.composition import Refused
from pcexp.config.refusals import parsed
from pcexp.run.session import Execution

Refusal = Callable[..., str]

PLAIN = (
    "+study._target_=pcexp.experiments.saddle_escape.SaddleEscape",
    "+study.probe_size=8",
    "network.width=8",
    "network.n_hidden=2",
)
"""The study without the experiment's file, which sets values of the options that it chooses."""


WITHOUT_INFERENCE = tuple(override for override in quick.QUICK if not override.startswith("inference."))


@pytest.fixture
def refusal(outputs: Path, run: Callable[..., int]) -> Refusal:
    """The one line that a configuration is refused with, before its cost is printed."""

    def refusal(*overrides: str, base: tuple[str, ...] = quick.QUICK) -> str:
        with pytest.raises(Refused) as refused:
            run("dry_run=true", *overrides, base=base)
        assert not outputs.exists()
        message = str(refused.value)
        assert message.startswith("pcexp: ") and "\n" not in message
        return message

    return refusal


def suggests(message: str, word: str) -> bool:
    return re.search(rf"did you mean [\w.]*\b{word}\b", message) is not None


# Keys


@pytest.mark.parametrize(
    ("override", "typo", "meant", "another"),
    [
        ("network.widht=8", "network.widht", "width", "n_hidden"),
        ("optimiser.learningrate=0.1", "optimiser.learningrate", "learning_rate", "momentum"),
        ("trainin.epochs=3", "trainin", "training", "optimiser"),
        ("+trainin=3", "trainin", "training", "optimiser"),
        ("execution.max_minute=3", "execution.max_minute", "max_minutes", "workers"),
    ],
)
def test_a_mistyped_key_on_the_command_line_is_named_with_what_was_meant_and_what_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, typo: str, meant: str, another: str
) -> None:
    said = quick.refused(*quick.QUICK, "execution.outputs=out", override, monkeypatch=monkeypatch)
    assert typo in said and suggests(said, meant) and another in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "outputs").exists()


TYPOS = {
    "component": ("network:\n  widht: 8\n", "network.widht", "width", "n_hidden"),
    "root": ("trainin:\n  epochs: 3\n", "trainin", "training", "optimiser"),
    "study": ("study:\n  prob_size: 3\n", "study.prob_size", "probe_size", "probe_size"),
    "lane": (
        "grid:\n  - block: own\n    lanes: {seed: [0], optimiser.learningrate: [0.1]}\n",
        "optimiser.learningrate",
        "learning_rate",
        "momentum",
    ),
}


@pytest.mark.parametrize("where", TYPOS)
def test_a_mistyped_key_in_an_experiment_file_is_named_with_what_was_meant_and_what_is_valid(
    tmp_path: Path, outputs: Path, where: str
) -> None:
    text, typo, meant, another = TYPOS[where]
    folder = quick.experiment_file(tmp_path, text, defaults="[saddle_escape]")
    config = quick.composed("+experiment=own", "parameterisation=near_origin", base=("scale=smoke",), folder=folder)
    with pytest.raises(Refused) as refused:
        quick.run_all([quick.changed(config, "execution.outputs", str(outputs))])
    message = str(refused.value)
    assert typo in message and suggests(message, meant) and another in message
    assert not outputs.exists()


def test_lanes_beside_the_grid_of_an_experiment_file_are_refused_and_not_left_out_in_silence(tmp_path: Path) -> None:
    folder = quick.experiment_file(tmp_path, "lanes:\n  seed: [0, 1]\n", defaults="[saddle_escape]")
    with pytest.raises(Refused, match=r"lanes.*grid"):
        quick.composed("+experiment=own", base=("scale=smoke",), folder=folder)


def test_a_mistyped_key_in_an_experiment_file_ends_the_command_with_status_1_and_no_traceback(tmp_path: Path) -> None:
    text, typo, meant, another = TYPOS["component"]
    folder = quick.experiment_file(tmp_path, text, defaults="[saddle_escape]")
    done = quick.command("--config-dir", str(folder), "+experiment=own", "execution.outputs=out", cwd=tmp_path)
    assert done.returncode == 1
    assert typo in done.stderr and suggests(done.stderr, meant) and another in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "typo", "meant"),
    [
        ("+network.widht=8", "network.widht", "width"),
        ("+study.probesize=8", "study.probesize", "probe_size"),
        ("+inference.maxsteps=8", "learning.inference.maxsteps", "max_steps"),
        ("+training.epoch=8", "training.epoch", "epochs"),
        ("+data.limits=8", "data.limits", "limit"),
        ("+tracker.projct=mine", "tracker.projct", "project"),
        ("+dry_rum=true", "dry_rum", "dry_run"),
        ("+execution.max_minute=1", "execution.max_minute", "max_minutes"),
    ],
)
def test_a_mistyped_key_of_any_component_is_refused_with_a_suggestion(
    refusal: Refusal, override: str, typo: str, meant: str
) -> None:
    message = refusal(override, *(["tracker=wandb"] if "tracker" in typo else []))
    assert typo in message and suggests(message, meant)


@pytest.mark.parametrize(
    ("override", "listed"),
    [
        ("network=fully_conected", "fully_connected"),
        ("data=minst", "mnist"),
        ("+experiment=saddle_escap", "saddle_escape"),
    ],
)
def test_an_unknown_option_is_refused_with_the_valid_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, listed: str
) -> None:
    base = quick.QUICK[1:] if "experiment" in override else quick.QUICK
    said = quick.refused(*base, override, "execution.outputs=out", monkeypatch=monkeypatch)
    assert override.partition("=")[2] in said
    assert re.search(rf"(?m)^\s+{listed}$|\b{listed}\b[,.]", said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "override",
    [
        *(
            "data.path=~/x",
            "+experiment=été",
            "data.path=a=b.npz",
            "data.path=x'y.npz",
            'data.path="x',
            "data.path=李明",
        ),
        *("data.path=a|b@c#d", "data.path=[a].npz", "data.path=a(1).npz", r"data.path=$HOME/C:\x;y"),
    ],
)
def test_a_value_that_cannot_be_read_is_answered_with_a_line_that_works(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = quick.refused(*quick.QUICK[1:], override, monkeypatch=monkeypatch)
    assert said.count("\n") == 0 and override.partition("=")[0] in said
    (word,) = shlex.split(said.partition("plain text: ")[2])
    assert parsed(word).value() == override.partition("=")[2].removeprefix('"')


def test_a_study_that_reads_energies_refuses_an_output_whose_energy_is_no_function_of_its_error(
    refusal: Refusal,
) -> None:
    message = refusal("output=softmax", "lanes.seed=[0]", base=("+experiment=learning_depth", "scale=smoke"))
    assert "output=softmax: this study takes squared" in message


def test_without_an_experiment_the_message_says_how_to_name_one(refusal: Refusal) -> None:
    assert "+experiment=saddle_escape" in refusal(base=())


@pytest.mark.parametrize("base", [quick.QUICK, quick.QUICK[:1]], ids=["no value depends on it", "as the experiment is"])
def test_an_unknown_scale_is_refused_with_the_valid_ones(refusal: Refusal, base: tuple[str, ...]) -> None:
    assert re.search("scale=huge.*smoke, small, thesis", refusal("scale=huge", base=base))


# Types


@pytest.mark.parametrize(
    ("override", "key", "value", "valid"),
    [
        ("network.width=wide", "network.width", "'wide'", "int"),
        ("network.width=8.5", "network.width", "8.5", "int"),
        ("network.width=true", "network.width", "True", "int"),
        ("network.biases=1", "network.biases", "1", "bool"),
        ("training.epochs=null", "training.epochs", "None", "int"),
        ("training.batch_size=64.0", "training.batch_size", "64.0", "int"),
        ("parameterisation.sigma=small", "parameterisation.sigma", "'small'", "float"),
        ("parameterisation.sigma=true", "parameterisation.sigma", "True", "float"),
        ("parameterisation.sigma=[0.1]", "parameterisation.sigma", "[0.1]", "float"),
        ("inference.activity_lr=fast", "learning.inference.activity_lr", "'fast'", "float"),
        ("optimiser.learning_rate=fast", "optimiser.learning_rate", "'fast'", "float"),
        ("optimiser.learning_rate=true", "optimiser.learning_rate", "True", "float"),
        ("data.limit=many", "data.limit", "'many'", "int"),
        ("execution.workers=two", "execution.workers", "'two'", "int"),
        ("execution.targets=[1]", "execution.targets", "[1]", "str"),
        ("root_seed=1.5", "root_seed", "1.5", "whole number"),
        ("root_seed=true", "root_seed", "True", "whole number"),
        ("lanes.seed=[0,1.5]", "lanes.seed", "1.5", "whole numbers"),
        ("lanes.seed=[0,true]", "lanes.seed", "True", "not a number"),
        ("lanes.seed=[0,one]", "lanes.seed", "'one'", "not a number"),
        ("lanes.seed=[]", "lanes", "", "at least one value"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_key_and_the_valid_type(
    refusal: Refusal, override: str, key: str, value: str, valid: str
) -> None:
    message = refusal(override)
    assert key in message and value in message and valid in message
    assert len(message) < 300 and "jaxlib" not in message  # people read it


@pytest.mark.parametrize("channels", [f"[{'4,' * 20}8.5]", f"[wide{',4' * 20}]", f"[{'4,' * 20}true]", "16", "sixteen"])
def test_a_list_with_an_element_of_the_wrong_type_is_refused(refusal: Refusal, channels: str) -> None:
    message = refusal(f"network.channels={channels}", base=(*PLAIN[:2], "network=convolutional"))
    assert "network.channels" in message and "int" in message


@pytest.mark.parametrize(
    ("override", "key", "valid"),
    [
        ("network.activation=sigmoid", "network.activation", "linear, tanh, relu"),
        ("network.form=middle", "network.form", "pre, post"),
        ("inference.form=both", "learning.inference.form", "activities, deviations"),
        ("protocol.pc_gradient_scale=sum", "learning.gradient_scale", "batch_mean, batch_sum, mean_squared_error"),
    ],
)
def test_a_word_that_is_no_option_is_refused_with_the_valid_ones(
    refusal: Refusal, override: str, key: str, valid: str
) -> None:
    message = refusal(override)
    assert key in message and valid in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("network.width=0", "width"),
        ("training.epochs=0", "epochs"),
        ("inference.max_steps=-1", "max_steps"),
        ("data.validation_fraction=1.5", "validation_fraction"),
        ("training.batch_size=100000", "training.batch_size"),
        ("execution.workers=-1", "execution: workers=-1: one at least"),
        ("execution.pack_size=0", "execution: pack_size=0: one at least"),
        ("execution.call_s=nan", "execution: call_s=nan: a number from 0.001"),
        ("execution.checkpoint_s=inf", "execution: checkpoint_s=inf: a number from 0"),
        ("execution.max_minutes=-3", "execution: max_minutes=-3: a number from 0"),
    ],
)
def test_a_value_that_cannot_be_run_is_refused_with_its_key(refusal: Refusal, override: str, key: str) -> None:
    assert key in refusal(override)


def test_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="outputs is empty: name a folder"):
        Execution(outputs="")


def test_lane_keys_that_do_not_exist_or_cannot_vary_in_a_cell_are_refused(refusal: Refusal) -> None:
    assert "lanes.network.width" in refusal("+lanes.network.width=[8,16]")
    assert "learning_rat" in refusal("+lanes.optimiser.learning_rat=[0.1]")


# Pairs


def test_an_exact_solver_on_a_network_that_is_not_linear_is_refused_with_what_works(refusal: Refusal) -> None:
    message = refusal("inference=closed_form", "network.activation=tanh", base=PLAIN)
    assert "inference=closed_form" in message
    assert "network.activation=linear" in message and "inference=gradient_descent" in message


def test_learning_on_the_equilibrated_energy_is_refused_where_it_is_not_known(refusal: Refusal) -> None:
    base = (*PLAIN, "learning=equilibrated", "network.activation=tanh")
    message = refusal(base=base)
    assert "learning=equilibrated" in message
    assert "network.activation=linear" in message and "learning=pc" in message


def test_an_experiment_can_be_asked_for_another_solver_and_hears_whether_it_works(refusal: Refusal) -> None:
    message = refusal("inference=closed_form", "network.activation=tanh", base=WITHOUT_INFERENCE)
    assert "network.activation=linear" in message and "inference=gradient_descent" in message
    assert quick.cell("inference=closed_form", base=WITHOUT_INFERENCE).cell


def test_images_for_convolutions_are_asked_for_when_the_data_have_none(refusal: Refusal) -> None:
    message = refusal("network=convolutional", "network.channels=[4]", "data=gaussian", base=PLAIN[:2])
    assert "images" in message


# Targets


@pytest.mark.parametrize(
    "override",
    [
        "study._target_=os.system",
        "network._target_=subprocess.Popen",
        "inference._target_=builtins.eval",
        "data._target_=pcexploit.Data",
        "tracker._target_=os.system",
        "study._target_=3",
    ],
)
def test_a_target_outside_the_allowed_prefixes_is_refused(refusal: Refusal, override: str) -> None:
    message = refusal(override)
    assert "_target_" in message and "pcexp." in message and "execution.targets" in message


def test_a_prefix_given_as_a_word_does_not_open_every_module_that_begins_with_one_of_its_letters(
    refusal: Refusal,
) -> None:
    message = refusal("execution.targets=optimisers.", "study._target_=os.system")
    assert "study._target_" in message or "execution.targets" in message
    assert "probe_size" not in message  # os.system was not even looked up


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("pcexp.model.architecture.FullyConected", "FullyConnected"),
        ("pcexp.nowhere.Network", "pcexp.nowhere"),
        ("pcexp.model.parameterisation.NTK", "network._target_"),
        ("pcexp.config.spec.PLATFORM", "network"),
        ("pcexp.__version__", "network"),
    ],
)
def test_a_target_that_is_not_there_or_is_something_else_is_refused(target: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        quick.run_all([quick.composed("dry_run=true") | {"network": {"_target_": target}}])


def test_several_cells_of_which_one_is_wrong_are_refused_together(outputs: Path) -> None:
    good = quick.composed(f"execution.outputs={outputs}")
    with pytest.raises(
        Refused, match=r"network\.width.*cell digits fully_connected.*; the other 1 of 2 could run"
    ) as refused:
        quick.run_all([good, quick.changed(good, "network.width", "wide")])
    assert not outputs.exists() and "\n" not in str(refused.value)
