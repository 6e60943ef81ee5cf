# gunicorn's control socket, for the group.
#: get /
#: mode shop.ctl

control_socket = "shop.ctl"
control_socket_mode = 0o660
control_socket_disable = False
