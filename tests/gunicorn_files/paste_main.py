# PasteDeploy with the main application.
#: app -
#: args --paste shop.ini
#: get /
#: get /environ/PATH_INFO

raw_paste_global_conf = ["region=south"]
