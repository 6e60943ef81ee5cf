# The application below a path, by raw_env.
#: get /shop/where
#: get /elsewhere

raw_env = ["SCRIPT_NAME=/shop"]
