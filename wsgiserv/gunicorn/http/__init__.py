"""Names of gunicorn's HTTP code that configuration files refer to."""
