# PORT is no number (a Kubernetes service of that name), and the file binds a socket.
#: env PORT=tcp://10.0.0.1:8000
#: bind shop.sock
#: get /

bind = ["unix:shop.sock"]
