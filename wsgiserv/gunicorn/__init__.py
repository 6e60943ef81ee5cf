"""gunicorn's public names for programs and configuration files, as far as they are used with wsgiserv.

A program that runs gunicorn by its classes runs wsgiserv when it imports them from here:
``from wsgiserv.gunicorn.app.base import BaseApplication``. Configuration, logger and worker-class modules find the same
modules under gunicorn's own name where that is not installed (`wsgiserv.stand_ins`). Nothing of the server imports
this package. docs/embedding-gunicorn.md lists what there is.
"""

# The release whose behaviour, settings and names are followed.
version_info = (27, 0, 1)
__version__ = ".".join(map(str, version_info))

# A configuration file that changes one of these changes the Server header.
SERVER = "gunicorn"
SERVER_SOFTWARE = f"{SERVER}/{__version__}"
