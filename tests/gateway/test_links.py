"""The hosts' links: calls over a WebSocket, who may open one, and what happens when it breaks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import ClientConnection

from mlcloud.gateway.links import HostError, Link, LinkLost, Links
from mlcloud.gateway.livehost import LiveHost
from mlcloud.kernel import link as kernel_link


class Host:
    """What a host does over its link, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.release = asyncio.Event()
        self.news: asyncio.Queue[Any] = asyncio.Queue()

    async def echo(self, value: Any) -> Any:
        self.asked.append(value)
        return value

    async def fail(self) -> None:
        raise ValueError("no")

    async def wait(self) -> str:
        self.asked.append("wait")
        await self.release.wait()
        return "waited"

    async def events(self, after: int) -> Any:
        self.asked.append(("events", after))
        return await self.news.get()


def methods(host: Host) -> dict[str, kernel_link.Method]:
    return {name: getattr(host, name) for name in ("echo", "fail", "wait", "events")}


@asynccontextmanager
async def gateway() -> AsyncIterator[Links]:
    """A server with nothing but the links."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        links = Links(f"http://127.0.0.1:{listener.getsockname()[1]}")
        app = FastAPI()

        @app.websocket("/v1/links/{name}")
        async def serve(websocket: WebSocket, name: str) -> None:
            await links.serve(websocket, name)

        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield links
        server.should_exit = True
        await serving


@asynccontextmanager
async def linked(links: Links, host: Host) -> AsyncIterator[tuple[Link, ClientConnection]]:
    url, token, link = links.offer()
    connection = await kernel_link.dial(url, token)
    serving = asyncio.create_task(kernel_link.serve(connection, methods(host)))
    yield link, connection
    serving.cancel()
    await asyncio.wait({serving})


async def test_calls_and_their_answers() -> None:
    host = Host()
    async with gateway() as links, linked(links, host) as (link, _):
        value = [1, "two", b"three", {"four": None}]
        assert await link.call("echo", value) == value
        waiting = asyncio.create_task(link.call("wait"))
        assert await link.call("echo", 5) == 5, "one that waits holds nobody up"
        with pytest.raises(HostError, match="ValueError: no"):
            await link.call("fail")
        with pytest.raises(HostError, match="nothing"):
            await link.call("nothing")
        host.release.set()
        assert await waiting == "waited"
        big = b"x" * 5_000_000
        assert await link.call("echo", big) == big


async def test_calls_begin_in_their_order() -> None:
    host = Host()
    async with gateway() as links, linked(links, host) as (link, _):
        await asyncio.gather(*(link.call("echo", number) for number in range(50)))
        assert host.asked == list(range(50))


async def test_a_token_opens_its_link_once() -> None:
    async with gateway() as links:
        url, token, link = links.offer()
        for wrong in ("", "no", token + "x"):
            with pytest.raises(OSError, match="does not take the link"):
                await kernel_link.dial(url, wrong)
        with pytest.raises(OSError, match="does not take the link"):
            await kernel_link.dial(url + "0", token)
        assert not link.open
        await (await kernel_link.dial(url, token)).close()
        with pytest.raises(OSError, match="does not take the link"):
            await kernel_link.dial(url, token)
        url, token, _ = links.offer()
        links.withdraw(url)
        with pytest.raises(OSError, match="does not take the link"):
            await kernel_link.dial(url, token)


async def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await kernel_link.dial(f"ws://127.0.0.1:{port}/v1/links/x", "x")


async def test_a_broken_link_is_told_to_who_waits() -> None:
    host = Host()
    async with gateway() as links, linked(links, host) as (link, connection):
        waiting = asyncio.create_task(link.call("wait"))
        await link.call("echo", 1)
        connection.transport.abort()
        with pytest.raises(LinkLost):
            await waiting
        assert not link.open
        with pytest.raises(LinkLost):
            await link.call("echo", 2)


# --- a host with both ways ------------------------------------------------------------------------


class Ray:
    """A stand-in for Ray's handle of an actor: `handle.method.remote(...)`; it can also dial."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.called: list[str] = []
        self.connections: list[ClientConnection] = []
        self.refuse = ""
        self.serving: list[asyncio.Task[None]] = []

    def __getattr__(self, name: str) -> Any:
        handle = self

        class Method:
            async def remote(self, *arguments: Any) -> Any:
                handle.called.append(name)
                if name == "dial":
                    return await handle._dial(*arguments)
                return await getattr(handle.host, name)(*arguments)

        return Method()

    async def _dial(self, url: str, token: str) -> str:
        if self.refuse:
            return self.refuse
        connection = await kernel_link.dial(url, token)
        self.connections.append(connection)
        work = kernel_link.serve(connection, methods(self.host))
        self.serving.append(asyncio.create_task(work))
        return ""


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


async def test_a_host_is_called_over_its_link_and_over_ray_while_there_is_none() -> None:
    host = Host()
    ray = Ray(host)
    got: list[Any] = []
    async with gateway() as links:
        live = LiveHost(
            ray,
            1,
            {"instance": "i-1"},
            number=0,
            links=links,
            on_events=lambda _, events: got.extend(events),
        )
        await until(lambda: live._link.open)
        assert await live.call("echo", 1) == 1
        assert "echo" not in ray.called

        # the first poll went over Ray; the next ones do not
        host.news.put_nowait([[1, "x", "stream", b""]])
        await until(lambda: got and host.asked[-1] == ("events", 1))
        assert ray.called.count("events") == 1

        # what waits when it breaks is asked again over Ray, and the next link is opened
        waiting = asyncio.create_task(live.call("wait"))
        await until(lambda: "wait" in host.asked)
        ray.connections[-1].transport.abort()
        await until(lambda: ray.called.count("wait") == 1)
        host.release.set()
        assert await waiting == "waited"
        await until(lambda: live._link.open)
        assert len(ray.connections) == 2

        # a link that broke while it waited for news loses none
        await until(lambda: ray.called.count("events") == 2)
        host.news.put_nowait([[1, "x", "stream", b""], [2, "x", "stream", b""]])
        await until(lambda: [event[0] for event in got] == [1, 2])
        assert live.alive
        live.lose("the test ends")
        with pytest.raises(LinkLost):
            await live._link.call("echo", 1)


async def test_a_host_that_cannot_dial_is_called_over_ray() -> None:
    host = Host()
    ray = Ray(host)
    ray.refuse = "no route"
    async with gateway() as links:
        live = LiveHost(
            ray, 1, {"instance": "i-1"}, number=0, links=links, on_events=lambda *_: None
        )
        await until(lambda: "dial" in ray.called)
        assert await live.call("echo", 1) == 1
        assert "echo" in ray.called
        host.news.put_nowait([])
        await until(lambda: ray.called.count("events") == 2)
        assert ray.called.count("dial") == 1, "not at every poll"
        assert not links._offered, "what nobody came for is withdrawn"
        live.lose("the test ends")
