"""Hydra's side of a command: a sweeper that hands its overrides to the platform. Hydra finds plugins in this namespace package only."""

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pcexp.config.composition import composed

STOPPED = 130


class GridSweeper(Sweeper):
    """Runs the grid of a study, as its YAML and the overrides have it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader = hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> None:
        from pcexp.run.sweep import run_all  # JAX: not imported for --help

        code = 0
        for asked, settings in composed(self._loader, arguments):
            code = max(code, run_all(asked, settings))
            if code == STOPPED:
                break
        if code:
            raise SystemExit(code)  # Hydra would drop a status that is returned
