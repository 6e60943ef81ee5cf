"""Long bounded runs that look for leaks, lost requests and starved clients; they use the harness of bench/."""

import sys

from bench.servers import ROOT

# The modules which the tests share.
sys.path.insert(0, str(ROOT / "tests" / "support"))
sys.path.insert(0, str(ROOT / "tests" / "corpus"))
