"""Where processes find each other."""

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.lightning import LightningEnvironment

__all__ = ["ClusterEnvironment", "LightningEnvironment"]
