"""A whole Django project in one file, with a little of everything: forms, JSON, uploads, streams, cookies, errors.

wsgiserv -w 4 django_app:application
"""

import hashlib
import json
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_POST, require_safe

settings.configure(
    ALLOWED_HOSTS=["*"],  # for a demonstration; name your hosts in production
    DEBUG=False,
    # The fall-back is for a demonstration too: all workers must share one key.
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "not-a-secret-this-is-an-example"),
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    USE_TZ=True,
    # With DEBUG off, Django mails tracebacks to ADMINS and tells nobody else. This sends them to the standard
    # error, where the server's log is.
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"], "level": "ERROR"},
    },
)


@require_safe
def index(request):
    """Greet."""
    return HttpResponse("Hello from Django\n", content_type="text/plain")


@require_safe
def item(request, number):
    """Show how a part of the path and the query arrive."""
    return JsonResponse({"number": number, "query": request.GET.dict()})


@require_POST
def form(request):
    """Answer with the fields of a form."""
    return JsonResponse(request.POST.dict())


@require_POST
def receive_json(request):
    """Answer with the JSON that was sent."""
    return JsonResponse({"received": json.loads(request.body)})


@require_POST
def upload(request):
    """Take a file, of any size."""
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for data in file.chunks():
        digest.update(data)
    return JsonResponse({"name": file.name, "size": file.size, "sha256": digest.hexdigest()})


@require_safe
def stream(request):
    """Send a response piece by piece, its length unknown when it begins."""
    return StreamingHttpResponse((f"line {number}\n" for number in range(1000)), content_type="text/plain")


@require_safe
def to_index(request):
    """Redirect to the first page."""
    return HttpResponseRedirect("/")


@require_safe
def set_cookies(request):
    """Set two cookies."""
    response = HttpResponse("set\n", content_type="text/plain")
    response.set_cookie("flavour", "chocolate", httponly=True)
    response.set_cookie("size", "large")
    return response


@require_safe
def cookies(request):
    """Show the cookies that came."""
    return JsonResponse(request.COOKIES)


@require_safe
def missing(request):
    """A 404 from within the application."""
    raise Http404


@require_safe
def error(request):
    """An exception, which Django answers with a 500 and logs."""
    raise RuntimeError("this view fails on purpose")


urlpatterns = [
    path("", index),
    path("items/<int:number>", item),
    path("form", form),
    path("json", receive_json),
    path("upload", upload),
    path("stream", stream),
    path("redirect", to_index),
    path("cookies/set", set_cookies),
    path("cookies", cookies),
    path("missing", missing),
    path("error", error),
]

application = get_wsgi_application()
