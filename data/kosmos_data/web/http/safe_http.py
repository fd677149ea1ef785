"""An HTTP client for addresses that strangers wrote: it connects to public addresses only, and believes no length.

A page may name ``http://169.254.169.254/…`` or a host that resolves to the machine's own network. Checking a name
before the request is not enough, since it may resolve to something else a moment later (DNS rebinding): here the name
is resolved, the addresses are checked, and the connection goes to the checked one. TLS still verifies the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any, Final

from ... import extras

with extras.hint():
    import httpcore
    import httpx

PRIVATE: Final = "private address"
NO_ADDRESS: Final = "host not found"
TOO_LARGE: Final = "too large"
ENCODED: Final = "unknown or broken content encoding"

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TRIED_ADDRESSES = 3


class Refused(Exception):  # noqa: N818 - it names what happened, as BadSample does
    """A request that is not made, or an answer that is not read on.

    Args:
        reason: short, to be counted under.
        detail: for the person who looks into it.
        temporary: whether it may be otherwise the next time.
        status: of the HTTP response, if there was one.
        wait: seconds that the server asks to wait.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        temporary: bool = False,
        status: int | None = None,
        wait: float = 0.0,
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.temporary, self.status, self.wait = reason, detail, temporary, status, wait


def client(user_agent: str, timeout: float, connections: int, allow_private: bool = False) -> httpx.AsyncClient:
    """A client that follows no redirect, uses no proxy and no cookie, and verifies TLS.

    Args:
        user_agent: sent with every request.
        timeout: seconds for connecting, and for each read.
        connections: most at a time.
        allow_private: connect to private and loopback addresses too; for tests against a local server only.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    transport = httpx.AsyncHTTPTransport(trust_env=False, limits=limits)
    # httpx has no argument for it: the same pool as it makes itself, but with our way to connect.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=httpx.create_ssl_context(trust_env=False),
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=5.0,
        network_backend=_CheckedNetwork(allow_private),
    )
    headers = {"User-Agent": user_agent, "Accept-Encoding": "identity", "Accept": "image/*,*/*;q=0.1"}
    times = httpx.Timeout(timeout, connect=min(timeout, 10.0))
    return httpx.AsyncClient(transport=transport, headers=headers, timeout=times, trust_env=False)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet; what is wrapped in an IPv6 address counts too."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(is_public(str(inner)) for inner in wrapped if inner is not None):
            return False
    return ip.is_global and not ip.is_multicast


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Resolve, check, connect to what was checked."""

    def __init__(self, allow_private: bool) -> None:
        self.allow_private = allow_private
        self.network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await resolve(host, port, timeout)
        public = addresses if self.allow_private else [address for address in addresses if is_public(address)]
        if not public:
            raise Refused(PRIVATE, f"{host} is {', '.join(addresses[:_TRIED_ADDRESSES])}")
        *others, last = public[:_TRIED_ADDRESSES]
        for address in others:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self.network.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self.network.connect_tcp(last, port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Any:
        raise Refused(PRIVATE, path)

    async def sleep(self, seconds: float) -> None:
        await self.network.sleep(seconds)


async def resolve(host: str, port: int, timeout: float | None = None) -> list[str]:
    """The IP addresses of a host name, in the order in which the system prefers them.

    Raises:
        Refused: there are none.
    """
    try:
        async with asyncio.timeout(timeout):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise Refused(NO_ADDRESS, f"{host}: {error or 'timed out'}", temporary=True) from error
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


async def read(response: httpx.Response, limit: int) -> bytes:
    """The body, decompressed, of a response that is being streamed.

    Raises:
        Refused: more than ``limit`` bytes, before or after decompression; an encoding that was not asked for.
    """
    declared = response.headers.get("Content-Length", "")
    if re.fullmatch(r"[0-9]+", declared) and int(declared[:20]) > limit:
        raise Refused(TOO_LARGE, f"{declared[:20]} bytes declared, the limit is {limit}")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower() or "identity"
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise Refused(ENCODED, encoding)
    body = bytearray()
    async for block in _plain(response.aiter_raw(), encoding, limit):
        body += block
        if len(body) > limit:
            raise Refused(TOO_LARGE, f"the limit is {limit}")
    return bytes(body)


async def _plain(blocks: AsyncIterator[bytes], encoding: str, limit: int) -> AsyncIterator[bytes]:
    """Decompressed blocks, none of them larger than ``limit`` + 1."""
    if encoding == "identity":
        async for block in blocks:
            yield block
        return
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | (0 if encoding == "deflate" else 16))
    async for block in blocks:
        try:
            yield unpack.decompress(block, limit + 1)
        except zlib.error as error:
            raise Refused(ENCODED, str(error)) from error
    if not unpack.eof:
        raise Refused(ENCODED, f"{encoding} is cut off", temporary=True)
