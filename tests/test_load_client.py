"""The visitor without a browser, whose figures are only worth something if it sees what a browser sees."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import load, soak
from benchmarks.server import Memory, Use, serving
from benchmarks.visitor import Cookies, Line, Visitor
from moeviz.live import wire
from moeviz.snapshot import record_dtype

SLOW = 60.0  # seconds: here nobody is dead because the machine is busy


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOEVIZ_WORKERS", "1")
        with serving() as server:
            yield server
    assert "Traceback" not in server.printed
    assert server.remains == []


async def until(visitor, condition):
    for _ in range(200):
        if condition():
            return
        await visitor.watch(0.25, 4)
    raise AssertionError(f"never came: step {visitor.step}, {visitor.header}, {visitor.errors}, {visitor.dead}")


def label(visitor):
    return visitor.widgets["run_pause"].label


def test_a_visitor_runs_steers_resets_and_reloads(server):
    async def visit():
        visitor = Visitor(server.address, "num_experts=8&u=0.01", patience=SLOW)
        await visitor.open()
        assert visitor.token
        assert label(visitor) == "Run"
        await visitor.press("run_pause")
        assert label(visitor) == "Pause"
        await until(visitor, lambda: visitor.step >= 10)
        assert visitor.header["playing"]
        assert visitor.header["experts"] == 8
        assert visitor.seen.steps == visitor.step + 1
        assert visitor.seen.intervals

        await visitor.move("learning_rate", "0.01")
        await until(visitor, lambda: visitor.marks)
        assert "0.01" in visitor.marks[1]
        assert visitor.header["version"] == 1
        assert visitor.query == "learning_rate=0.01&num_experts=8&u=0.01"
        await visitor.move("learning_rate", "0.003")
        assert visitor.query == "num_experts=8&u=0.01", (
            "what is back at its default leaves the address, as in a browser"
        )

        epoch = visitor.header["epoch"]
        await visitor.press("reset")
        await until(visitor, lambda: visitor.header["epoch"] > epoch and visitor.step == 0)
        assert label(visitor) == "Run"

        before = visitor.socket
        await visitor.reload()
        await until(visitor, lambda: visitor.header["status"] == "ready")
        assert visitor.socket is not before
        assert visitor.header["experts"] == 8, "the address was kept"
        await visitor.close()
        assert visitor.errors == []
        assert visitor.dead == ""

    asyncio.run(visit())


def test_the_server_is_watched_while_it_works(server):
    before = server.use()
    assert server.workers()
    assert server.pid not in server.workers()
    held = server.memory()
    assert held.server_rss > 20
    assert held.workers > 20
    assert server.use().cores_since(before).server >= 0


class StandIn:
    """Answers pulls with what a test gives it: bytes of an answer, or nothing for ever."""

    def __init__(self, answer):
        self.answer, self.asked, self.ends, self.guests = answer, [], [], 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/", self

    async def __aexit__(self, *_):
        self.server.close()
        while len(self.ends) < self.guests:
            await asyncio.sleep(0.01)
        await asyncio.gather(*self.ends)

    async def serve(self, reader, writer):
        self.guests += 1
        try:
            await self.converse(reader, writer)
        finally:
            writer.close()
            self.ends.append(asyncio.create_task(writer.wait_closed()))

    async def converse(self, reader, writer):
        while head := await reader.readline():
            lines = [head]
            while lines[-1].strip():
                lines.append(await reader.readline())
            if head.startswith(b"POST"):
                await reader.readexactly(2)
            self.asked.append(b"".join(lines).decode())
            if self.answer:
                writer.write(self.answer(len(self.asked)))


def http(body, *headers):
    return "\r\n".join(["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", ""]).encode() + body


def increment(*steps, **header):
    rows = np.zeros(len(steps), record_dtype(1, 4))
    rows["step"] = steps
    told = {"epoch": 1, "status": "ready", "message": "", "playing": True, "version": 0, "marks": []}
    return wire.encode(rows, told | header)


async def follower(address, **options):
    """A visitor whose page is there already."""
    visitor = Visitor(address, **options)
    visitor.data = {"base": "/moeviz/live"}
    visitor._follow("token")
    return visitor


def pulls(answer, count=1, **options):
    """A visitor after some pulls from a stand-in, and what it asked."""

    async def visit():
        async with StandIn(answer) as (address, stand_in):
            visitor = await follower(address, **options)
            for _ in range(count):
                await visitor.pull()
            await visitor.line.close()
            return visitor, stand_in.asked

    return asyncio.run(visit())


def test_whom_nobody_answers_is_dead():
    visitor, asked = pulls(None, patience=0.2)
    assert len(asked) == 1
    assert "TimeoutError" in visitor.dead
    assert pulls(lambda _: http(increment(0)), patience=SLOW)[0].dead == ""


def test_a_run_that_plays_but_does_not_grow_is_dead_after_the_visitors_patience():
    now = SimpleNamespace(seconds=0.0)

    def tick(number):
        now.seconds += 2.0
        return http(increment(5) if number == 1 else increment(playing=playing))

    for playing, count, dead in ((True, 4, True), (True, 3, False), (False, 9, False)):
        visitor, _ = pulls(tick, count, patience=5.0, clock=lambda: now.seconds)
        assert bool(visitor.dead) == dead, (playing, count, visitor.dead)


def test_steps_that_come_twice_or_backwards_are_errors():
    assert pulls(lambda number: http(increment(2 * number, 2 * number + 1)), 3)[0].errors == []
    [error] = pulls(lambda _: http(increment(4, 5)), 2)[0].errors
    assert "twice" in error
    [error] = pulls(lambda _: http(increment(5, 4)))[0].errors
    assert "disorder" in error
    anew = [increment(8, 9), increment(0, 1, epoch=2)]
    assert pulls(lambda number: http(anew[number - 1]), 2)[0].errors == [], "a new beginning counts from 0"


def test_what_the_browser_has_is_said_in_the_next_pull():
    truth = {"serial": 3, "told": 99, "identities": []}
    _, asked = pulls(lambda _: http(increment(6, 7, epoch=2, version=4, truth=truth)), 2)
    assert "epoch=-1&version=-1&truth=0&told=-1&numbers=0&after=-1" in asked[0]
    assert "epoch=2&version=4&truth=3&told=99&numbers=0&after=7" in asked[1]


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body, wbits=-15)),
        ("identity", bytes),
    ],
)
def test_encoded_answers_are_read_and_counted_as_they_came(encoding, packed):
    body = packed(increment(0, 1, 2))
    visitor, _ = pulls(lambda _: http(body, f"content-encoding: {encoding}"))
    assert visitor.step == 2
    assert visitor.errors == []
    assert visitor.seen.body_bytes == len(body)
    assert visitor.seen.head_bytes == len(http(body, f"content-encoding: {encoding}")) - len(body)


def test_answers_in_chunks_are_read():
    body = increment(0, 1)
    chunks = b"5\r\n" + body[:5] + b"\r\n" + f"{len(body) - 5:x}\r\n".encode() + body[5:] + b"\r\n0\r\n\r\n"
    visitor, _ = pulls(lambda _: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks, 1)
    assert visitor.step == 1
    assert visitor.errors == []


def test_nonsense_and_refusals_are_errors():
    assert "cannot be read" in pulls(lambda _: http(b"nonsense"))[0].errors[0]
    refusal = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone"
    assert "404: gone" in pulls(lambda _: refusal)[0].errors[0]


def test_cookies_come_back_where_they_belong():
    async def visit():
        answer = http(b"", "set-cookie: seat=12; Path=/moeviz; HttpOnly", "set-cookie: who=me; Path=/")
        async with StandIn(lambda number: answer if number == 1 else http(b"")) as (address, stand_in):
            line = Line(address, cookies := Cookies())
            for path in ("/", "/moeviz/run/x?after=1", "/other"):
                await line.ask(path, SLOW)
            await line.ask("/moeviz/knobs", SLOW, "POST", b"{}")
            await line.close()
            return stand_in.asked, cookies

    asked, cookies = asyncio.run(visit())
    assert "Cookie" not in asked[0]
    assert "seat=12; who=me" in asked[1]
    assert "Cookie: who=me\r\n" in asked[2]
    assert asked[3].startswith("POST")
    assert "seat=12" in asked[3]
    assert "Content-Length: 2" in asked[3]
    cookies.take("seat=; Path=/moeviz; Max-Age=0")
    assert cookies.header("/moeviz/run/x") == "who=me"


def test_a_window_counts_what_came_in_it_and_nothing_before_or_after():
    nothing = SimpleNamespace(use=lambda: Use(time.monotonic(), 0, 0, 0), memory=lambda: Memory(1, 1, 1, 0))
    now = SimpleNamespace(seconds=0.0)

    def answer(number):
        now.seconds += 0.05
        return http(increment(10 * number, 10 * number + 9))

    async def visit():
        async with StandIn(answer) as (address, _):
            visitor = await follower(address, patience=SLOW, clock=lambda: now.seconds)
            await visitor.pull()
            window = await load.measure(nothing, [visitor], rate=20, seconds=0.29)
            await visitor.pull()
            await visitor.line.close()
            return visitor, window

    visitor, window = asyncio.run(visit())
    [seen] = window.seen
    assert seen.answers == 6
    assert seen.steps == 60
    assert len(seen.intervals) == 5
    assert visitor.step == 10 * (1 + 1 + 6 + 1) + 9, "one before, one to begin with, six, one after"
    assert visitor.seen.answers == 1


def samples(*megabytes):
    return [soak.Sample(5.0 * (place + 1), Memory(1, mb / 2, mb / 2, 0)) for place, mb in enumerate(megabytes)]


def test_growth_counts_from_where_memory_has_settled():
    settling = samples(*[100] * 12, *[500] * 48)
    assert all(well for well, _ in soak.memory_checks(settling, 300, 1))
    growing = samples(*[500 + place for place in range(60)])
    assert [well for well, _ in soak.memory_checks(growing, 300, 1)] == [False, True]
    assert not soak.memory_checks(settling[:52], 300, 1)[0][0], "a soak that ended early proves nothing"


def test_histories_are_bounded_by_the_runs_there_are():
    full = [soak.Sample(one.second, Memory(1, 50, 50, 3 * soak.FULL_HISTORY)) for one in samples(*[100] * 60)]
    assert [well for well, _ in soak.memory_checks(full, 300, 3)] == [True, True]
    assert [well for well, _ in soak.memory_checks(full, 300, 2)] == [True, False]
