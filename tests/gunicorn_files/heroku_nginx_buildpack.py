# Heroku with nginx in front in the same dyno: PORT is nginx's, the file binds a socket, a file says that all is ready.
#: env PORT=0
#: bind nginx.socket
#: get /where
#: file app-initialized

bind = "unix:nginx.socket"
workers = 1
preload_app = True


def when_ready(server):
    open("app-initialized", "w").close()
