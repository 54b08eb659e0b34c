# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What any web server of the tests needs: routes, a record of the requests, and faults on demand."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.hub_store import HubError


@dataclass
class Request:
    """A request that came in: the status of the answer, 0 if there is none, and how much of its body arrived."""

    method: str
    path: str
    status: int
    size: int


@dataclass
class Fault:
    """What happens to the next requests that match: an error, or a cut after so many bytes of the body."""

    method: str
    path: str
    times: float
    status: int | None = None
    cut_after: int | None = None
    then: Callable[[], None] | None = None

    def takes(self, method: str, path: str) -> bool:
        if self.times < 1 or method != self.method or not re.search(self.path, path):
            return False
        self.times -= 1
        return True


class WebServer:
    """
    A server on the loopback interface, which listens at once, until the process ends.

    `requests` is what was asked; `is_down` cuts every connection; `faults` are looked through for each request.
    """

    def __init__(self, handler: type["RequestHandler"]):
        self.requests, self.faults, self.is_down = [], [], False
        self.lock = threading.Lock()
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"web": self}))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def clear(self) -> None:
        """As new, for the next test."""
        self.requests, self.faults, self.is_down = [], [], False

    def fail(self, method: str, path: str, status: int, times: float = float("inf")) -> None:
        """Answers requests whose path matches a regular expression with a status, and with no JSON."""
        self.faults.append(Fault(method, path, times, status=status))

    def cut(
        self, method: str, path: str, after: int, times: float = float("inf"), then: Callable[[], None] | None = None
    ) -> None:
        """Cuts the connection after so many bytes of the body, and first calls a function, if there is one."""
        self.faults.append(Fault(method, path, times, cut_after=after, then=then))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.takes(method, path)), None)


_ROUTES: list[tuple[str, re.Pattern, Callable]] = []
_PLACES = {
    "kind": r"(?P<kind>model|dataset)s",
    "name": r"(?P<name>[^/]+/[^/]+)",
    "revision": r"(?P<revision>[^/]+)",
    "path": r"(?P<path>.+)",
    "oid": r"(?P<oid>[0-9a-f]{64})",
    "prefix": r"(?P<prefix>datasets/)?",
}


def route(methods: str, template: str) -> Callable:
    """Makes a method of a handler answer some requests; it gets the parts of the path that stand in braces."""

    def register(function: Callable) -> Callable:
        pattern = re.compile(re.sub(r"{(\w+)}", lambda match: _PLACES[match[1]], template))
        _ROUTES.extend((method, pattern, function) for method in methods.split())
        return function

    return register


class RequestHandler(BaseHTTPRequestHandler):
    """Answers a request by the method with its route, unless a fault of the server's comes first."""

    web: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        self.path, self.query = url.path, {key: values[-1] for key, values in parse_qs(url.query).items()}
        # From the start, since a client may be done with a test before the thread of a connection that was cut is.
        self.record = Request(self.command, self.path, status=0, size=0)
        self.web.requests.append(self.record)
        fault = self.web.take_fault(self.command, self.path)
        if self.web.is_down:
            return self._cut()
        if fault is not None and fault.cut_after is not None:
            self._read(fault.cut_after)
            if fault.then is not None:
                fault.then()
            return self._cut()
        self.body = self._read()
        if fault is not None:
            return self._send(fault.status, b"<html>Something went wrong.</html>", {"Content-Type": "text/html"})
        with self.web.lock:
            self._dispatch()

    do_HEAD = do_POST = do_PUT = do_GET

    def _json(self) -> dict:
        return json.loads(self.body)

    def _dispatch(self) -> None:
        try:
            for method, pattern, function in _ROUTES:
                match = pattern.fullmatch(self.path) if method == self.command else None
                if match is not None:
                    return function(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
            raise HubError(404, f"No such page: {self.command} {self.path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            self._send(error.status, {"error": error.message}, headers)

    def _read(self, limit: int | None = None) -> bytes:
        if limit is not None:
            body = self.rfile.read(min(limit, int(self.headers.get("Content-Length") or limit)))
        elif self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.record.size = len(body)
        return body

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the other side was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        self.record.status = status
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
