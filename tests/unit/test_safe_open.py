"""Root opens files without following others' links; each case with real links of a real other user."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgiserv.logs.files import _LogFiles
from wsgiserv.safe_open import Owner, UntrustedPath, acting_as_user, find, open_file, place_of

UID, GID = 54321, 54322
OWNER = Owner(UID, GID, groups=(GID,))
APPEND = os.O_WRONLY | os.O_APPEND

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be deceived")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory of root's that every user can reach."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def theirs(place: Path) -> Path:
    directory = place / "theirs"
    directory.mkdir()
    os.chown(directory, UID, GID)
    return directory


@pytest.fixture
def secret(place: Path) -> Iterator[Path]:
    path = place / "secret"
    path.write_text("secret")
    path.chmod(0o600)
    yield path
    status = path.stat()
    assert (path.read_text(), status.st_uid, stat.S_IMODE(status.st_mode)) == ("secret", 0, 0o600)


def write(path: Path, owner: Owner = OWNER) -> None:
    fd = open_file(str(path), APPEND, owner)
    os.write(fd, b"line\n")
    os.close(fd)


def owner_of(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


@as_root
def test_what_is_made_is_the_users_what_was_there_stays(place: Path) -> None:
    (place / "old").touch(0o640)
    for name in ("old", "new"):
        write(place / name)
    assert owner_of(place / "old") == (0, 0)
    assert owner_of(place / "new") == (UID, GID)
    write(place / "masked", OWNER._replace(umask=0o137))
    assert stat.S_IMODE((place / "masked").stat().st_mode) == 0o640
    before = os.umask(0o077)
    try:
        write(place / "wide", OWNER._replace(umask=0o002))  # not the mask of this process
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "wide").stat().st_mode) == 0o664


@as_root
@pytest.mark.parametrize("user", [UID, 0], ids=["workers of the user", "workers of root"])
def test_links_in_anothers_directory(place: Path, theirs: Path, secret: Path, user: int) -> None:
    owner = OWNER if user else Owner(0, 0)
    (theirs / "log").symlink_to(secret)
    (theirs / "way").symlink_to(place)
    (theirs / "dangling").symlink_to(place / "made")
    for path in ("log", "way/secret", "way/made", "dangling", "way/theirs/way/secret"):
        with pytest.raises(UntrustedPath, match="root does not follow it"):
            write(theirs / path, owner)
    assert not (place / "made").exists()
    (theirs / "real").mkdir()
    os.chown(theirs / "real", UID, GID)
    (theirs / "good").symlink_to("real")
    write(theirs / "good" / "log", owner)
    assert owner_of(theirs / "real" / "log")[0] == UID


@as_root
def test_a_file_in_anothers_directory(theirs: Path, secret: Path) -> None:
    (theirs / "log").touch(0o640)
    write(theirs / "log")
    assert owner_of(theirs / "log") == (0, 0), "logrotate's create 640 root"
    os.link(secret, theirs / "hard")
    with pytest.raises(OSError, match="hard link"):
        write(theirs / "hard")
    write(theirs / "new")
    assert owner_of(theirs / "new") == (UID, GID)
    write(theirs / "roots", Owner(0, 0))
    assert owner_of(theirs / "roots") == (0, 0)


@as_root
def test_roots_links(place: Path, theirs: Path) -> None:
    (place / "data").mkdir()
    (place / "log").symlink_to("data")
    write(place / "log" / "a")
    (place / "data" / "b").symlink_to("../data/c")
    write(place / "log" / "b")
    assert owner_of(place / "data" / "c") == (UID, GID)
    (place / "to-theirs").symlink_to(theirs)
    write(place / "to-theirs" / "d")
    assert owner_of(theirs / "d") == (UID, GID)
    (place / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        write(place / "loop")


@as_root
@pytest.mark.parametrize(
    ("mode", "group", "is_followed"),
    [(0o755, 0, True), (0o775, 4711, True), (0o775, GID, False), (0o777, 0, False), (0o1777, 0, True)],
)
def test_directories_of_roots_that_others_can_change(
    place: Path, secret: Path, mode: int, group: int, is_followed: bool
) -> None:
    directory = place / "shared"
    directory.mkdir()
    os.chown(directory, 0, group)
    directory.chmod(mode)
    (place / "target").touch()
    (directory / "log").symlink_to(place / "target")
    if is_followed:
        write(directory / "log")
    else:
        with pytest.raises(UntrustedPath):
            write(directory / "log")
    os.symlink(secret, directory / "theirs")
    os.lchown(directory / "theirs", UID, GID)
    if mode != 0o755:  # where others can make links at all
        with pytest.raises(UntrustedPath):
            write(directory / "theirs")


@as_root
def test_names_of_streams_and_fifos(place: Path, theirs: Path) -> None:
    reader, writer = os.pipe()
    write(Path(f"/proc/self/fd/{writer}"))
    write(Path(f"/dev/fd/{writer}"))
    assert os.read(reader, 100) == b"line\nline\n"
    for directory in (place, theirs):
        os.mkfifo(directory / "fifo", 0o600)
        end = os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        write(directory / "fifo")
        assert os.read(end, 100) == b"line\n"
        os.close(end)
    (theirs / "stream").symlink_to(f"/proc/self/fd/{writer}")
    with acting_as_user(UID, GID):
        pass
    os.close(reader)
    os.close(writer)


@as_root
def test_a_place_is_pinned_only_by_root(place: Path, theirs: Path) -> None:
    for path, expected in ((place / "x", (True, True)), (theirs / "x", (False, True))):
        with place_of(str(path)) as found:
            assert (found.is_trusted, found.is_pinned) == expected
    (theirs / "roots").mkdir()
    with place_of(str(theirs / "roots" / "x")) as found:
        assert (found.is_trusted, found.is_pinned) == (True, False)
    (theirs / "x").symlink_to("/etc/passwd")
    with place_of(str(theirs / "x")) as found:
        assert stat.S_ISLNK(found.lstat().st_mode)
        found.unlink()
    assert Path("/etc/passwd").exists()


@as_root
def test_no_descriptor_is_left(place: Path, theirs: Path, secret: Path) -> None:
    (theirs / "log").symlink_to(secret)
    before = len(os.listdir("/proc/self/fd"))
    for path in (place / "a", theirs / "b", theirs / "log", place / "no" / "c", secret / "d"):
        for call in (lambda path: os.close(open_file(path, APPEND, OWNER)), lambda path: find(path).close()):
            try:
                call(str(path))
            except OSError:
                pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_anybody_else_opens_plainly(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("made")
    write(tmp_path / "link", Owner(os.geteuid(), os.getegid(), 0o077))
    assert (tmp_path / "made").read_text() == "line\n"


def test_the_mailbox_gives_each_child_the_files(tmp_path: Path) -> None:
    """Whoever looks gets them, as often as there are children; a later post replaces the earlier one."""
    files = _LogFiles()
    path = tmp_path / "access.log"
    owner = Owner(os.geteuid(), os.getegid())
    files.begin()
    files.open(str(path), owner)
    assert files.latest(str(path)) is None
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        path.rename(tmp_path / f"access.log.{number}")
        files.refresh({})
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                files.close_in_child()
                fd = files.latest(str(path))
                assert fd is not None
                os.write(fd, b"line\n")
                os._exit(0 if files.latest(str(tmp_path / "other")) is None else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert path.read_text() == "line\n" * 3
    assert len(os.listdir("/proc/self/fd")) == before
    assert files._mailbox is not None
    for sock in files._mailbox:
        sock.close()


@pytest.mark.parametrize("data", [b"", b"/x", b"/x\0/y", b"\xff", b"\0" * 60000])
def test_garbage_in_the_mailbox_is_nothing(tmp_path: Path, data: bytes) -> None:
    files = _LogFiles()
    files.begin()
    assert files._mailbox is not None
    files._mailbox[1].send(data)
    files._master = 0
    assert files.latest("/x") is None
    for sock in files._mailbox:
        sock.close()
