"""A Django project in one file."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    DEBUG=False,
    SECRET_KEY="not a secret",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
)

urlpatterns = [
    path("", lambda request: HttpResponse("secure" if request.is_secure() else "plain", headers={"X-Shop": "django"})),
    path("pid", lambda request: HttpResponse(str(os.getpid()))),
    path("settings", lambda request: HttpResponse(os.environ.get("DJANGO_SETTINGS_MODULE", "none"))),
]
application = get_wsgi_application()
