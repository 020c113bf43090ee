"""``fabric-lite report``: a page about a run, from what the run left."""

from fabric_lite.cli.report.command import add_to, run

__all__ = ["add_to", "run"]
