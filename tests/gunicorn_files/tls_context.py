# A hook makes the TLS context: TLS 1.3 alone.
#: tls
#: bind tcp
#: get /where

import ssl

from record import note

certfile = "server.pem"
keyfile = "server.key"
ca_certs = None


def ssl_context(conf, default_ssl_context_factory):
    context = default_ssl_context_factory()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    note("context", conf.certfile, type(context).__name__)
    return context
