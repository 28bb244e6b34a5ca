"""A PACS that fails, lies or attacks: what is handed out is complete, what is missing has a code, nothing is lost.

Cuts are at random bytes with a fixed seed.
"""

import logging
import os
import random
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from medssl_cli.base.errors import Exit, InterruptedCleanlyError, MedsslError, StorageError, UsageError
from medssl_cli.base.signals import StopRequest
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.formats.dicomweb import Credentials, Pacs, PacsLimits, PacsQuery, Patience
from medssl_cli.ingest.retrieve import DownloadFolder, RetrievedSeries, retrieve_all
from tests.dicom_factory import ct_series, edit
from tests.fake_pacs import Answer, FakePacs, Fault, multipart

QUERY = PacsQuery("CT", date(2020, 1, 1), date(2020, 12, 31))
HURRY = Patience(first_wait_s=0.001, max_wait_s=0.01, deadline_s=20.0, read_timeout_s=5.0)
CANARY = "zqcanary"
ROOT_UID = "1.2.826.0.1.3680043.8.498"


class Clinic:
    """Series on disk, and what the client makes of them.

    Args:
        folder: For files and the folder of downloads.
        num_series: Of four slices each.
        num_studies: Over which they are spread evenly.
    """

    def __init__(self, folder: Path, *, num_series: int = 1, num_studies: int | None = None, slices: int = 4) -> None:
        self.files: list[Path] = []
        self.uids = [f"{ROOT_UID}.7.{number}" for number in range(num_series)]
        self.studies = [f"{ROOT_UID}.8.{number % (num_studies or num_series)}" for number in range(num_series)]
        for number, (study, series) in enumerate(zip(self.studies, self.uids, strict=True)):
            positions = [number + 5 * index for index in range(slices)]
            files = ct_series(folder / f"{number}", positions_mm=positions, series_uid=series, study_uid=study)
            for file in files:
                edit(file, StudyDate="20200615")
            self.files += files
        self.downloads = DownloadFolder(folder / "spool", Pseudonyms(b"k" * 32))
        self.stop = StopRequest()
        self.held: dict[str, int] = {}

    def retrieve(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        ca_bundle: Path | None = None,
        limits: PacsLimits | None = None,
        patience: Patience = HURRY,
        settle_s: float = 0.0,
    ) -> Iterator[RetrievedSeries]:
        """`retrieve_all` in a hurry."""
        pacs = Pacs(
            url, credentials, ca_bundle, patience=patience, limits=limits, is_stopped=lambda: self.stop.is_set,
            jitter=random.Random(0),
        )  # fmt: skip
        yield from retrieve_all(
            pacs,
            QUERY,
            self.downloads,
            is_held=lambda key, number: self.held.get(key, 0) >= number,
            stop=self.stop,
            settle_s=settle_s,
            max_spooled=1000,
        )
        pacs.close()

    def contents(self, results: list[RetrievedSeries]) -> list[bytes]:
        """Bytes of all files of retrieved series, which are exactly what lies in their folders; sorted."""
        for result in results:
            if result.folder:
                assert sorted(result.folder.iterdir()) == list(result.files)
        return sorted(file.read_bytes() for result in results for file in result.files)

    @property
    def truth(self) -> list[bytes]:
        """Bytes of all files that the PACS has, sorted."""
        return sorted(file.read_bytes() for file in self.files)


def status(number: int, **headers: str) -> Fault:
    """Answer with a status instead; underscores in names of headers are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: Answer(number, "text/plain", CANARY.encode(), named)


def cut(at: int) -> Fault:
    """Reset the connection after some bytes of the body."""
    return lambda answer: replace(answer, cut_at=at)


def say(body: bytes, kind: str = "text/html", **changes: int) -> Fault:
    """Answer with something else."""
    return lambda answer: Answer(200, kind, body, **changes)


def codes(results: list[RetrievedSeries]) -> list[str]:
    return [result.failure.code if result.failure else result.state for result in results]


def test_everything_arrives_byte_for_byte_with_get_requests_only(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=3, num_studies=2)
    with FakePacs(clinic.files) as pacs:
        results = list(clinic.retrieve(pacs.url))

    assert codes(results) == ["retrieved"] * 3
    assert clinic.contents(results) == clinic.truth
    assert {method for method, _ in pacs.requests} == {"GET"}
    assert len(pacs.retrievals()) == 3


def test_the_spool_is_private_and_its_names_say_nothing(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        (result,) = clinic.retrieve(pacs.url)

    assert result.folder is not None
    assert [stat.S_IMODE(path.stat().st_mode) for path in (clinic.downloads.root, result.folder)] == [0o700, 0o700]
    assert {stat.S_IMODE(file.stat().st_mode) for file in result.files} == {0o600}
    assert not any(uid in str(file) for file in result.files for uid in (ROOT_UID, clinic.uids[0]))
    clinic.downloads.discard(result)
    assert not list(clinic.downloads.root.iterdir())


def test_a_connection_that_is_cut_anywhere_costs_nothing(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    length = len(multipart([file.read_bytes() for file in clinic.files]))
    generator = random.Random(0)
    for _ in range(50):
        with FakePacs(clinic.files) as pacs:
            pacs.retrieval_faults = [cut(generator.randrange(length)), None, cut(generator.randrange(length // 4))]
            results = list(clinic.retrieve(pacs.url))
        assert codes(results) == ["retrieved"]
        assert clinic.contents(results) == clinic.truth
        clinic.downloads.discard(results[0])


def test_what_arrived_before_a_break_down_is_not_retrieved_again(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=3)
    third = clinic.files[2].read_bytes()
    after_two = multipart([file.read_bytes() for file in clinic.files]).index(third)
    with FakePacs(clinic.files) as pacs:
        pacs.retrieval_faults = [cut(after_two + 10), *[status(503)] * 100]
        with pytest.raises(InterruptedCleanlyError, match="E_PACS_BUSY: 3 of 3 series are left") as caught:
            list(clinic.retrieve(pacs.url))
        assert caught.value.exit_code == Exit.INTERRUPTED == 75
        pacs.retrieval_faults.clear()
        pacs.requests.clear()
        results = list(clinic.retrieve(pacs.url))

    assert clinic.contents(results) == clinic.truth
    first = f"studies/{clinic.studies[0]}/series/{clinic.uids[0]}"
    assert pacs.retrievals()[:2] == [f"{first}/instances/{clinic.uids[0]}.{number}" for number in (3, 4)]
    assert len(pacs.retrievals()) == 2 + 2


def test_one_series_that_always_fails_does_not_keep_others_back(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=3)
    results = []
    with FakePacs(clinic.files) as pacs:
        pacs.retrieval_faults = [None, *[status(504)] * HURRY.tries]
        with pytest.raises(InterruptedCleanlyError, match="E_PACS_BUSY: 1 of 3"):
            results.extend(clinic.retrieve(pacs.url))

    assert len(clinic.contents(results)) == 2 * 4


@pytest.mark.parametrize("number", [408, 429, 502, 503, 504])
def test_a_busy_pacs_is_asked_again_up_to_four_times(tmp_path: Path, number: int) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        pacs.faults = [status(number, Retry_After="0")] * 4
        assert codes(list(clinic.retrieve(pacs.url))) == ["retrieved"]
        pacs.faults = [status(number)] * 5
        with pytest.raises(InterruptedCleanlyError, match="E_PACS_BUSY"):
            list(clinic.retrieve(pacs.url))


@pytest.mark.parametrize(
    "when",
    [lambda: "86400", lambda: format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)],
    ids=["seconds", "date"],
)
def test_a_pacs_that_asks_for_a_longer_rest_than_the_deadline_gets_it(tmp_path: Path, when: Callable[[], str]) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        pacs.faults = [status(503, Retry_After=when())]
        with pytest.raises(InterruptedCleanlyError, match="E_PACS_BUSY: the PACS asks to wait for 86"):
            list(clinic.retrieve(pacs.url))
    assert len(pacs.requests) == 1


def test_a_drip_of_bytes_ends_at_the_deadline(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    patience = replace(HURRY, deadline_s=0.3, read_timeout_s=0.1)
    with FakePacs(clinic.files) as pacs:
        pacs.retrieval_faults = [say(b"", "multipart/related; boundary=x", claimed_length=10)] * 100
        with pytest.raises(InterruptedCleanlyError, match="E_PACS_BUSY"):
            list(clinic.retrieve(pacs.url, patience=patience))


def test_pages_of_seven_with_repetitions_lose_and_double_nothing(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=16, num_studies=2, slices=1)
    clinic.files += ct_series(
        tmp_path / "long", positions_mm=range(23), series_uid=f"{ROOT_UID}.7.99", study_uid=clinic.studies[0]
    )
    with FakePacs(clinic.files, page_size=7, repeats=2) as pacs:
        results = list(clinic.retrieve(pacs.url))

    assert codes(results) == ["retrieved"] * 17
    assert clinic.contents(results) == clinic.truth


def test_a_server_that_does_not_turn_pages_is_not_believed(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=3)
    with FakePacs(clinic.files) as pacs:
        pacs.ignores_offset = True
        with pytest.raises(StorageError, match="E_PACS: the PACS repeats"):
            list(clinic.retrieve(pacs.url, limits=PacsLimits(page=2)))


def test_fewer_instances_listed_than_counted_are_an_incomplete_series(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        pacs.counts[clinic.uids[0]] = 7
        (result,) = clinic.retrieve(pacs.url)

    assert result.failure is not None
    assert str(result.failure) == "E_INCOMPLETE_RETRIEVE: 4 of 7 instances are listed by the PACS"


def test_a_partial_answer_is_completed_one_by_one(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    body = multipart([file.read_bytes() for file in clinic.files[:3]])
    with FakePacs(clinic.files) as pacs:
        pacs.retrieval_faults = [lambda answer: replace(answer, status=206, body=body)]
        results = list(clinic.retrieve(pacs.url))

    assert clinic.contents(results) == clinic.truth
    assert pacs.retrievals()[1:] == [
        f"studies/{clinic.studies[0]}/series/{clinic.uids[0]}/instances/{clinic.uids[0]}.4"
    ]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(status(404), id="404"),
        pytest.param(status(410), id="410"),
        pytest.param(status(500), id="500"),
        pytest.param(say(b"<html>log in</html>"), id="log-in page"),
        pytest.param(say(b"", "application/dicom"), id="no multipart"),
        pytest.param(say(multipart([]), "multipart/related; boundary=b0undary"), id="no parts"),
        pytest.param(say(multipart([b"x"]), "multipart/related; boundary=other"), id="wrong boundary"),
        pytest.param(say(multipart([b"x"]), "multipart/related"), id="no boundary"),
    ],
)
def test_what_never_arrives_is_an_incomplete_series_that_can_be_resumed(tmp_path: Path, fault: Fault) -> None:
    clinic = Clinic(tmp_path, num_series=2)
    with FakePacs(clinic.files) as pacs:
        two = multipart([file.read_bytes() for file in clinic.files[:2]])
        pacs.retrieval_faults = [lambda answer: replace(answer, body=two), fault]
        first, second = clinic.retrieve(pacs.url)
        assert str(first.failure) == "E_INCOMPLETE_RETRIEVE: 2 of 4 instances arrived"
        assert second.state == "retrieved"
        pacs.requests.clear()
        results = list(clinic.retrieve(pacs.url))

    assert clinic.contents(results) == clinic.truth
    assert len(pacs.retrievals()) == 2


@pytest.mark.parametrize("is_alone", [False, True], ids=["whole series", "one by one"])
def test_an_instance_of_another_series_stops_its_whole_study(tmp_path: Path, is_alone: bool) -> None:
    clinic = Clinic(tmp_path, num_series=3, num_studies=1)
    other = Clinic(tmp_path / "other", num_series=4)
    clinic.files += other.files[-4:]
    swapped = multipart([clinic.files[0].read_bytes(), clinic.files[4].read_bytes()])
    with FakePacs(clinic.files) as pacs:
        pacs.retrieval_faults = [status(404) if is_alone else None, None]
        pacs.retrieval_faults[-1 if is_alone else 0] = lambda answer: replace(answer, body=swapped)
        results = list(clinic.retrieve(pacs.url))

    assert codes(results) == ["E_UID_MISMATCH"] * 3 + ["retrieved"]
    assert [path.name for path in clinic.downloads.root.iterdir()] == [results[-1].key]


def test_the_same_series_under_another_study_is_a_mismatch(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        edit(clinic.files[2], StudyInstanceUID="1.2.3")
        body = multipart([file.read_bytes() for file in clinic.files])
        pacs.retrieval_faults = [lambda answer: replace(answer, body=body)]
        assert codes(list(clinic.retrieve(pacs.url))) == ["E_UID_MISMATCH"]


@pytest.mark.parametrize("name", ["../../../zqescape", "..", "/etc/zqescape", "a\0b", "1..2", ""], ids=repr)
def test_names_of_the_server_reach_neither_paths_nor_addresses(tmp_path: Path, name: str) -> None:
    clinic = Clinic(tmp_path / "clinic", num_series=2, num_studies=2)
    before = set(tmp_path.rglob("*"))
    with FakePacs(clinic.files) as pacs:
        instances = pacs.studies[clinic.studies[0]][clinic.uids[0]]
        instances[name] = instances.popitem()[1]
        pacs.studies[clinic.studies[1]][name or ".."] = pacs.studies[clinic.studies[1]].pop(clinic.uids[1])
        results = list(clinic.retrieve(pacs.url))

    assert codes(results) == ["E_VALUE_INVALID"] * 2
    assert set(tmp_path.rglob("*")) - before <= {clinic.downloads.root}
    assert not any("zqescape" in path or ".." in path for _, path in pacs.requests)


@pytest.mark.parametrize(
    ("limits", "length"),
    [
        (PacsLimits(), 2**40),
        (PacsLimits(series_bytes=3000), None),
        (PacsLimits(instance_bytes=500), None),
        (PacsLimits(instances=3), None),
    ],
    ids=["claims 1 TB", "series", "instance", "number of instances"],
)
def test_more_than_the_limit_is_refused(tmp_path: Path, limits: PacsLimits, length: int | None) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        pacs.retrieval_faults = [lambda answer: replace(answer, claimed_length=length)]
        assert codes(list(clinic.retrieve(pacs.url, limits=limits))) == ["E_TOO_BIG"]


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        pytest.param(status(401), UsageError, "E_PACS_DENIED", id="401"),
        pytest.param(status(403), UsageError, "E_PACS_DENIED", id="403"),
        pytest.param(status(404), StorageError, "E_PACS", id="404"),
        pytest.param(status(500), StorageError, "E_PACS", id="500"),
        pytest.param(status(302, Location="http://127.0.0.1:9/"), StorageError, "E_PACS", id="sent elsewhere"),
        pytest.param(say(b"<html>log in</html>"), StorageError, "E_PACS", id="log-in page"),
        pytest.param(say(b"[1]", "application/json"), StorageError, "E_PACS", id="list of numbers"),
        pytest.param(say(b"[]", "application/json", claimed_length=2**40), StorageError, "E_PACS", id="1 TB of JSON"),
        pytest.param(say(b"[" * 10**6, "application/json"), InterruptedCleanlyError, "E_PACS_BUSY", id="deep JSON"),
        pytest.param(say(b'[{"', "application/json"), InterruptedCleanlyError, "E_PACS_BUSY", id="half of a list"),
        pytest.param(cut(1), InterruptedCleanlyError, "E_PACS_BUSY", id="cut"),
    ],
)
def test_a_search_that_fails_has_a_code(tmp_path: Path, fault: Fault, error: type[MedsslError], code: str) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        pacs.faults = [fault] * 5
        with pytest.raises(error, match=f"{code}:") as caught:
            list(clinic.retrieve(pacs.url))
    assert CANARY not in str(caught.value)
    assert not clinic.downloads.root.exists()


def test_a_pacs_that_is_not_there_is_not_asked_twice(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        url = pacs.url
    with pytest.raises(StorageError, match="E_PACS: the PACS cannot be reached"):
        list(clinic.retrieve(url))
    with pytest.raises(StorageError, match="E_PACS: the PACS cannot be reached"):
        list(clinic.retrieve("dicomweb+http://no-such-host.invalid/dicom-web"))


def test_credentials_are_sent_and_appear_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    clinic = Clinic(tmp_path, num_series=2)
    faults: list[Callable[[], list[Fault | None]]] = [
        list,
        lambda: [status(401)],
        lambda: [status(302, Location="http://127.0.0.1:9/")],
        lambda: [status(503, Retry_After=CANARY)] * 5,
        lambda: [cut(3)] * 5,
        lambda: [say(b"<html>")],
        lambda: [lambda answer: replace(answer, headers={"Warning": f'299 x "{CANARY}"'})],
    ]
    said = []
    for credentials in (Credentials(token=CANARY), Credentials(user="u", password=CANARY)):
        for make in faults:
            with FakePacs(clinic.files) as pacs:
                pacs.faults = make()
                try:
                    said += [repr(result) for result in clinic.retrieve(pacs.url, credentials=credentials)]
                except MedsslError as error:
                    said += [str(error), repr(error), error.hint, repr(error.__cause__), repr(error.__context__)]
                clinic.downloads.clear()
            assert pacs.authorizations == {f"Bearer {CANARY}" if credentials.token else "Basic dTp6cWNhbmFyeQ=="}
    captured = capfd.readouterr()
    everything = "\n".join([*said, captured.out, captured.err, caplog.text])
    assert "E_PACS_DENIED" in everything
    for secret in (CANARY, "dTp6cWNhbmFyeQ", "Zqname", ROOT_UID):
        assert secret not in everything


def test_a_file_with_other_credentials_in_the_home_folder_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login u password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        assert codes(list(clinic.retrieve(pacs.url))) == ["retrieved"]
    assert pacs.authorizations == {""}


def test_certificates_are_verified(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=pacs", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files, context=context) as pacs:
        with pytest.raises(StorageError, match="E_PACS: no trusted TLS connection"):
            list(clinic.retrieve(pacs.url, credentials=Credentials(token=CANARY)))
        assert not pacs.requests
        assert codes(list(clinic.retrieve(pacs.url, ca_bundle=certificate))) == ["retrieved"]
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        list(clinic.retrieve(pacs.url, ca_bundle=tmp_path / "missing.pem"))


def test_a_series_that_is_held_completely_is_not_retrieved(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=2)
    with FakePacs(clinic.files) as pacs:
        first, _ = clinic.retrieve(pacs.url)
        clinic.held[first.key] = 4
        pacs.requests.clear()
        assert codes(list(clinic.retrieve(pacs.url))) == ["held", "retrieved"]
        assert not any(clinic.uids[0] in path for _, path in pacs.requests)
        clinic.held[first.key] = 3
        assert codes(list(clinic.retrieve(pacs.url))) == ["retrieved", "retrieved"]


def test_a_series_that_grows_while_it_settles_is_taken_whole(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files[:3]) as pacs:

        def grow(answer: Answer) -> None:
            pacs.add(clinic.files[3])

        pacs.retrieval_faults = [grow]
        results = list(clinic.retrieve(pacs.url, settle_s=0.05))

    assert clinic.contents(results) == clinic.truth


def test_instances_that_the_pacs_deleted_are_not_handed_out(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    with FakePacs(clinic.files) as pacs:
        list(clinic.retrieve(pacs.url))
        del pacs.studies[clinic.studies[0]][clinic.uids[0]][f"{clinic.uids[0]}.4"]
        clinic.files.pop()
        results = list(clinic.retrieve(pacs.url))

    assert clinic.contents(results) == clinic.truth


def test_a_stop_request_ends_the_retrieval_and_keeps_what_arrived(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=3)
    with FakePacs(clinic.files) as pacs:

        def stop(answer: Answer) -> None:
            clinic.stop.signal_number = 15

        pacs.retrieval_faults = [None, stop]
        assert len(list(clinic.retrieve(pacs.url))) == 1
        clinic.stop = StopRequest()
        results = list(clinic.retrieve(pacs.url))
    assert clinic.contents(results) == clinic.truth


def test_a_caller_who_discards_nothing_is_stopped(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=3, slices=1)
    with FakePacs(clinic.files) as pacs:
        client = Pacs(pacs.url, patience=HURRY)
        options = {"is_held": lambda key, number: False, "stop": clinic.stop, "settle_s": 0, "max_spooled": 2}
        series = retrieve_all(client, QUERY, clinic.downloads, **options)
        first = next(series)
        next(series)
        clinic.downloads.discard(first)
        next(series)
        with pytest.raises(StopIteration):
            next(series)
        again = retrieve_all(client, QUERY, clinic.downloads, **options)
        with pytest.raises(AssertionError, match="never discarded"):
            next(again)
        client.close()


def test_conditions_that_a_server_ignores_are_checked_here(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, num_series=2)
    for file in clinic.files[4:]:
        edit(file, StudyDate="20191231")
    with FakePacs(clinic.files) as pacs:
        pacs.ignores_conditions = True
        results = list(clinic.retrieve(pacs.url))
    assert clinic.contents(results) == sorted(file.read_bytes() for file in clinic.files[:4])


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs a full disk: root on Linux")
def test_a_full_disk_is_not_the_fault_of_the_pacs(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path / "clinic")
    clinic.downloads.root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=4", "x", clinic.downloads.root], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with FakePacs(clinic.files) as pacs, pytest.raises(StorageError, match="E_IO"):
            list(clinic.retrieve(pacs.url))
    finally:
        subprocess.run(["umount", clinic.downloads.root], check=True)
