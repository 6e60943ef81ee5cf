# The uwsgi protocol behind nginx's uwsgi_pass, from anybody on the socket.
#: uwsgi /where?x=1

protocol = "uwsgi"
uwsgi_allow_ips = "*"
workers = 1
