# The application asks in three ways whether it runs under gunicorn.
#: get /looks

appear_as = "gunicorn"
