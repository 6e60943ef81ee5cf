# A library beside the application, by pythonpath.
#: app lib_shop:app
#: get /lib
#: get /

pythonpath = "lib,missing"
