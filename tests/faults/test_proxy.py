"""The proxy does to connections what it says, and nothing else."""

import socket
import threading
from collections.abc import Iterator

import pytest
from proxy import Proxy


class _Echo:
    """A server that answers each line with the same line, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.heard = threading.Condition()
        self._stopping = False
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            peer, _ = self._socket.accept()
            if self._stopping:
                peer.close()
                return
            self._peers.append(peer)
            thread = threading.Thread(target=self._answer, args=(peer,))
            self._threads.append(thread)
            thread.start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as lines:
            try:
                for line in lines:
                    with self.heard:
                        self.got.append(line)
                        self.heard.notify_all()
                    peer.sendall(line)
            except OSError:
                return

    def until_heard(self, line: bytes) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: line in self.got, 20)

    def stop(self) -> None:
        self._stopping = True
        socket.create_connection(self.address).close()
        for thread in self._threads:
            thread.join(20)
        self._socket.close()


@pytest.fixture
def echo() -> Iterator[_Echo]:
    server = _Echo()
    yield server
    server.stop()


@pytest.fixture
def proxy(echo: _Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as between:
        yield between


def _connect(proxy: Proxy, timeout_s: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)


def _asked(peer: socket.socket, line: bytes) -> bytes:
    peer.sendall(line)
    found = b""
    while not found.endswith(b"\n"):
        piece = peer.recv(1 << 16)
        if not piece:
            raise ConnectionResetError
        found += piece
    return found


def test_bytes_pass_unchanged(proxy: Proxy) -> None:
    """Large ones in pieces, both ways."""
    with _connect(proxy) as peer:
        line = b"x" * 300_000 + b"\n"
        sender = threading.Thread(target=peer.sendall, args=(line,))
        sender.start()
        found = b""
        while len(found) < len(line):
            found += peer.recv(1 << 16)
        sender.join()
        assert found == line


def test_a_cut_resets_what_is_open_and_what_comes_until_it_heals(proxy: Proxy) -> None:
    with _connect(proxy) as peer:
        assert _asked(peer, b"one\n") == b"one\n"
        proxy.cut()
        with pytest.raises(ConnectionError):
            _asked(peer, b"two\n")
    with pytest.raises(ConnectionError), _connect(proxy) as peer:
        _asked(peer, b"three\n")
    proxy.heal()
    with _connect(proxy) as peer:
        assert _asked(peer, b"four\n") == b"four\n"


def test_refusing_lets_open_connections_go_on(proxy: Proxy) -> None:
    with _connect(proxy) as peer:
        assert _asked(peer, b"one\n") == b"one\n"
        proxy.refuse()
        with pytest.raises(ConnectionError), _connect(proxy) as other:
            _asked(other, b"two\n")
        assert _asked(peer, b"three\n") == b"three\n"


def test_half_open_takes_everything_and_gives_nothing(proxy: Proxy, echo: _Echo) -> None:
    """Old connections and new ones hang; after it healed the old ones are reset, since their streams have holes."""
    with _connect(proxy) as old:
        assert _asked(old, b"one\n") == b"one\n"
        proxy.half_open()
        with _connect(proxy, timeout_s=0.2) as peer, pytest.raises(TimeoutError):
            _asked(peer, b"two\n")
        old.settimeout(0.2)
        with pytest.raises(TimeoutError):
            _asked(old, b"three\n")
        old.settimeout(20)
        proxy.heal()
        with pytest.raises(ConnectionError):
            _asked(old, b"four\n")
    assert echo.got == [b"one\n"]
    with _connect(proxy) as peer:
        assert _asked(peer, b"five\n") == b"five\n"


def test_one_direction_can_be_dropped(proxy: Proxy, echo: _Echo) -> None:
    """The server hears everything, the client nothing."""
    proxy.drop("down")
    with _connect(proxy, timeout_s=0.2) as peer:
        with pytest.raises(TimeoutError):
            _asked(peer, b"one\n")
        echo.until_heard(b"one\n")


def test_answers_are_swallowed_after_the_request_was_passed_on(proxy: Proxy, echo: _Echo) -> None:
    """Only to requests with the mark in them, wherever pieces end; only as many as asked for."""
    proxy.swallow(1, match=b"INSERT")
    with _connect(proxy) as peer:
        assert _asked(peer, b"SELECT\n") == b"SELECT\n"
        peer.sendall(b"an INS")
        with pytest.raises(ConnectionError):
            _asked(peer, b"ERT\n")
    echo.until_heard(b"an INSERT\n")
    assert proxy.swallowed == 1
    with _connect(proxy) as peer:
        assert _asked(peer, b"INSERT again\n") == b"INSERT again\n"


def test_a_delay_holds_pieces_back_and_keeps_their_order(proxy: Proxy) -> None:
    proxy.delay(up_s=0.05, down_s=0.05)
    with _connect(proxy) as peer:
        assert [_asked(peer, b"%d\n" % i) for i in range(5)] == [b"%d\n" % i for i in range(5)]


def test_a_server_that_is_away_looks_like_a_reset(echo: _Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()
    with Proxy(address) as proxy, pytest.raises(ConnectionError), _connect(proxy) as peer:
        _asked(peer, b"one\n")
