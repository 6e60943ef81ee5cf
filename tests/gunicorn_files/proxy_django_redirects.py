# Django behind a proxy in another container, SECURE_PROXY_SSL_HEADER set: the page must not be plain.
#: app site_django:application
#: bind tcp
#: from 127.0.0.2
#: get / X-Forwarded-Proto: https

workers = 1
accesslog = "-"
access_log_format = '%({x-forwarded-proto}i)s %({x-forwarded-for}i)s'
