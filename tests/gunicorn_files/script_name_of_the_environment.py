# The same by the environment of the service.
#: env SCRIPT_NAME=/shop
#: get /shop/where
#: get /shop
#: get /where

workers = 1
