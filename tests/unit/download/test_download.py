"""Images are fetched from a server on loopback, politely, safely, and each is accounted for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp.abc import AbstractResolver
from download_server import LOCAL, Handler, png

from mm1_pipeline.config.download import DownloadConfig, FetchLimits
from mm1_pipeline.config.ingest import (
    ImageRules,
    IngestConfig,
    RecordKind,
    SourceConfig,
    SourceFormat,
)
from mm1_pipeline.corpus.download import addresses
from mm1_pipeline.corpus.download.addresses import CheckedResolver, is_public, parse_url
from mm1_pipeline.corpus.download.download import download
from mm1_pipeline.corpus.download.failures import Failed, Failure
from mm1_pipeline.corpus.download.fetch import Fetcher
from mm1_pipeline.corpus.records import read_records
from typed_values import not_none


def make_config(folder: Path, rows: list[tuple], limits: FetchLimits = LOCAL, **more):
    lists = folder / "lists"
    lists.mkdir(exist_ok=True)
    urls, captions = zip(*rows, strict=True)
    table = pa.table({"url": pa.array(urls, pa.string()), "caption": pa.array(captions)})
    pq.write_table(table, lists / "list.parquet")
    output = str(folder / "shards")
    return DownloadConfig(lists=str(lists), output=output, limits=limits, **more)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_row_is_kept_or_rejected_with_its_reason(server: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/"
    expected = {
        "/image/1": None,
        "/unnamed/2": None,
        "/archive": None,
        "/to/image/3": None,
        "/page": "content_type",
        "/fake": "image_undecodable",
        "/cut": "image_truncated",
        "/bomb": "image_too_many_pixels",
        "/large": "too_many_bytes",
        "/endless": "too_many_bytes",
        "/broken": "connection",
        "/packed": "http_protocol",
        "/noai": "opted_out",
        "/nobot": "opted_out",
        "/file": "url_scheme",
        "/loop": "too_many_redirects",
        "/missing": "http_status",
        "/advert.png": "image_url_stop_word",
        closed: "connection",
        "ftp://127.0.0.1/x": "url_scheme",
        "http://user:word@127.0.0.1/x": "url_invalid",
        "http://[::1": "url_invalid",
        "": "url_missing",
        None: "url_missing",
    }
    rows = [
        (f"{server}{url}" if url and url[0] == "/" else url, f"caption {number}")
        for number, url in enumerate(expected)
    ]
    config = make_config(tmp_path, rows, images=ImageRules(url_stop_words=("advert",)))
    report = download(config)
    table = pq.read_table(tmp_path / "shards/00000.parquet").to_pylist()
    assert [(row["url"], row["reason"]) for row in table] == [
        (row[0], reason) for row, reason in zip(rows, expected.values(), strict=True)
    ]
    assert all(row["error_message"] for row in table if row["reason"] and row["url"])
    assert report["read"] == len(rows)
    assert report["kept"] == 4
    assert report["rejected"] == Counter(filter(None, expected.values()))
    assert Handler.requests["/advert.png"] == 0, "refused by its address alone"


def test_a_slow_server_is_left(server: str, tmp_path: Path) -> None:
    rows = [(f"{server}/slow", "")]
    report = download(make_config(tmp_path, rows, replace(LOCAL, total_seconds=0.4)))
    assert report["rejected"] == {"timeout_total": 1}


def test_what_was_fetched_is_what_ingest_reads(server: str, tmp_path: Path) -> None:
    from mm1_pipeline.corpus.ingest import ingest

    animals = ("cats", "dogs", "birds", "horses", "sheep", "foxes", "bears")
    rows = [(f"{server}/image/{n}", f"Two {animals[n]} run over a field") for n in range(7)]
    rows[3] = (f"{server}/missing", "never there")
    report = download(make_config(tmp_path, rows, images_per_shard=3))
    assert (report["read"], report["kept"], report["shards"]) == (7, 6, 3)
    source = SourceConfig(
        kind=RecordKind.CAPTION, format=SourceFormat.IMG2DATASET, path=str(tmp_path / "shards")
    )
    found = ingest(IngestConfig(sources={"web": source}), tmp_path / "records")
    assert (found["totals"]["read"], found["totals"]["kept"]) == (6, 6)
    records = list(read_records(tmp_path / "records", "web"))
    assert [record.images[0].bytes for record in records] == [png(n) for n in range(7) if n != 3]
    assert [record.segments[1].text for record in records] == [
        caption for url, caption in rows if "missing" not in url
    ]
    assert records[0].images[0].url == rows[0][0]


def test_a_killed_shard_is_made_again_and_finished_ones_are_kept(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"{server}/image/{n}", str(n)) for n in range(10)]
    whole = tmp_path / "whole"
    whole.mkdir()
    download(make_config(whole, rows, images_per_shard=4))

    from mm1_pipeline.corpus.download import shards

    original = shards.ShardWriter.add

    class Killed(BaseException):
        pass

    def stop(self: shards.ShardWriter, listed: shards.ListedImage, found: Any) -> None:
        if listed.caption == "6":
            raise Killed
        original(self, listed, found)

    config = make_config(tmp_path, rows, images_per_shard=4)
    monkeypatch.setattr(shards.ShardWriter, "add", stop)
    with pytest.raises(Killed):
        download(config)
    monkeypatch.setattr(shards.ShardWriter, "add", original)
    assert set(digests(tmp_path / "shards")) == {
        "00000.tar",
        "00000.parquet",
        "00000_stats.json",
    }
    (tmp_path / "shards/00001.tar.part").write_bytes(b"left by kill -9")
    Handler.requests.clear()
    report = download(config)
    assert report["read"] == report["kept"] == 10
    assert [Handler.requests[f"/image/{n}"] for n in range(10)] == [0] * 4 + [1] * 6
    assert digests(tmp_path / "shards") == digests(whole / "shards")
    Handler.requests.clear()
    assert download(config) == report
    assert not Handler.requests, "nothing is left to do"
    download(make_config(tmp_path, rows[:3], images_per_shard=4))
    assert len(digests(tmp_path / "shards")) == 3, "shards that the lists lack are gone"


def test_shards_do_not_depend_on_concurrency(server: str, tmp_path: Path) -> None:
    rows = [(f"{server}/image/{n}", str(n)) for n in range(12)]
    found = []
    for concurrency in (1, 8):
        folder = tmp_path / str(concurrency)
        folder.mkdir()
        download(make_config(folder, rows, concurrency=concurrency))
        found.append(digests(folder / "shards"))
    assert found[0] == found[1]
    with tarfile.open(tmp_path / "8/shards/00000.tar") as archive:
        assert archive.getnames()[:3] == ["000000000.png", "000000000.txt", "000000000.json"]
        about = json.load(not_none(archive.extractfile("000000000.json")))
    assert (about["url"], about["width"]) == (rows[0][0], 12)


def test_a_host_is_asked_slowly_and_by_few_at_once(server: str, tmp_path: Path) -> None:
    limits = replace(LOCAL, host_delay_seconds=0.05, connections_per_host=2)
    rows = [(f"{server}/image/{n}", "") for n in range(8)]
    download(make_config(tmp_path, rows, limits, concurrency=8))
    pauses = np.diff(sorted(Handler.starts))
    # The pause is kept where requests start here; what arrives there may bunch a little.
    assert sum(pauses) >= 0.05 * 7 * 0.8
    assert Handler.peak <= 2


def test_passing_failures_are_tried_again(server: str, tmp_path: Path) -> None:
    rows = [(f"{server}/flaky", ""), (f"{server}/missing", "")]
    report = download(make_config(tmp_path, rows, replace(LOCAL, num_retries=1)))
    assert (report["kept"], report["rejected"]) == (1, {"http_status": 1})
    assert (Handler.requests["/flaky"], Handler.requests["/missing"]) == (2, 1)


class FakeNames(AbstractResolver):
    """Answers every name with the next of the given addresses."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        address = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    async def close(self) -> None:
        """Nothing to close."""


def test_private_addresses_are_refused_by_default(server: str, tmp_path: Path) -> None:
    port = server.rpartition(":")[2]
    urls = [
        f"{server}/image/1",
        f"http://localhost:{port}/image/1",
        f"http://[::ffff:127.0.0.1]:{port}/image/1",
        f"http://images.example:{port}/image/1",
        "http://169.254.169.254/latest/meta-data",
        "http://10.1.2.3/x",
    ]
    limits = replace(LOCAL, allow_private_addresses=False)
    config = make_config(tmp_path, [(url, "") for url in urls], limits)
    report = download(config, resolver=FakeNames("127.0.0.1"))
    assert report["rejected"] == {"private_address": len(urls)}
    assert not Handler.requests
    # Spellings of 127.0.0.1 that only the system's resolver understands.
    odd = [(f"http://{host}:{port}/x", "") for host in ("127.1", "2130706433", "0x7f.1")]
    report = download(make_config(tmp_path, odd, limits))
    assert report["kept"] == 0
    assert not Handler.requests


def test_a_redirect_is_checked_like_the_list(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only loopback counts as public here, so that the first hop gets through."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    limits = replace(LOCAL, allow_private_addresses=False)
    rows = [(f"{server}/metadata", ""), (f"{server}/to/image/1", "")]
    report = download(make_config(tmp_path, rows, limits))
    assert (report["kept"], report["rejected"]) == (1, {"private_address": 1})


def test_the_checked_address_is_the_one_that_is_asked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes its answer between check and connection (DNS rebinding) cannot."""
    checked: list[str] = []

    def allow_first(address: str) -> bool:
        checked.append(address)
        return address == "127.0.0.1"

    monkeypatch.setattr(addresses, "is_public", allow_first)
    names = FakeNames("127.0.0.1", "127.0.0.2")
    url = f"http://images.example:{server.rpartition(':')[2]}/image/1"
    limits = replace(LOCAL, allow_private_addresses=False)
    report = download(make_config(tmp_path, [(url, "")], limits), resolver=names)
    assert report["kept"] == 1
    assert (checked, names.asked) == (["127.0.0.1"], 1), "asked once, checked, used"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.5.4", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("192.0.0.192", False),
        ("192.0.0.9", False),
        ("192.88.99.1", False),
        ("198.19.255.1", False),
        ("198.51.100.7", False),
        ("203.0.113.7", False),
        ("240.0.0.1", False),
        ("168.63.129.16", False),
        ("100.100.100.200", False),
        ("8.8.8.8", True),
        ("192.31.196.1", True),
        ("fec0::1", False),
        ("feff::1", False),
        ("3fff::1", False),
        ("3fff:fff::1", False),
        ("5f00::1", False),
        ("100::1", False),
        ("fd00:ec2::254", False),
        ("4000::1", False),
        ("2001:db8::1", False),
        ("2001:2::1", False),
        ("2001:20::1", False),
        ("2002:808:808::1", False),
        ("::8.8.8.8", False),
        ("::ffff:0:8.8.8.8", False),
        ("::ffff:8.8.8.8", True),
        ("::ffff:192.0.0.192", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b::c000:c0", False),
        ("64:ff9b:1::808:808", False),
        ("2606:4700::5efe:a00:1", False),
        ("2606:4700::200:5efe:7f00:1", False),
        ("2606:4700::5efe:808:808", True),
        ("fe80::5efe:808:808", False),
        ("2001:4860:4860::8888", True),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64,AA", Failure.URL_SCHEME),
        ("gopher://example.org/", Failure.URL_SCHEME),
        ("//example.org/x", Failure.URL_SCHEME),
        ("http:///x", Failure.URL_INVALID),
        ("http://example.org:99999/", Failure.URL_INVALID),
        ("http://127.0.0.1/", Failure.PRIVATE_ADDRESS),
    ],
)
def test_addresses_that_are_never_asked(url: str, reason: Failure) -> None:
    with pytest.raises(Failed) as caught:
        parse_url(url, allow_private=False)
    assert caught.value.reason == reason


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_dead_host_is_retired_and_the_others_go_on(server: str, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    rows = [(f"{dead}/{n}", "") for n in range(300)] + [(f"{server}/image/{n}", "") for n in "123"]
    limits = replace(LOCAL, host_failures=3, connections_per_host=1, num_retries=1)
    report = download(make_config(tmp_path, rows, limits, concurrency=2))
    assert report["kept"] == 3
    # Two requests and a retry: the third failure in a row is the last that is asked for.
    assert report["rejected"]["connection"] in (2, 3)
    assert report["rejected"]["host_retired"] == 300 - report["rejected"]["connection"]
    table = pq.read_table(tmp_path / "shards/00000.parquet").to_pylist()
    assert table[299]["error_message"].startswith(dead.removeprefix("http://"))


def test_an_answer_of_any_kind_keeps_a_host_in_use(server: str, tmp_path: Path) -> None:
    urls = ["/broken"] * 6 + ["/missing"] * 3 + ["/image/1"]
    limits = replace(LOCAL, host_failures=2, connections_per_host=1)
    report = download(make_config(tmp_path, [(f"{server}{url}", "") for url in urls], limits))
    assert report["rejected"] == {"connection": 6, "http_status": 3}


def test_a_host_that_is_silent_is_retired_too(server: str, tmp_path: Path) -> None:
    limits = replace(LOCAL, host_failures=2, connections_per_host=1, total_seconds=0.2)
    rows = [(f"{server}/slow", "")] * 9
    report = download(make_config(tmp_path, rows, limits))
    assert report["rejected"] == {"timeout_total": 2, "host_retired": 7}


def test_who_waits_for_a_host_holds_up_no_other(server: str, tmp_path: Path) -> None:
    """Behind a row of images that wait for their host's turn, another host is asked."""
    port = server.rpartition(":")[2]
    limits = replace(LOCAL, connections_per_host=1)
    config = make_config(tmp_path, [("", "")], limits, concurrency=1)

    async def run() -> bytes:
        async with Fetcher(config, FakeNames("127.0.0.1")) as fetcher:
            async with fetcher._hosts.turn("slow.example", "slow.example"):
                url = f"http://slow.example:{port}/image/1"
                waiting = [asyncio.create_task(fetcher.fetch(url)) for _ in range(5)]
                await asyncio.sleep(0)
                other = await fetcher.fetch(f"http://fast.example:{port}/image/2")
                assert not any(task.done() for task in waiting)
            await asyncio.gather(*waiting)
            return other.data

    assert asyncio.run(run()) == png(2)


def test_no_secret_of_an_address_is_shown(server: str, tmp_path: Path, caplog) -> None:
    word = "hunter2"
    rows = [
        (f"http://user:{word}@127.0.0.1/x", ""),
        (f"http://127.0.0.1:{closed_port()}/x?token={word}", ""),
        (f"http://user:{word}@[::1/x", ""),
        (f"ftp://user:{word}@host/x", ""),
    ]
    report = download(make_config(tmp_path, rows))
    table = pq.read_table(tmp_path / "shards/00000.parquet").to_pylist()
    assert report["kept"] == 0
    assert not any(word in (row["error_message"] or "") for row in table), table
    assert word not in caplog.text
    assert word not in json.dumps(report)


def test_one_private_address_among_public_ones_is_enough() -> None:
    class Two(FakeNames):
        async def resolve(self, host: str, port: int = 0, family: Any = None) -> list[Any]:
            return await super().resolve(host, port) + await super().resolve(host, port)

    with pytest.raises(OSError, match=r"leads to the address 10\.0\.0\.1"):
        asyncio.run(CheckedResolver(Two("93.184.216.34", "10.0.0.1")).resolve("a.example"))


def test_wrong_parameters_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"download\.lists: found none"):
        download(DownloadConfig(output=str(tmp_path)))
    config = replace(make_config(tmp_path, [("x", "y")]), url_column="URL")
    with pytest.raises(ValueError, match=r"download\.url_column: found 'URL', but list\.parquet"):
        download(config)
    with pytest.raises(ValueError, match="total_seconds: found 0"):
        FetchLimits(total_seconds=0)
