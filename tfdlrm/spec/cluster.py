"""Recipe of a cluster: which run, how many processes, how often they are started again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, model_validator

from tfdlrm.spec.byte_sizes import parse_bytes
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.overrides import apply_override
from tfdlrm.spec.tf_config import ClusterStrategy
from tfdlrm.spec.toml_file import read_toml


class ClusterConfig(Frozen):
    """A run on several processes.

    Attributes:
        recipe: Recipe of the run: a path, relative to the cluster's file.
        set: `section.key=value` texts that change it.
        strategy: `"parameter_server"`: tables lie on servers, workers train side by side, a chief hands out the work;
            or `"multi_worker_mirrored"`: every worker holds the whole model, and all take each step together.
        workers, servers: Processes of `cluster run`; where `TF_CONFIG` comes from outside, it says how many there are.
            Mirrored workers have no servers, and the chief is one more of them.
        memory_per_server: Memory of a server for its share of tables and slots, such as "4GB". Defaults to `None`: not
            checked.
        max_worker_restarts: How often workers are started again, all of them together.
        max_restarts: How often everything is started again after a server or the chief is lost.
        back_off_seconds: Wait before the first of those, and before a lost worker's first start; each further one, of
            everything or of that worker, waits twice as long, at most 30 s.
        stop_seconds: How long the chief may take to write a checkpoint when it is told to stop.
        inter_op_threads, intra_op_threads: Threads of TensorFlow in each process.
        first_port: Ports of the processes from here on, on this machine. Defaults to 0: ports that are free.
    """

    recipe: str
    set: tuple[str, ...] = ()
    strategy: ClusterStrategy = "parameter_server"
    workers: int = Field(default=2, ge=1)
    servers: int = Field(default=2, ge=0)
    memory_per_server: str | None = None
    max_worker_restarts: int = Field(default=10, ge=0)
    max_restarts: int = Field(default=3, ge=0)
    back_off_seconds: float = Field(default=1.0, ge=0, le=600)
    stop_seconds: float = Field(default=120.0, gt=0)
    inter_op_threads: int = Field(default=4, ge=1)
    intra_op_threads: int = Field(default=1, ge=1)
    first_port: int = Field(default=0, ge=0, lt=2**16)

    @model_validator(mode="after")
    def _servers_that_are_used(self) -> ClusterConfig:
        if self.strategy == "parameter_server" and not self.servers:
            raise SpecError('`servers` must be at least 1 under strategy "parameter_server". Received: 0.')
        if self.strategy == "multi_worker_mirrored" and self.servers:
            raise SpecError(
                f'`servers` must be 0 under strategy "multi_worker_mirrored", which has none. Received: {self.servers}.'
            )
        if self.memory_per_server is not None:
            parse_bytes(self.memory_per_server, "memory_per_server")
        last = self.first_port + self.workers + self.servers
        if self.first_port and last >= 2**16:
            raise SpecError(f"`first_port` must leave a port below 65536 to each process. Received: {self.first_port}.")
        return self


def load_cluster(path: str | Path, overrides: Iterable[str] = ()) -> ClusterConfig:
    """Read the recipe of a cluster.

    Args:
        path: TOML file.
        overrides: `key=value` texts. `section.key` and the keys of a run outside of sections go to the run's recipe,
            after those of `set`; any other key is one of the cluster's.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (with the nearest valid one), or a value has the
            wrong type or range.
    """
    values = read_toml(path)
    of_run = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        if "." in key or key in RunConfig.model_fields:
            of_run.append(override)
        else:
            apply_override(values, override)
    try:
        cluster = ClusterConfig(**values)
    except SpecError as error:
        raise ConfigError(f"{path}: {error}") from None
    return cluster.model_copy(update={"set": (*cluster.set, *of_run)})


def run_config(cluster: ClusterConfig, folder: Path) -> RunConfig:
    """Return the configuration of the run that a cluster is for.

    Args:
        cluster: The cluster.
        folder: Folder of its file.

    Raises:
        ConfigError: as `load_config`.
    """
    given = {"strategy": cluster.strategy, "server_memory": cluster.memory_per_server}
    distribute = [f'distribute.{key}="{value}"' for key, value in given.items() if value is not None]
    return load_config(folder / cluster.recipe, [*cluster.set, *distribute])
