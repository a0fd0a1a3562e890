"""Hydra's side of a sweep: a launcher that is given all jobs at once. Hydra finds plugins in this namespace package only."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pcexp.config.composition import of_values, resolved, split_lanes


class Compositions:
    """Configurations of the jobs of one sweep.

    Hydra reads and merges every file again for every job, a seventh of a second each; jobs that chose the same options are
    copies of one composition here, each with its own values.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._of_options: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """What Hydra composes of a job's overrides. Raises HydraException."""
        values = of_values(overrides, self._master.hydra.runtime.choices)
        rest = tuple(override for override in overrides if override not in values)
        if rest not in self._of_options:
            self._of_options[rest] = self._loader.load_sweep_config(self._master, list(rest))
        config = copy.deepcopy(self._of_options[rest])
        try:
            for key, value in values.values():
                OmegaConf.update(config, key, value, merge=True)
        except OmegaConfBaseException:
            return self._loader.load_sweep_config(self._master, list(overrides))  # which says what is wrong
        task = [override for override in overrides if override in values or override in config.hydra.overrides.task]
        config.hydra.overrides.task = task
        return config


class LocalLauncher(Launcher):
    """Runs all cells of a sweep in this process, so that compilations and data are shared."""

    def __init__(self, **_: Any) -> None:
        self._config: DictConfig | None = None
        self._context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config, self._context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from pcexp.run.sweep import run_all  # JAX: not imported for --help

        if code := run_all(self._composed(job_overrides)):
            raise SystemExit(code)  # Hydra would drop a status that is returned
        return [self._done(None)]

    def _composed(self, job_overrides: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        assert self._config is not None and self._context is not None
        compositions, configs = Compositions(self._context.config_loader, self._config), []
        for overrides in job_overrides:
            kept, lanes = split_lanes(self._config, overrides)
            config = compositions(kept)
            configs.append(resolved(config, config.hydra, lanes))
        return configs

    def _done(self, value: Any) -> JobReturn:
        done = JobReturn(overrides=[], cfg=self._config, hydra_cfg=self._config, working_dir=".", task_name="pcexp")
        done.status, done.return_value = JobStatus.COMPLETED, value
        return done


class PlanLauncher(LocalLauncher):
    """Runs nothing: what each job returns is its resolved configuration."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return [self._done(config) for config in self._composed(job_overrides)]


class LocalSweeper(BasicSweeper):
    """Hydra's own sweeper, less one composition a job: the launcher composes all jobs before it runs the first."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass
