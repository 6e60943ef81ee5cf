# TTIN and TTOU: nworkers_changed has the old and the new number.
#: get /
#: signal TTIN
#: wait changed 2 1
#: signal TTOU
#: wait changed 1 2
#: get /

from record import note

workers = 1


def nworkers_changed(server, new_value, old_value):
    note("changed", new_value, old_value, server.num_workers)
