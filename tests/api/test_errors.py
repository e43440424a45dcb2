from __future__ import annotations

import asyncio
import gzip

import pytest

from raftq.api.ports import Limits
from tests.api.conftest import Client, Serve

MESSAGES = "/v1/queues/jobs/messages"


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/queues/",
        "/v2/queues",
        "/v1/queues/a/b",
        "/v1/topics/x",
        "/v1/queues/a/messages/1-0-1/x",
        "//",
        "/q",
    ],
)
async def test_unknown_paths_are_404(client: Client, path: str) -> None:
    reply = await client("GET", path)
    expected = 422 if path == "/v1/queues/" else 404
    assert (reply.status, reply.headers["Content-Type"]) == (expected, "application/problem+json")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/queues/jobs", "DELETE, GET, PATCH, PUT"),
        ("GET", "/v1/queues/jobs/lease", "POST"),
        ("DELETE", MESSAGES, "GET, POST"),
        ("PUT", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/q/jobs", "GET, POST"),
    ],
)
async def test_other_methods_are_405_with_allow(client: Client, method: str, path: str, allow: str) -> None:
    reply = await client(method, path)
    assert (reply.status, reply.headers["Allow"]) == (405, allow)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 201),
        ("application/json", 201),
        ("Application/JSON; charset=UTF-8", 201),
        ('application/json;charset="utf-8"', 201),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_content_types(client: Client, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await client("POST", MESSAGES, data=b'{"body":1}', headers=headers)).status == status


async def test_a_compressed_body_is_refused(client: Client) -> None:
    for encoding in ("gzip", "x"):
        data = gzip.compress(b'{"body":1}')
        reply = await client("POST", MESSAGES, data=data, headers={"Content-Encoding": encoding})
        assert reply.status == 415, reply


async def exchange(client: Client, data: bytes) -> bytes:
    """What the node answers to these bytes until it closes, or has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.node.port)
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(client: Client) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n"
    for headers in (b"Content-Length: 9000000\r\n", b"Content-Length: 9000000\r\nExpect: 100-continue\r\n"):
        answer = await exchange(client, head % (MESSAGES.encode(), headers))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in answer


async def test_a_chunked_body_over_the_limit_is_refused_while_it_is_read(serve: Serve) -> None:
    client = await serve(Limits(batch_bytes=1000))
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % MESSAGES.encode()
    answer = await exchange(client, head + b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_does_not_arrive_is_408(serve: Serve) -> None:
    client = await serve(Limits(read_seconds=0.01))
    answer = await exchange(client, b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n" % MESSAGES.encode())
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_expect_is_answered(client: Client) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: %b\r\n\r\n"
    assert (await exchange(client, head % (MESSAGES.encode(), b"100-continue"))) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await exchange(client, head % (MESSAGES.encode(), b"wonders"))).startswith(b"HTTP/1.1 417 ")


async def test_http_1_0_and_keep_alive(client: Client) -> None:
    plain = await exchange(client, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b"Connection: close" in plain
    kept = await exchange(client, b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive" in kept
    closed = await exchange(client, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"Connection: close" in closed


async def test_what_is_no_http_is_400_and_the_node_serves_on(client: Client) -> None:
    for data in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
    ):
        assert (await exchange(client, data))[9:13] == b"400 ", data
    assert (await client("GET", "/healthz")).status == 200


async def test_a_broken_chunk_is_400(client: Client) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" % MESSAGES.encode()
    assert (await exchange(client, head))[9:13] == b"400 "


@pytest.mark.parametrize(
    "head",
    [
        "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked",
        "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked",
        "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: , chunked",
        "POST {} HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked",
    ],
)
async def test_what_two_readers_could_take_for_different_requests_is_refused(client: Client, head: str) -> None:
    """A proxy that heeds one coding and a node that heeds another would disagree where the request ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.node.port)
    inner = f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    writer.write(f"{head.format(MESSAGES)}\r\n\r\n0\r\n\r\n{inner}".encode())
    answered = await reader.read()
    writer.close()
    assert answered.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answered.count(b"HTTP/1.1 ") == 1
    assert b"problems/malformed" in answered


async def test_http_0_9_is_refused(client: Client) -> None:
    assert (await exchange(client, b"GET /healthz\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_bytes_in_a_path_that_are_no_text_are_answered(client: Client) -> None:
    for path in (b"/v1/queues/\xff\xfe", b"/\xff", b"/v1/queues?prefix=\xff", b"/v1/queues/%ff", b"/v1/queues?a=%ff"):
        answer = await exchange(client, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        assert answer[9:12] in (b"400", b"404", b"422"), path


async def test_a_stopping_node_refuses_new_work_and_closes(client: Client) -> None:
    client.node.stopping = True
    reply = await client("POST", MESSAGES, {"body": 1})
    assert (reply.status, reply.json["applied"], reply.headers["Connection"]) == (503, "no", "close")
    assert reply.headers["Retry-After"] == "1"


async def test_a_defect_is_500_logged_and_unknown(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client.shard, "digest", fail)
    reply = await client("GET", "/v1/cluster/digest")
    assert (reply.status, reply.json["applied"]) == (500, "unknown")
    assert (await client("GET", "/healthz")).status == 200
