# The application is named in the file, as a call.
#: app -
#: get /

wsgi_app = "shop:make_app('named in the file')"
proc_name = "shop"
default_proc_name = "other"
