"""Jars: only listed ones, only with the right sum, and without network once they are there."""

import hashlib
import shutil
from pathlib import Path

import pytest

from pipeline.local import jars


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own with the real jars, and no way to the network."""
    real = jars.kafka_jars()
    folder = tmp_path / "tallystream" / "kafka"
    folder.mkdir(parents=True)
    for jar in real:
        shutil.copyfile(jar, folder / jar.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(jars, "RETRY_WAITS_S", (0.01, 0.02))
    return folder


def test_cached_jars_need_no_network(cache: Path) -> None:
    """Every jar of the list, from the cache, Kafka's among them."""
    found = jars.kafka_jars()
    assert {jar.parent for jar in found} == {cache}
    assert "kafka_2.13-4.3.1.jar" in {jar.name for jar in found}
    assert len(found) == len(jars.read_sums(jars.KAFKA_SUMS))


def test_a_jar_with_a_wrong_sum_is_not_used(cache: Path) -> None:
    """The error names the file, both sums and what to do."""
    bad = cache / "kafka-clients-4.3.1.jar"
    expected = jars.read_sums(jars.KAFKA_SUMS)[bad.name]
    with bad.open("ab") as file:
        file.write(b"x")
    with pytest.raises(jars.JarError) as caught:
        jars.kafka_jars()
    message = str(caught.value)
    assert str(bad) in message
    assert expected in message
    assert "rm -r" in message
    assert hashlib.sha256(bad.read_bytes()).hexdigest() in message


def test_without_network_it_tries_again_and_says_so(cache: Path) -> None:
    """A missing jar and no network: retries, then an error that names the remedy."""
    (cache / "kafka-clients-4.3.1.jar").unlink()
    heard: list[str] = []
    with pytest.raises(jars.JarError, match="Check the network"):
        jars.kafka_jars(heard.append)
    assert [("did not answer" in line) for line in heard] == [False, True, True]
