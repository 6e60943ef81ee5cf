# The root_path of gunicorn is for ASGI applications: WSGI ones see none of it.
#: get /shop/where
#: get /where

root_path = "/shop"
