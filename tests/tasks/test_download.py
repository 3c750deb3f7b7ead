import hashlib

import pytest

from metarun.errors import DataError
from metarun.tasks.download import fetch
from tests.tasks.served import served

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "file.bin").write_bytes(CONTENT)
    with served(tmp_path / "web") as server:
        yield server


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone_and_is_not_fetched_again(tmp_path, server):
    for _ in range(2):
        fetch(f"{server.url}/file.bin", MD5, tmp_path / "data" / "file.bin")
    assert (tmp_path / "data" / "file.bin").read_bytes() == CONTENT
    assert names(tmp_path / "data") == ["file.bin"]
    assert server.asked == [None]


def test_a_transfer_that_broke_off_is_continued_where_it_ended(tmp_path, server):
    url, path = f"{server.url}/file.bin", tmp_path / "data" / "file.bin"
    server.limit = 3000
    with pytest.raises(DataError, match=r"broke off after 3000 of 10240 bytes\. Try again: what has come is kept"):
        fetch(url, MD5, path)
    assert names(tmp_path / "data") == [".file.bin.partial"]
    server.limit = None
    fetch(url, MD5, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-"]


def test_what_has_come_whole_but_was_not_yet_checked_is_only_checked(tmp_path, server):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".file.bin.partial").write_bytes(CONTENT)
    fetch(f"{server.url}/file.bin", MD5, tmp_path / "data" / "file.bin")
    assert names(tmp_path / "data") == ["file.bin"]


def test_a_partial_file_of_other_content_is_found_out_by_the_checksum_and_deleted(tmp_path, server):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".file.bin.partial").write_bytes(b"other")
    with pytest.raises(DataError, match=rf"\(md5 {MD5}\) to .*what came has md5 .* and was deleted"):
        fetch(f"{server.url}/file.bin", MD5, tmp_path / "data" / "file.bin")
    assert names(tmp_path / "data") == []


def test_an_address_that_leads_nowhere_is_an_error_that_names_it(tmp_path, server):
    with pytest.raises(DataError, match=r"could not download http://127.*nothing.*404.*put the file there yourself"):
        fetch(f"{server.url}/nothing", MD5, tmp_path / "data" / "nothing")
