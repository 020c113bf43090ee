"""Where processes find each other."""

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.kubeflow import KubeflowEnvironment
from fabric_lite.plugins.environments.lightning import LightningEnvironment
from fabric_lite.plugins.environments.lsf import LSFEnvironment
from fabric_lite.plugins.environments.mpi import MPIEnvironment
from fabric_lite.plugins.environments.slurm import SLURMEnvironment
from fabric_lite.plugins.environments.torchelastic import TorchElasticEnvironment

__all__ = [
    "ClusterEnvironment",
    "KubeflowEnvironment",
    "LSFEnvironment",
    "LightningEnvironment",
    "MPIEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
]
