"""Does the app call anyone, or write anywhere? The real server with a watch in each process, used as a visitor would.

The watch is an audit hook: Python tells it of every connection, every name that is looked up, every program that is
started and every file that is written, before it happens. It sees Python's own doors, not what a library in C might
open by itself.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from moeviz.host.host import _usable_cores
from tests.browsing import button, look, run, serving, to, until

WATCH = '''
"""Python runs this at the start of every process: whatever leaves the machine is written down first."""
import json, os, sys

DOORS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
         "socket.gethostbyaddr", "socket.getnameinfo", "urllib.Request", "subprocess.Popen", "os.system",
         "os.posix_spawn", "moeviz.watching"}

def plain(argument):
    if type(argument).__module__.endswith("socket"):
        return {"family": argument.family.name, "type": argument.type.name}
    return argument if isinstance(argument, (str, int, tuple, list)) else repr(argument)

WRITING = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate"}

def writes(event, arguments):
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str) and path != os.environ["WATCH_LOG"] and bool(
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in WRITING

def watch(event, arguments):
    if event in DOORS or writes(event, arguments):
        caller = sys._getframe(1)
        asked = {"pid": os.getpid(), "event": event, "arguments": [plain(part) for part in arguments],
                 "caller": caller.f_globals.get("__name__", "?") + "." + caller.f_code.co_name}
        line = json.dumps(asked, default=repr) + "\\n"
        log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(log, line.encode())
        os.close(log)

sys.addaudithook(watch)
sys.audit("moeviz.watching", *sys.orig_argv)
'''


@pytest.fixture
def watched(tmp_path):
    """An environment whose Python processes are watched, and what the watch has seen so far."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "seen.jsonl"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"PYTHONPATH": path, "WATCH_LOG": str(log), "TMPDIR": str(tmp_path / "temporary")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch leaves it behind in a process of tests that imported it
    return environment, lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def calls_outside(seen: list[dict]) -> list[dict]:
    """What asked for anything but this machine itself."""
    calls = [asked for asked in seen if asked["event"] not in ("moeviz.watching", *WRITING)]
    return [asked for asked in calls if not _stays_here(asked)]


def written(seen: list[dict]) -> set[str]:
    """Files and folders that were opened for writing, made or moved."""
    paths = [asked["arguments"][0] for asked in seen if asked["event"] in WRITING]
    return {
        os.path.abspath(path) for path in paths if isinstance(path, str)
    }  # a number is a file that was opened before


def _stays_here(asked: dict) -> bool:
    event, arguments = asked["event"], asked["arguments"]
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        door, address = arguments
        if door["family"] == "AF_UNIX":
            return True
        # The greeting's address for others in the network: the system is asked which of this machine's own addresses
        # would face the world. Connecting a datagram socket sends nothing, and this function does nothing else with it.
        greeting = ("socket.connect", "SOCK_DGRAM", "streamlit.net_util.get_internal_ip")
        if (event, door["type"], asked["caller"]) == greeting:
            return True
        return isinstance(address, list) and _is_this_machine(address[0])
    if event.startswith("socket."):
        host = arguments[0]
        return _is_this_machine(host[0] if isinstance(host, list) else host)
    return False


def _is_this_machine(host: str) -> bool:
    """Loopback, or nobody: a server that takes a name to listen on passes "0.0.0.0" or none."""
    if host in ("localhost", "None", "", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def watching(seen: list[dict], what: str) -> set[int]:
    """Processes whose watch is up and whose command line contains some words."""
    return {asked["pid"] for asked in seen if asked["event"] == "moeviz.watching" and what in str(asked["arguments"])}


WRITING = ("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate")

# No packet leaves: each of these fails, or has nothing to do, after it was audited.
CALLS = {
    "socket.connect": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.connect(('192.0.2.1', 9))",
    "socket.connect of datagrams": "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); "
    "s.connect(('192.0.2.1', 9))",
    "socket.sendto": "s = socket.socket(); s.sendto(b'', ('192.0.2.1', 9))",
    "socket.getaddrinfo": "socket.getaddrinfo('example.invalid', 80, flags=socket.AI_NUMERICHOST)",
    "urllib.Request": "urllib.request.OpenerDirector().open('http://example.invalid/')",
    "subprocess.Popen": "subprocess.run([sys.executable, '-c', ''])",
}


@pytest.mark.parametrize("child", [False, True], ids=["server", "worker"])
def test_the_watch_sees_every_kind_of_call_in_a_process_and_in_those_it_spawns(watched, child):
    environment, seen = watched
    calls = "import socket, subprocess, sys, urllib.request\n"
    calls += "\n".join(f"try: {call}\nexcept OSError: pass" for call in CALLS.values())
    if child:
        start = "c = multiprocessing.get_context('spawn').Process(target=exec, args=(code,)); c.start(); c.join()"
        calls = f"import multiprocessing\ncode = {calls!r}\n{start}"
    subprocess.run([sys.executable, "-c", calls], env=environment, check=True, timeout=60)
    outside, spawned = calls_outside(seen()), watching(seen(), "spawn_main")
    assert [asked["event"] for asked in outside] == [kind.split()[0] for kind in CALLS]
    assert [asked["arguments"][0]["type"] for asked in outside[:2]] == ["SOCK_STREAM", "SOCK_DGRAM"]
    assert len(spawned) == child
    assert all((asked["pid"] in spawned) is child for asked in outside)


def test_the_watch_leaves_this_machine_alone(watched):
    environment, seen = watched
    call = "import socket; s = socket.create_server(('localhost', 0)); socket.create_connection(s.getsockname())"
    subprocess.run([sys.executable, "-c", call], env=environment, check=True, timeout=60)
    assert "socket.connect" in {asked["event"] for asked in seen()}
    assert calls_outside(seen()) == []


@pytest.mark.browser
def test_a_whole_visit_asks_nobody_but_this_machine(watched, watch, tmp_path):
    environment, seen = watched
    book = tmp_path / "book.txt"
    book.write_bytes(b"It was a bright cold day in April. " * 100)
    with serving(listen=None, env=environment) as address:  # for everybody in the network, as the README's command does
        page = watch(address, own=True)  # that has nothing in memory
        page.goto(address)
        until(page, "m && m.drawn > 0")
        run(page, 40)
        for name in ("Formulas and code", "How we differ"):
            to(page, name)
            expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        to(page, "Playground")
        until(page, "m.step > 40")
        page.goto(address + "?task=text")
        until(page, "m && m.status === 'ready' && m.agreed")  # else it is drawn anew, perhaps under the hand
        expect(page.locator("[data-test-script-state=notRunning]")).to_be_visible()
        page.get_by_text("More", exact=True).click()
        with page.expect_response("**/upload_file/**"):  # until then the form cannot be sent
            page.locator("input[type=file]").set_input_files(book)
        expect(page.get_by_text("book.txt")).to_be_visible()
        epoch = look(page, "epoch")
        button(page, "Restart with these").click()
        until(page, f"m.epoch > {epoch} && m.status === 'ready'")
        run(page, 30)
        page.close()
    assert len(watching(seen(), "streamlit")) == 1
    assert len(watching(seen(), "spawn_main")) == _usable_cores() + 1, "every worker is watched, and the spare one"
    assert calls_outside(seen()) == []
    folder = str(tmp_path / "temporary" / "moeviz-")
    files = written(seen())
    assert any(path.startswith(folder) and ".weights." in path for path in files), "the watch sees workers"
    # Python tries the temporary folder with a file of eight letters, torch makes a folder there for what we do not use.
    elsewhere = {path for path in files if not path.startswith(folder)} - {os.devnull}
    assert {path for path in elsewhere if os.path.dirname(path) != str(tmp_path / "temporary")} == set()
    assert [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()] == [], "and nothing stays"
