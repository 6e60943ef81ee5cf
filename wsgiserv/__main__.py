"""The entry of ``wsgiserv`` and ``python -m wsgiserv``."""

# The C module itself: `signal` imports `enum`, and this must come before any import that takes time.
import _signal  # type: ignore[import-not-found]
import sys

# Until the server has its handlers, an interrupt kills this process. Python's own handler would raise
# KeyboardInterrupt, which is dropped where it falls into a callback of importlib: the server would start although it
# was told to stop.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from wsgiserv.library_first import LibraryFirst

with LibraryFirst():
    from wsgiserv.cli import main

if __name__ == "__main__":
    sys.exit(main())
