# Narrow limits for an API.
#: get /
#: get /XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX
#: get / X-A: 1 | X-B: 2 | X-C: 3 | X-D: 4 | X-E: 5 | X-F: 6
#: get / X-Long: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx

limit_request_line = 100
limit_request_fields = 6
limit_request_field_size = 100
