"""Old and new code on one table: while a deployment shifts the traffic, and for as long as conversations are kept.

`release_0_1_0.json` holds sessions as that release left them in a table, and what they are. It is never written again:
a version that is new gets a file of its own.
"""

import base64
import json
import tomllib
import zlib
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer

from memory import codec
from memory.turns import Session

OWNER = "jwt:https%3A//login.example.com/:ada"
GOLDEN = json.loads((Path(__file__).parent / "release_0_1_0.json").read_text())
READS_AND_WRITES = {
    "0.1.0": ({1}, 1),
}
"""Which versions of the codec each release reads, and which one it writes, oldest first."""
NEW_IN_WINDOW = {"shortened": 0}
"""What 0.1.0 did not write of a window, and what it is then."""
NEW_IN_STATE: dict[str, Any] = {"waiters": []}
"""What 0.1.0 did not write of a state."""


def by_key(items: list[dict[str, Any]]) -> dict[str, codec.Item]:
    """Items of the file as the codec gets them, by sort key."""
    return {item["sk"]["S"]: {name: plain(value) for name, value in item.items()} for item in items}


def plain(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["B"]) if "B" in value else TypeDeserializer().deserialize(value)


def decoded(items: list[dict[str, Any]]) -> dict[str, Any]:
    """What the items of a session are to this release, as JSON."""
    found = by_key(items)
    turns = [
        codec.decode_turn(item, [found[part]["payload"] for part in codec.part_keys(item)])
        for key, item in found.items()
        if key.startswith(codec.TURN_PREFIX)
    ]
    state = codec.decode_state(found[codec.STATE_KEY])
    read: dict[str, Any] = json.loads(json.dumps({"turns": [*map(asdict, turns)], "state": asdict(state)}, default=str))
    return read


@pytest.mark.parametrize("name", GOLDEN)
def test_what_release_0_1_0_wrote_is_read(name: str) -> None:
    """Every turn and every state is what it was."""
    read = decoded(GOLDEN[name]["items"])
    assert [{**turn, "window": NEW_IN_WINDOW | turn["window"]} for turn in GOLDEN[name]["turns"]] == read["turns"]
    assert read["state"] == NEW_IN_STATE | GOLDEN[name]["state"]


@pytest.mark.parametrize("name", GOLDEN)
def test_version_1_is_written_as_release_0_1_0_wrote_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that reads no other version takes what this one writes: no attribute is new, gone or different."""
    if name == "parts":  # cut small by the release, so that the file stays small
        monkeypatch.setattr(codec, "INLINE_BYTES", 100)
        monkeypatch.setattr(codec, "PART_BYTES", 120)
    found = by_key(GOLDEN[name]["items"])
    for key, item in found.items():
        if key == codec.STATE_KEY:
            assert codec.encode_state(codec.decode_state(item)).items() <= ({"recent": b""} | item).items()
        elif key.startswith(codec.TURN_PREFIX):
            parts = [found[part] for part in codec.part_keys(item)]
            turn = codec.decode_turn(item, [part["payload"] for part in parts])
            session = Session(owner=OWNER, id=codec.session_id(item["pk"]))
            written, written_parts = codec.encode_turn(session, turn)
            assert (_unpacked(written), written_parts) == (_unpacked(item), parts)


def _unpacked(item: dict[str, Any]) -> dict[str, Any]:
    """The item with its payload as it was before zlib, whose releases may pack it in other ways."""
    if item.get("encoding") == "zlib":
        return item | {"payload": zlib.decompress(item["payload"])}
    return item


def test_the_table_of_releases_tells_the_truth_of_this_one() -> None:
    """The newest release in it is this one."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert list(READS_AND_WRITES.items())[-1] == (project["version"], (codec.READS, codec.WRITES))


def test_no_release_writes_what_the_one_before_cannot_read() -> None:
    """Canaries run beside the old code on the same sessions: a version is first read, and written a release later."""
    for (_, (reads_before, _)), (release, (_, writes)) in pairwise(READS_AND_WRITES.items()):
        assert writes in reads_before, release


def test_no_release_forgets_a_version() -> None:
    """What was ever stored can be read, by the release that wrote it and by all after."""
    written: set[int] = set()
    for release, (reads, writes) in READS_AND_WRITES.items():
        written.add(writes)
        assert written <= reads, release
