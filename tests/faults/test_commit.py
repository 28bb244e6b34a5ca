"""A kill, a full disk, a failing disk at any file-system call of a commit: nothing torn, nothing announced in vain.

By default at some calls, spread over the whole commit; at every call with `MEDSSL_FAULTS=all`.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from medssl_cli.cache.store import Cache
from tests.environment import ENVIRONMENT, ROOT, give_known_key
from tests.faults.commit_server import ACKNOWLEDGEMENT, commit
from tests.faults.test_syscalls import can_trace
from tests.faults.trace_lint import CALL, findings

CALLS = "openat,write,fsync,rename,link,close,unlink,mkdir,pwrite64,fdatasync,ftruncate"
FAILING = {
    "ENOSPC": "openat,write,pwrite64,fsync,link,mkdir,rename,ftruncate",
    "EDQUOT": "write,pwrite64,mkdir",
    "EIO": "write,fsync,fdatasync,pwrite64,openat,rename,link",
    "EROFS": "openat,mkdir,rename,link,unlink",
    "EACCES": "openat,mkdir,rename,link",
    "ESTALE": "openat,fsync,rename,link",
}
IS_WHOLE = os.environ.get("MEDSSL_FAULTS") == "all"
KILLS, ERRORS = 20, 4

pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is not installed or may not trace here")


class Commits:
    """Commits in children of a server, under a tracer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._said = folder / "said"
        command = [sys.executable, "-m", "tests.faults.commit_server", str(folder / "warm")]
        with self._said.open("wb") as said:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=ENVIRONMENT,
            )

    def _ask(self, line: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()

    def _answer(self) -> int:
        assert self._server.stderr is not None
        return int(self._server.stderr.readline())

    def run(self, root: Path, *options: str) -> tuple[int, bool, str]:
        """One commit; its exit status, whether it announced a success, and the trace."""
        self._ask(str(root))
        process, log = self._answer(), self.folder / "log"
        before = self._said.stat().st_size
        command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={CALLS}", *options, "-p", str(process)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            self._ask("go")
            status = self._answer()
            tracer.communicate()
        return status, self._said.read_bytes()[before:].endswith(ACKNOWLEDGEMENT), log.read_text()

    def close(self) -> None:
        """End the server."""
        self._ask("")
        self._server.communicate()


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commits]:
    server = Commits(tmp_path_factory.mktemp("commits"))
    yield server
    server.close()


def new_cache(root: Path) -> Path:
    """A folder with a known key, so that two caches of the same images are equal."""
    give_known_key(root)
    return root


def content(root: Path) -> dict[str, bytes]:
    files = [path for path in sorted((root / "items").rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(commits: Commits) -> tuple[dict[str, bytes], str]:
    """What a commit leaves when nothing happens, and its trace."""
    root = new_cache(commits.folder / "undisturbed")
    status, is_announced, trace = commits.run(root)
    assert (status, is_announced) == (0, True)
    assert len(content(root)) == 5
    return content(root), trace


def points(trace: str, calls: str, few: int) -> list[tuple[str, int]]:
    """Which calls to disturb, as (name, how many-th of that name): all of them, or a few from the first to the last."""
    counts: Counter[str] = Counter()
    found = []
    for line in trace.splitlines():
        match = CALL.match(line)
        if match and match[1] in calls.split(","):
            counts[match[1]] += 1
            found.append((match[1], counts[match[1]]))
    if IS_WHOLE:
        return found
    return [found[round(index * (len(found) - 1) / (few - 1))] for index in range(few)]


def assert_recovers(root: Path, expected: dict[str, bytes], *, what: str) -> None:
    """What is visible is sound, and the same command again ends as an undisturbed one."""
    if (root / "cache.json").is_file():
        assert set(Cache.open(root).verify()) <= {None}, what
    assert commit(root) == 0, what
    assert content(root) == expected, what
    assert list(Cache.open(root).verify()) == [None], what
    [record] = Cache.open(root).records()
    assert (set(record.labels), set(record.findings)) == ({"seg"}, {"csv"}), what
    leftovers = {path.name for path in root.rglob("*") if path.name.startswith((".tmp-", "writing-", "catalog-is"))}
    assert leftovers == set(), what


def test_a_kill_at_any_call_tears_nothing(commits, undisturbed, tmp_path):
    expected, trace = undisturbed
    chosen = points(trace, CALLS, KILLS)
    num_fired = 0
    for call, number in chosen:
        root = new_cache(tmp_path / f"{call}-{number}")
        status, is_announced, _ = commits.run(root, "-e", f"inject={call}:signal=KILL:when={number}")
        what = f"killed at {call} number {number}"
        if is_announced:
            assert content(root) == expected, what
        assert_recovers(root, expected, what=what)
        num_fired += status == -9
    assert num_fired >= len(chosen) - 1


@pytest.mark.parametrize("error", FAILING)
def test_a_failing_call_is_never_a_success_without_its_files(commits, undisturbed, tmp_path, error):
    expected, trace = undisturbed
    chosen = points(trace, FAILING[error], ERRORS)
    num_fired = 0
    for call, number in chosen:
        root = new_cache(tmp_path / f"{call}-{number}")
        status, is_announced, log = commits.run(root, "-e", f"inject={call}:error={error}:when={number}")
        what = f"{error} at {call} number {number}"
        assert (status, is_announced) in ((0, True), (74, False)), what
        if status == 0:
            assert content(root) == expected, what
            assert len(Cache.open(root).records()) == 1, what
        assert_recovers(root, expected, what=what)
        num_fired += "(INJECTED)" in log
    assert num_fired >= len(chosen) - 1


def test_a_power_cut_at_any_moment_loses_nothing_that_was_announced(undisturbed):
    _, trace = undisturbed

    counts = Counter(match[1] for line in trace.splitlines() if (match := CALL.match(line)))
    assert counts["fsync"] >= 10
    assert counts["link"] + counts["rename"] >= 4
    assert findings(trace, ACKNOWLEDGEMENT.decode().strip()) == []


@pytest.mark.parametrize(
    ("left_out", "what"),
    [
        (r'fsync(4</c/a>) = 0', "/c/a named /c/b before it was on disk"),
        (r'fsync(5</c>) = 0', "announced before the folder of /c/b was on disk"),
    ],
    ids=["file", "folder"],
)  # fmt: skip
def test_the_lint_notices_what_is_not_synced(left_out, what):
    trace = [
        r'7 openat(AT_FDCWD</>, "/c/a", O_WRONLY|O_CREAT, 0600) = 4</c/a>',
        r'7 write(4</c/a>, "x", 1) = 1',
        r"7 fsync(4</c/a>) = 0",
        r'7 rename("/c/a", "/c/b") = 0',
        r"7 fsync(5</c>) = 0",
        r'7 write(1</said>, "STORED\n", 7) = 7',
    ]

    assert findings("\n".join(trace), "STORED") == []
    assert findings("\n".join(line for line in trace if left_out not in line), "STORED") == [what]
