# Limits switched off, as for long signed addresses.
#: get /

limit_request_line = 0
limit_request_fields = 32768
limit_request_field_size = 0
