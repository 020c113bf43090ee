"""What proves that a run does what it should, in tests of your own.

from fabric_lite.testing import run_distributed
"""

from fabric_lite.testing.resume import assert_resume_equal
from fabric_lite.testing.run import run_distributed

__all__ = ["assert_resume_equal", "run_distributed"]
