"""Hydra's side of a command: a sweeper that hands its overrides to the platform. Hydra finds plugins in this namespace package only."""

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pcexp.config.composition import composed
from pcexp.config.grid import Refused
from pcexp.config.refusals import KEPT, unused

STOPPED = 130
LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class GridSweeper(Sweeper):
    """Runs the grid of a study, as its YAML and the overrides have it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader = hydra_context.config_loader
        self._search = []
        for override in config.hydra.overrides.hydra:
            key = override.lstrip("+~").partition("=")[0]
            if key.startswith(KEPT):
                self._search.append(override)
            elif override != "hydra.mode=MULTIRUN":  # -m says so, in Hydra
                raise Refused(unused(override))
        if config.hydra.launcher._target_ != LAUNCHER:
            raise Refused(unused(f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}"))

    def sweep(self, arguments: list[str]) -> None:
        from pcexp.run.sweep import run_all  # JAX: not imported for --help

        code = 0
        for asked, settings in composed(self._loader, [*self._search, *arguments]):
            code = max(code, run_all(asked, settings))
            if code == STOPPED:
                break
        if code:
            raise SystemExit(code)  # Hydra would drop a status that is returned
