# TLS by certificate files, with the settings of older examples.
#: tls
#: bind tcp
#: get /where
#: get /away

import ssl

certfile = "server.pem"
keyfile = "server.key"
ssl_version = ssl.PROTOCOL_TLS_SERVER
cert_reqs = ssl.CERT_NONE
ciphers = "ECDHE+AESGCM:ECDHE+CHACHA20"
do_handshake_on_connect = True
suppress_ragged_eofs = True
