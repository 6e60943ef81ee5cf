"""``manage.py wsgiserv``."""
