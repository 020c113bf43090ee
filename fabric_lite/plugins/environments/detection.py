"""Finding out who has started this process."""

from __future__ import annotations

import logging
import os

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.kubeflow import KubeflowEnvironment
from fabric_lite.plugins.environments.lightning import LightningEnvironment
from fabric_lite.plugins.environments.lsf import LSFEnvironment
from fabric_lite.plugins.environments.mpi import _LAUNCHER_VARIABLES, MPIEnvironment
from fabric_lite.plugins.environments.slurm import SLURMEnvironment
from fabric_lite.plugins.environments.torchelastic import TorchElasticEnvironment
from fabric_lite.utilities.rank_zero import rank_zero_warn

_log = logging.getLogger(__name__)

# In the order in which they are asked, each with the variables that speak for it. torchrun is first, because it may be
# used inside of all the others.
_DETECTABLE: tuple[tuple[type[ClusterEnvironment], tuple[str, ...]], ...] = (
    (TorchElasticEnvironment, ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK")),
    (SLURMEnvironment, ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_NTASKS", "SLURM_PROCID")),
    (MPIEnvironment, _LAUNCHER_VARIABLES),
    (LSFEnvironment, ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK")),
    (KubeflowEnvironment, ("KUBERNETES_SERVICE_HOST", "MASTER_ADDR", "WORLD_SIZE", "RANK")),
)


def choose_environment(given: ClusterEnvironment | None = None) -> ClusterEnvironment:
    """Where this process runs. The choice and its reason go to the log.

    Args:
        given: What the script asks for.

    Returns:
        What the script asks for, or else the first environment that is detected; `LightningEnvironment` if none is, or
        if ``FABRIC_LITE_ENV=none`` switches detection off.

    Raises:
        ValueError: For another value of ``FABRIC_LITE_ENV``.
    """
    if given is not None:
        _log.info("cluster environment: %s, because the script asks for it", type(given).__name__)
        return given
    switch = os.environ.get("FABRIC_LITE_ENV", "")
    if switch not in ("", "none"):
        raise ValueError(
            f"The environment variable `FABRIC_LITE_ENV={switch}` says nothing: `FABRIC_LITE_ENV=none` switches the"
            " detection of clusters off. To choose one, write `Fabric(plugins=SLURMEnvironment())`."
        )
    if switch == "none":
        _log.info("cluster environment: none, because FABRIC_LITE_ENV=none switches detection off")
        return LightningEnvironment()
    for kind, names in _DETECTABLE:
        if kind.detect():
            _log.info("cluster environment: %s, because of %s", kind.__name__, ", ".join(_found(names)))
            return kind()
    _warn_of_mpi()
    _log.info("cluster environment: none, because no launcher or scheduler left its variables")
    return LightningEnvironment()


def _found(names: tuple[str, ...]) -> list[str]:
    return [f"{name}={os.environ[name]}" for name in names if name in os.environ]


def _warn_of_mpi() -> None:
    """Warn if MPI has started several processes, and nothing tells them apart."""
    several = [line for line in _found(_LAUNCHER_VARIABLES) if not line.endswith(("=", "=0", "=1"))]
    if several and "LOCAL_RANK" not in os.environ:
        rank_zero_warn(
            f"MPI has started several processes ({several[0]}), but the package mpi4py is not there or finds no MPI:"
            " each process runs alone. Install it (`pip install mpi4py`), or set `FABRIC_LITE_ENV=none` if you mean it."
        )
