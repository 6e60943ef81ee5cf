# A security check raises in on_starting: nothing is served.
#: ends
#: distinct
#: log the key is readable by all

def on_starting(server):
    raise RuntimeError("the key is readable by all")
