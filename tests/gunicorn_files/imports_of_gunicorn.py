# Names of gunicorn in a file: version, logging defaults, utilities, base classes.
#: get /
#: wait ready
#: out GET

import copy
import sys

import gunicorn
from gunicorn import glogging, util
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import CONFIG_DEFAULTS
from gunicorn.workers import SUPPORTED_WORKERS
from gunicorn.workers.base import Worker

from record import note

assert tuple(map(int, gunicorn.__version__.split(".")[:2])) >= (20, 0), "gunicorn is too old"
logconfig_dict = copy.deepcopy(CONFIG_DEFAULTS)
logconfig_dict["loggers"]["gunicorn.access"]["propagate"] = False
access_log_format = "%(m)s %(U)s"


def when_ready(server):
    note("ready", issubclass(glogging.Logger, object), callable(util.parse_address), "sync" in SUPPORTED_WORKERS)
    note(isinstance(BaseApplication, type), isinstance(Arbiter, type), isinstance(Config, type), isinstance(Worker, type))
    note(gunicorn.SERVER, "gunicorn" in sys.modules or True)
