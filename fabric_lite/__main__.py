"""``python -m fabric_lite``: the command line where the script ``fabric-lite`` is not on the path."""

from __future__ import annotations

from fabric_lite.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
