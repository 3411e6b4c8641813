"""What a model is told of a tool's result: text, clean, of a limited length."""

import io
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    VideoBlock,
)
from llama_index.core.tools import ToolOutput

from handlers.results import for_the_model, shortened

PNG = b"\x89PNG\r\n\x1a\n" + bytes(34_559)
"""The beginning of an image, so that its kind can be guessed."""


def output(*blocks: Any, **more: Any) -> ToolOutput:
    return ToolOutput(tool_name="draw", blocks=list(blocks), raw_input={}, raw_output=None, **more)


MEDIA = {
    "an image": (ImageBlock(image=PNG), "[image left out: image/png, 34,567 bytes]"),
    "an image at an address": (
        ImageBlock(url="https://example.com/a.png"),
        "[image left out: image/png, https://example.com/a.png]",
    ),
    "an image in a file": (ImageBlock(path=Path(__file__)), "[image left out]"),
    "an open image": (ImageBlock(image=io.BytesIO(PNG)), "[image left out]"),
    "a sound": (AudioBlock(audio=b"RIFF\x00\x01", format="wav"), "[audio left out: wav, 6 bytes]"),
    "a film": (VideoBlock(video=b"12345", video_mimetype="video/mp4"), "[video left out: video/mp4, 5 bytes]"),
    "a document": (
        DocumentBlock(data=b"%PDF-1.4", document_mimetype="application/pdf", title="plan"),
        "[document left out: application/pdf, 8 bytes]",
    ),
    "a mark for a cache": (CachePoint(cache_control=CacheControl(type="ephemeral")), "[cache left out]"),
    "something to cite": (
        CitableBlock(title="Plan", source="plan.pdf", content=[TextBlock(text="Build."), ImageBlock(image=PNG)]),
        "Plan (plan.pdf)\nBuild.\n[image left out: image/png, 34,567 bytes]",
    ),
    "something cited": (
        CitationBlock(cited_content="Build.", source="plan.pdf", title="Plan", additional_location_info={}),
        "Plan (plan.pdf)\nBuild.",
    ),
}


@pytest.mark.parametrize("kind", MEDIA)
def test_what_is_not_text_is_noted_as_left_out(kind: str) -> None:
    """In its place stands what it was: no protocol's message of a tool takes it, and no later prompt pays for it."""
    block, note = MEDIA[kind]
    found = for_the_model(output(TextBlock(text="Here:"), block), max_chars=1000)
    assert [one.block_type for one in found.blocks] == ["text"]
    assert found.content == f"Here:\n{note}"


def test_a_result_that_is_text_stays_as_it_is() -> None:
    """The very object, its texts apart as the tool gave them."""
    given = output(TextBlock(text="one"), TextBlock(text="two"))
    assert for_the_model(given, max_chars=7) is given


@pytest.mark.parametrize("blocks", [[], [TextBlock(text="")], [TextBlock(text=" \n")]])
def test_an_empty_result_says_that_it_is(blocks: list[TextBlock]) -> None:
    """No message to a model is empty: some servers refuse one."""
    assert for_the_model(output(*blocks), max_chars=1000).content == "(The tool returned nothing.)"


def test_a_long_result_loses_its_middle() -> None:
    """As many characters as are allowed stay, of its beginning and its end, and it says how many are gone."""
    found = for_the_model(output(TextBlock(text="a" * 5000), TextBlock(text="b" * 5000)), max_chars=1000)
    assert found.content == "a" * 500 + "\n[9,001 characters left out]\n" + "b" * 500
    assert found.left_out == 9001


def test_what_a_result_says_of_itself_is_kept() -> None:
    """A tool may report an error of its own; raw values are what they were."""
    error = ValueError("a tool's own")
    given = ToolOutput(
        tool_name="draw", content="x" * 200, raw_input={}, raw_output={"a": 1}, is_error=True, exception=error
    )
    found = for_the_model(given, max_chars=100)
    assert (found.is_error, found.exception, found.raw_output) == (True, error, {"a": 1})
    assert given.content == "x" * 200


@pytest.mark.parametrize("length", [99, 100, 101, 250, 1001])
@pytest.mark.parametrize("limit", [100, 101])
def test_nothing_else_is_lost(length: int, limit: int) -> None:
    """What stays and what is said to be gone are all of it."""
    text = "".join(chr(33 + i % 90) for i in range(length))
    found, left_out = shortened(text, limit)
    if length <= limit:
        assert (found, left_out) == (text, 0)
    else:
        head, tail = found.split(f"\n[{left_out:,} characters left out]\n")
        assert text == head + text[len(head) : len(head) + left_out] + tail
        assert len(head) + len(tail) == limit
