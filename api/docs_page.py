"""The OpenAPI document for people: Swagger UI, with all that it loads served from here. It asks nothing of the
internet, and no script stands in the page, so that it works under the strict policy it is sent with.

What is tried out there goes to this node, which passes on what needs the leader: a browser would not follow a redirect
to another origin.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from raftq.api.answers import Answer
from raftq.api.call import FORWARD, Call
from raftq.api.problems import Problem

_PACKAGE = "openapi_ui_bundles.swagger_ui"
#: File -> its content type; those of the package, but for START.
ASSETS = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPED = ("X-Content-Type-Options", "nosniff")
_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>raftq: the HTTP API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"><noscript>This page needs JavaScript; the document itself is <a href="openapi.json">openapi.json</a>.
</noscript></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = f"""SwaggerUIBundle({{
  dom_id: "#page",
  url: "openapi.json",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor: (request) => {{
    request.headers["{FORWARD}"] = "proxy";
    return request;
  }},
}});
""".encode()


async def read(_call: Call) -> Answer:
    """GET /docs: Browse this API, and try it out."""
    headers = [("Content-Security-Policy", _POLICY), _TYPED, ("Cache-Control", "no-cache")]
    return Answer(_PAGE, content_type="text/html; charset=utf-8", headers=headers)


async def asset(call: Call) -> Answer:
    """GET /docs/{asset}: Load a part of that page."""
    name = call.parameters[0]
    if name not in ASSETS:
        raise Problem("not-found", f"The page has no such file: it has {', '.join(ASSETS)}.")
    headers = [_TYPED, ("Cache-Control", "max-age=3600")]
    return Answer(_content(name), content_type=ASSETS[name], headers=headers)


@cache
def _content(name: str) -> bytes:
    return _START if name == "start.js" else (files(_PACKAGE) / "vendor" / name).read_bytes()
