"""Who may talk to the studio's server.  Any web page can send requests to this machine's ports, so
a loopback address is no protection by itself.

Host      exactly ours, so that a name which an attacker points here (DNS rebinding) is refused
Origin    if there is one, ours: never compared with Host, which the attacker chooses too
frames    none, but the page itself in a page of an origin that was named (a notebook): the frame's
          navigation has a foreign Sec-Fetch-Site, and frame-ancestors says who may
token     256 random bits, in the fragment of the printed address, which no browser sends; the page
          sends them in a header, which no other page can
"""

from __future__ import annotations

import hmac
import json
from typing import Any

TOKEN_HEADER = b"x-backglass-token"
OPEN_METHODS = ("GET", "HEAD")
LARGEST_BODY_BYTES = 64 << 10
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "font-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Around an ASGI app: refuses what does not come from our own page, adds headers to all."""

    def __init__(self, app: Any, port: int, token: str, frames: tuple[str, ...] = ()):
        self.app, self.token, self.framed = app, token.encode(), bool(frames)
        policy = HEADERS["content-security-policy"]
        policy = policy.replace("frame-ancestors 'none'", f"frame-ancestors {' '.join(frames)}")
        self.headers = HEADERS | ({"content-security-policy": policy} if frames else {})
        names = ("127.0.0.1", "localhost", "[::1]")
        self.hosts = {f"{name}:{port}".encode() for name in names}
        if port == 80:  # which browsers leave out
            self.hosts |= {name.encode() for name in names}
        self.origins = {b"http://" + host for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await refuse_websocket(scope, receive, send)
        refused = self.why_not(scope)

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in self.headers.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        if refused is None:
            await self.app(scope, receive, send_guarded)
        else:
            await answer(send_guarded, *refused)

    def why_not(self, scope: Any) -> tuple[int, str] | None:
        """(status, reason) for a request that is refused."""
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value)
        hosts, origins = given.get(b"host", []), given.get(b"origin", [])
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return 403, "The Host of this request is not this server. Open the address it printed."
        if any(origin not in self.origins for origin in origins):
            return 403, "This request comes from another page (Origin), which may not ask here."
        foreign = any(s not in (b"same-origin", b"none") for s in given.get(b"sec-fetch-site", []))
        if foreign and not (self.framed and is_frame(scope, given)):
            return 403, "This request comes from another site. Type or paste the printed address."
        if not is_open(scope) and not self._has_token(given.get(TOKEN_HEADER, [])):
            return 401, "The token is missing or wrong. Open the whole address that was printed."
        if any(not small(n) for n in given.get(b"content-length", [])):
            return 413, f"Nothing here takes a body of more than {LARGEST_BODY_BYTES} bytes."
        return None

    def _has_token(self, given: list[bytes]) -> bool:
        return len(given) == 1 and hmac.compare_digest(given[0], self.token)


def is_frame(scope: Any, given: dict[bytes, list[bytes]]) -> bool:
    """A browser fetching the page, and nothing else, to put it into a frame."""
    wanted = {b"sec-fetch-dest": [b"iframe"], b"sec-fetch-mode": [b"navigate"]}
    page = scope["path"] == "/" and scope["method"] == "GET"
    return page and all(given.get(name) == values for name, values in wanted.items())


def is_open(scope: Any) -> bool:
    """The page itself, which holds nothing secret, needs no token: it is what brings the token."""
    shell = scope["path"] == "/" or scope["path"].startswith("/assets/")
    return shell and scope["method"] in OPEN_METHODS


def small(length: bytes) -> bool:
    return length.isdigit() and len(length) < 10 and int(length) <= LARGEST_BODY_BYTES


async def answer(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse_websocket(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
