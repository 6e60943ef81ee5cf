"""Long bounded runs that look for leaks, lost requests and starved clients; they use the harness of bench/."""

import sys

from bench.servers import ROOT

# The modules of the tests with real processes.
sys.path.insert(0, str(ROOT / "tests" / "live"))
sys.path.insert(0, str(ROOT / "tests" / "corpus"))
