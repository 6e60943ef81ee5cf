"""The entry of ``python -m wsgiserv.ctl``."""

from __future__ import annotations

import sys

from wsgiserv.ctl.commands import main

if __name__ == "__main__":
    sys.exit(main())
