"""Listening sockets: what is bound, what is said when it cannot be, what is left alone."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.errors import ConfigError
from wsgiserv.net import bind_tcp as module
from wsgiserv.net.listener import Listener, open_listeners


class Bind:
    """The settings that listeners read."""

    def __init__(self, *bind: str, **more: Any) -> None:
        self.bind = bind
        self.backlog = 16
        self.reuse_port = False
        self.umask = 0
        self.user = os.geteuid()
        self.group = os.getegid()
        self.certfile: str | None = None
        self.socket_mode: int | None = None
        self.__dict__.update(more)


@pytest.fixture
def opened() -> Iterator[Any]:
    """Open listeners that are closed at the end."""
    made: list[Listener] = []

    def begin(*bind: str, inherited: Sequence[int] = (), keep: Sequence[Listener] = (), **more: Any) -> list[Listener]:
        found = open_listeners(Bind(*bind, **more), inherited, keep)
        made.extend(found)
        return found

    yield begin
    for each in made:
        each.unlink()
        each.close()


def refusal(*bind: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        open_listeners(Bind(*bind, **more))
    return str(caught.value)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# ---- TCP -----------------------------------------------------------------------------------------------


def test_port_0_gets_a_real_port_and_says_which(opened: Any) -> None:
    (listener,) = opened("127.0.0.1:0")
    port = listener.sock.getsockname()[1]
    assert port > 0
    assert listener.url == str(listener) == f"http://127.0.0.1:{port}"
    assert (listener.server_name, listener.server_port) == ("127.0.0.1", str(port))
    assert listener.spec == "127.0.0.1:0"
    assert not listener.is_unix


def test_it_listens_does_not_block_is_not_inherited_and_hands_on_nodelay(opened: Any) -> None:
    (listener,) = opened("127.0.0.1:0")
    assert not listener.sock.getblocking()
    assert not os.get_inheritable(listener.fileno())
    assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with socket.socket(fileno=os.dup(listener.fileno())) as same:
        with pytest.raises(BlockingIOError):
            same.accept()
        with socket.create_connection(same.getsockname(), 5) as client:
            same.setblocking(True)
            accepted, _ = same.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) or sys.platform != "linux"
                accepted.sendall(b"hello")
                assert client.recv(10) == b"hello"


def test_no_host_is_all_interfaces(opened: Any) -> None:
    (listener,) = opened(":0")
    assert listener.sock.getsockname()[0] == "0.0.0.0"


def test_a_name_is_resolved(opened: Any) -> None:
    (listener,) = opened("localhost:0")
    assert listener.sock.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_ipv6(opened: Any) -> None:
    (listener,) = opened("[::1]:0")
    assert listener.sock.family == socket.AF_INET6
    assert re.fullmatch(r"http://\[::1\]:\d+", listener.url)
    assert listener.server_name == "::1"


def test_tls_shows_in_the_url(opened: Any) -> None:
    (listener,) = opened("127.0.0.1:0", certfile="cert.pem")
    assert listener.url.startswith("https://")


def test_reuse_port_lets_two_servers_share_a_port(opened: Any) -> None:
    (first,) = opened("127.0.0.1:0", reuse_port=True)
    spec = f"127.0.0.1:{first.server_port}"
    (second,) = opened(spec, reuse_port=True)
    assert second.server_port == first.server_port
    assert "in use" in refusal(spec)


def test_several_binds_keep_their_order_and_a_repeated_one_counts_once(opened: Any, tmp_path: Path) -> None:
    first, second = opened("127.0.0.1:0", f"unix:{tmp_path}/s", "127.0.0.1:0")
    assert not first.is_unix
    assert second.is_unix


def test_a_port_in_use_names_the_address_and_the_process(opened: Any) -> None:
    (listener,) = opened("127.0.0.1:0")
    spec = f"127.0.0.1:{listener.server_port}"
    said = refusal(spec)
    assert f"bind = '{spec}'" in said
    assert f"{spec} is in use" in said
    if sys.platform == "linux":
        assert f"pid {os.getpid()} (" in said


def test_a_holder_on_all_interfaces_is_found_too(opened: Any) -> None:
    (listener,) = opened("0.0.0.0:0")
    assert f"pid {os.getpid()} (" in refusal(f"127.0.0.1:{listener.server_port}") or sys.platform != "linux"


def test_a_failure_closes_what_was_opened_before_it(opened: Any, tmp_path: Path) -> None:
    (holder,) = opened("127.0.0.1:0")
    refusal(f"unix:{tmp_path}/s", f"127.0.0.1:{holder.server_port}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("192.0.2.77:8000", "192.0.2.77 is not an address of this host"),
        ("no-such-host.invalid:8000", "the host 'no-such-host.invalid' cannot be resolved"),
        ("8000", "a port alone"),
        ("127.0.0.1:99999", "99999"),
        ("unix:", "a path is missing"),
        ("fd://x", "a descriptor's number is missing"),
    ],
)
def test_addresses_that_cannot_be(bind: str, said: str) -> None:
    message = refusal(bind)
    assert said in message
    assert f"bind = {bind!r}" in message


def test_no_permission_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    # root may bind every port, and the tests may run as root
    monkeypatch.setattr(module, "socket", Denied)
    said = refusal("127.0.0.1:80")
    assert "no permission to listen on 127.0.0.1:80" in said
    assert "below 1024" in said


# ---- Unix ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o777), (0o007, 0o770), (0o177, 0o600)])
def test_a_unix_sockets_mode_comes_from_umask(opened: Any, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(0o022)
    try:
        (listener,) = opened(f"unix:{tmp_path}/s", umask=umask)
        assert os.umask(0o022) == 0o022, "the process's own mask is as before"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    assert listener.url == f"unix:{tmp_path}/s"
    assert listener.is_unix
    assert listener.server_name
    assert listener.server_port


def test_a_relative_path_is_removed_wherever_the_process_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (listener,) = open_listeners(Bind("unix:s"))
    monkeypatch.chdir("/")
    assert (tmp_path / "s").exists()
    listener.unlink()
    listener.close()
    assert not (tmp_path / "s").exists()


def test_a_stale_socket_is_replaced(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    opened(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_socket_is_left_alone_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        said = refusal(f"unix:{path}")
        assert f"the socket {path} is in use" in said
        assert f"pid {os.getpid()} (" in said or sys.platform != "linux"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_live_socket_with_a_full_backlog_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as first:
        live.bind(str(path))
        live.listen(0)
        first.connect(str(path))
        assert "is in use" in refusal(f"unix:{path}")
    assert path.exists()


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        (tmp_path / "precious").write_text("precious")
        path.symlink_to(tmp_path / "precious")
    assert "exists and is not a socket" in refusal(f"unix:{path}")
    assert path.exists()


def test_a_missing_directory_and_a_long_path(tmp_path: Path) -> None:
    said = refusal(f"unix:{tmp_path}/no/s")
    assert f"the directory {tmp_path}/no does not exist" in said
    assert f"mkdir -p {tmp_path}/no" in said
    assert "may be 107 bytes long" in refusal("unix:/tmp/" + "x" * 120)


def test_unlink_spares_a_file_that_is_no_longer_ours(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (listener,) = open_listeners(Bind(f"unix:{path}"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.unlink()
        listener.close()
        assert path.exists()


def test_an_abstract_socket_needs_no_file(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    monkeypatch.chdir(tmp_path)
    name = f"@wsgiserv-test-{os.getpid()}"
    (listener,) = opened(f"unix:{name}")
    assert list(tmp_path.iterdir()) == []
    assert listener.url == f"unix:{name}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name[1:])
    assert f"pid {os.getpid()} (" in refusal(f"unix:{name}")


# ---- taken over and kept -------------------------------------------------------------------------------


def test_a_listening_descriptor_is_taken_over(opened: Any) -> None:
    parent = socket.create_server(("127.0.0.1", 0))
    port = parent.getsockname()[1]
    (listener,) = opened(f"fd://{parent.detach()}")
    assert listener.url == f"http://127.0.0.1:{port}"
    assert not listener.sock.getblocking()
    assert listener.inherited


def test_sockets_of_the_service_manager_replace_bind(opened: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        first, second = opened("127.0.0.1:1", inherited=[tcp.detach(), unix.detach()])
    assert not first.is_unix
    assert second.url == f"unix:{tmp_path}/s"
    second.unlink()
    assert (tmp_path / "s").exists(), "it is not ours to remove"


def test_descriptors_that_are_no_listening_stream_sockets() -> None:
    with socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as datagram, open(os.devnull) as file:
        datagram.bind(("127.0.0.1", 0))
        free = os.dup(0)
        os.close(free)
        for fd, said in (
            (idle.fileno(), "does not listen"),
            (datagram.fileno(), "is not a stream socket"),
            (file.fileno(), "is not a socket"),
            (free, "is not open"),
        ):
            message = refusal(f"fd://{fd}")
            assert f"descriptor {fd} {said}" in message
        # they are the caller's, still
        idle.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        datagram.getsockname()


def test_an_unchanged_bind_is_kept_over_a_reload(opened: Any, tmp_path: Path) -> None:
    before = opened("127.0.0.1:0", f"unix:{tmp_path}/a")
    after = opened(f"unix:{tmp_path}/b", "127.0.0.1:0", keep=before, backlog=99)
    assert after[1] is before[0]
    assert after[0] not in before
    assert before[1].fileno() >= 0, "the caller closes what is no longer wanted"


def test_a_failure_keeps_what_there_was(opened: Any, tmp_path: Path) -> None:
    before = opened("127.0.0.1:0")
    with pytest.raises(ConfigError):
        opened("127.0.0.1:0", f"unix:{tmp_path}/no/s", keep=before)
    assert before[0].fileno() >= 0


# All IPv4 and all IPv6 addresses on one port


@pytest.fixture
def port() -> int:
    """Return a port that is free on all addresses of both kinds."""
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as probe:
        return int(probe.getsockname()[1])


def reaches(port: int, *hosts: str) -> list[bool]:
    found = []
    for host in hosts:
        try:
            socket.create_connection((host, port), 5).close()
            found.append(True)
        except ConnectionRefusedError:
            found.append(False)
    return found


@pytest.mark.parametrize("ipv4", ["0.0.0.0", "", "0", "tcp://0.0.0.0"])
def test_all_addresses_of_both_kinds_on_one_port(opened: Any, port: int, ipv4: str) -> None:
    for specs in ([f"{ipv4}:{port}", f"[::]:{port}"], [f"[::]:{port}", f"{ipv4}:{port}"]):
        listeners = opened(*specs)
        assert reaches(port, "127.0.0.1", "::1") == [True, True]
        for listener in listeners:
            listener.close()


def test_all_ipv6_addresses_alone_stay_as_the_host_has_them(opened: Any, port: int) -> None:
    with open("/proc/sys/net/ipv6/bindv6only") as file:
        alone = file.read().strip() == "1"
    for others in ([], ["0.0.0.0:0"], ["127.0.0.1:0"]):
        listeners = opened(*others, f"[::]:{port}")
        assert reaches(port, "127.0.0.1", "::1") == [not alone, True]
        for listener in listeners:
            listener.close()


def test_an_open_socket_cannot_give_up_ipv4_or_get_it(opened: Any, port: int) -> None:
    """At a reload: it would serve other addresses than the configuration says."""
    both = [f"0.0.0.0:{port}", f"[::]:{port}"]
    alone = opened(both[1])
    with pytest.raises(ConfigError, match=r"open with the IPv4 addresses.*Stop the server and start it anew"):
        opened(*both, keep=alone)
    alone[0].close()
    shared = opened(*both)
    assert opened(*both, keep=shared) == shared
    with pytest.raises(ConfigError, match=r"open without the IPv4 addresses"):
        opened(both[1], keep=shared)


@pytest.mark.parametrize("specs", [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "[::]"), ("[::]", "127.0.0.1")])
def test_two_of_ones_own_in_each_others_way(port: int, specs: tuple[str, str]) -> None:
    with open("/proc/sys/net/ipv6/bindv6only") as file:
        if "[::]" in specs and file.read().strip() == "1":
            pytest.skip("[::] leaves IPv4 to others here")
    first, second = (f"{spec}:{port}" for spec in specs)
    assert f"bind = {second!r}: bind = {first!r} has that address already" in refusal(first, second)
