"""``python -m wsgiserv``.

Owns: nothing. Must not know: anything but the command line's entry.
"""

import sys

from wsgiserv.cli import main

if __name__ == "__main__":
    sys.exit(main())
