"""Hydra's side of a sweep: a launcher that is given all jobs at once. Hydra finds plugins in this namespace package only."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pcexp.configuration import resolved, split_lanes


class LocalLauncher(Launcher):
    """Runs all cells of a sweep in this process, so that compilations and data are shared."""

    def __init__(self, **_: Any) -> None:
        self._config: DictConfig | None = None
        self._context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config, self._context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from pcexp.sweep import run_all  # JAX: not imported for --help

        if code := run_all(self._composed(job_overrides)):
            raise SystemExit(code)  # Hydra would drop a status that is returned
        return [self._done(None)]

    def _composed(self, job_overrides: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        assert self._config is not None and self._context is not None
        configs = []
        for overrides in job_overrides:
            kept, lanes = split_lanes(self._config, overrides)
            config = self._context.config_loader.load_sweep_config(self._config, kept)
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
