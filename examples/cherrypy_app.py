"""A CherryPy application, mounted in CherryPy's tree: a page, a form, an upload, a stream, an error.

wsgiserv -k threads cherrypy_app:app
"""

import hashlib

import cherrypy

# "embedded" is CherryPy's word for life in somebody else's server: no autoreloader, no signal handlers of its
# own, no tracebacks for clients. log.wsgi sends its errors to the server's error log.
cherrypy.config.update({"environment": "embedded", "log.wsgi": True})


class Root:
    """The pages: each exposed method is a path."""

    @cherrypy.expose
    @cherrypy.tools.response_headers(headers=[("Content-Type", "text/plain")])
    def index(self):
        """Greet."""
        return "Hello from CherryPy\n"

    @cherrypy.expose
    @cherrypy.tools.allow(methods=["POST"])
    @cherrypy.tools.json_out()
    def form(self, **fields):
        """Answer with the fields of a form."""
        return fields

    @cherrypy.expose
    @cherrypy.tools.allow(methods=["POST"])
    @cherrypy.tools.json_out()
    def upload(self, file):
        """Take a file, of any size."""
        digest = hashlib.file_digest(file.file, "sha256")
        return {"name": file.filename, "size": file.file.tell(), "sha256": digest.hexdigest()}

    @cherrypy.expose
    @cherrypy.config(**{"response.stream": True})
    def stream(self):
        """Send a response piece by piece; without response.stream CherryPy would collect it first."""
        cherrypy.response.headers["Content-Type"] = "text/plain"
        return (f"line {number}\n" for number in range(1000))

    @cherrypy.expose
    def error(self):
        """An exception, which CherryPy answers with a 500 and puts into the error log."""
        raise RuntimeError("this view fails on purpose")


# The tree is a WSGI application by itself. cherrypy.quickstart() and cherrypy.server are not needed.
cherrypy.tree.mount(Root(), "/")
app = cherrypy.tree
