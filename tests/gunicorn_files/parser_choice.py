# gunicorn's parser in Python.
#: get /a%20b?x=%C3%A9
#: get /environ/QUERY_STRING?a=b%26c

http_parser = "python"
