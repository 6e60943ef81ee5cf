# New files are for the group, too.
#: get /umask

umask = 0o027
