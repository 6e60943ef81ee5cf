"""The entry of ``wsgiserv`` and ``python -m wsgiserv``.

Owns: where the imports of the command line come from.
Must not know: anything but the command line's entry.
"""

import sys

from wsgiserv.library_first import LibraryFirst

with LibraryFirst():
    from wsgiserv.cli import main

if __name__ == "__main__":
    sys.exit(main())
