"""`Learner`: a ready-made training loop on top of `Fabric`."""

from fabric_lite.learner.learner import Learner

__all__ = ["Learner"]
