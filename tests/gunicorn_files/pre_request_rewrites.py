# pre_request changes what the application is to see.
#: get /old/environ/REQUEST_METHOD
#: get /old/environ/HTTP_X_TENANT X-Tenant: other
#: get /old/environ/RAW_URI
#: get /old/environ/PATH_INFO

def pre_request(worker, req):
    if req.path.startswith("/old/"):
        req.path = req.path.removeprefix("/old")
        req.uri = "/new" + req.path
        req.headers = [(name, value) for name, value in req.headers if name != "X-TENANT"]
        req.headers.append(("X-TENANT", "shop"))
    if req.method == "GET":
        req.method = "REPORT"
