"""A peer in an interpreter of its own, asked over a pipe."""

import json
import os
import selectors
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


class PeerFailed(Exception):
    """A peer could not be installed, compiled in time, or trusted; the text says which."""


class OtherProcess:
    """The peer of benchmarks/peer_worker.py in the given interpreter, alive until it is closed."""

    def __init__(self, python: str, name: str, problem: Path, variant: str, extra: dict[str, str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("peer_worker.py")), name, str(problem), variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0"} | extra,
        )

    def __enter__(self) -> "OtherProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def seconds(self, n: int, limit: float) -> float:
        """Seconds of n steps, as it measured them."""
        return self._ask(limit, do="run", n=n)

    def start(self, optimiser: str, learning_rate: float) -> None:
        self._ask(600.0, do="start", optimiser=optimiser, learning_rate=learning_rate)

    def run(self, n: int) -> None:
        self._ask(600.0, do="run", n=n)

    def weights(self) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            self._ask(600.0, do="weights", path=str(path))
            with np.load(path) as file:
                return [file[name] for name in file.files]

    def _ask(self, limit: float, **request: Any) -> Any:
        """Its answer to a request. Raises PeerFailed when it died or took longer than `limit` seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        begun = time.monotonic()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(self._last_words()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                self.process.kill()
                raise PeerFailed(f"no answer after {time.monotonic() - begun:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerFailed(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self.process.wait()
        self.errors.seek(0)
        said = [line for line in self.errors.read().splitlines() if line.strip() and not line.startswith("-")]
        named = [line for line in said if "Error" in line]
        return (named or said or ["it ended without a word"])[-1][:300]
