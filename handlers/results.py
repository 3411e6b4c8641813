"""What a tool returned, as a model can be told it: clean text of limited length, and a note for what is not text."""

from collections.abc import Iterator
from typing import Any

from llama_index.core.base.llms.types import CitableBlock, CitationBlock, TextBlock
from llama_index.core.tools import ToolOutput

from memory.chat_store import clean_text

NOTHING = "(The tool returned nothing.)"
DATA = ("image", "audio", "video", "data")
"""Fields in which blocks have their content, as base64."""
KINDS = ("image_mimetype", "format", "video_mimetype", "document_mimetype")


class TextOutput(ToolOutput):
    """A result as a text that the tool did not give it."""

    left_out: int = 0
    """Characters of the tool's own that are not in it."""

    def __init__(self, output: ToolOutput, text: str, left_out: int) -> None:
        super().__init__(
            tool_name=output.tool_name,
            content=text,
            raw_input=output.raw_input,
            raw_output=output.raw_output,
            is_error=output.is_error,
            exception=output.exception,
        )
        self.left_out = left_out


def for_the_model(output: ToolOutput, *, max_chars: int) -> ToolOutput:
    """The result with nothing but text in it, at most `max_chars` characters of the tool's own.

    Chat completions take no image in a tool's message, and what is not text would make every later prompt that holds
    the turn more expensive, or impossible. So the model, the store and the history get the same text.
    """
    texts = [text for block in output.blocks for text in _texts(block)]
    whole = "\n".join(texts)
    text, left_out = shortened(whole, max_chars)
    text = clean_text(text) if text.strip() else NOTHING
    if text == whole and all(isinstance(block, TextBlock) for block in output.blocks):
        return output
    return TextOutput(output, text, left_out)


def shortened(text: str, max_chars: int) -> tuple[str, int]:
    """The text without its middle if it is too long, and how many characters were left out."""
    left_out = len(text) - max_chars
    if left_out <= 0:
        return text, 0
    head = max_chars // 2
    return f"{text[:head]}\n[{left_out:,} characters left out]\n{text[head + left_out :]}", left_out


def _texts(block: Any) -> Iterator[str]:
    """The text in a block, and a note for what else is in it."""
    if isinstance(block, TextBlock):
        yield block.text
    elif isinstance(block, CitableBlock | CitationBlock):
        yield f"{block.title} ({block.source})"
        for nested in block.nested_blocks:
            yield from _texts(nested)
    else:
        yield f"[{block.block_type} left out{_described(block)}]"


def _described(block: Any) -> str:
    """What is known of a block's content: what kind it is, its address or how large it is."""
    facts = [str(kind) for name in KINDS if (kind := getattr(block, name, None))]
    if url := getattr(block, "url", None):
        facts.append(str(url))
    contents = (getattr(block, name, None) for name in DATA)
    facts += [f"{len(data) * 3 // 4 - data[-2:].count(b'='):,} bytes" for data in contents if isinstance(data, bytes)]
    return f": {', '.join(facts)}" if facts else ""
