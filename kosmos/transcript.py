"""What was said, to look at and to keep: messages as HTML and as JSON, with the boxes of answers drawn."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from .grounding import draw_boxes
from .pictures import as_data_uri, on_white, open_picture, upright
from .segments import WRITTEN, Phrase

Part: TypeAlias = dict[str, Any]


def as_html(messages: Sequence[dict[str, Any]]) -> str:
    """Return messages as HTML that notebooks and saved pages show: who speaks, texts and pictures."""
    rows = []
    for message in with_pictures(messages):
        body = "".join(html_part(part) for part in parts_of(message))
        side = "left" if message["role"] == "assistant" else "right"
        rows.append(f'<div style="text-align:{side};margin:6px 0"><b>{message["role"]}</b><br>{body}</div>')
    return f'<div style="max-width:640px;font-family:sans-serif">{"".join(rows) or "(nothing said yet)"}</div>'


def with_pictures(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages to look at: behind a text with boxes the picture before it, with the boxes drawn in."""
    shown: list[dict[str, Any]] = []
    picture = None
    for message in messages:
        parts: list[Part] = []
        for part in parts_of(message):
            picture = part["image"] if part["type"] == "image" else picture
            parts.append(part)
            if part.get("boxes") and picture is not None:
                parts.append({"type": "image", "image": _drawn(picture, part)})
        shown.append({**message, "content": parts})
    return shown


def _drawn(picture: Any, part: Part) -> Any:
    """The picture with the boxes of a text, drawn once: a page shows it again with every token that comes."""
    key, drawn = repr(part), picture.__dict__.setdefault("with_boxes", {})
    if key not in drawn:
        phrases = [Phrase.from_json(entry) for entry in part["boxes"]]
        drawn[key] = draw_boxes(on_white(upright(picture)), part["text"], phrases)
    return drawn[key]


def parts_of(message: dict[str, Any]) -> list[Part]:
    """Return the parts of a message; a content that is a text is one."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def exported(part: Part) -> Part:
    """Return a part as JSON takes it, a picture as OpenAI's ``image_url``."""
    if part["type"] in WRITTEN:
        return part
    if part["type"] != "image":
        return {"type": part["type"], part["type"]: _plain(part[part["type"]])}
    return {"type": "image_url", "image_url": {"url": as_data_uri(part["image"])}}


def html_part(part: Part) -> str:
    """Return a part as HTML; what a person wrote is escaped."""
    if part["type"] in WRITTEN:
        return html.escape(part["text"])
    if part["type"] != "image":
        return _played(part["type"], part[part["type"]])
    return f'<img style="min-width:96px" src="{as_data_uri(part["image"], largest=256)}"><br>'


def _plain(segment: Any) -> dict[str, Any]:
    """A segment as JSON takes it, the bytes of its files as ``data:`` addresses."""
    content = {each.name: getattr(segment, each.name) for each in fields(segment)}
    return {name: _address(value) if isinstance(value, bytes) else value for name, value in content.items()}


def _played(kind: str, segment: Any) -> str:
    """HTML that plays the files of a segment, shows a picture with its text, or says what it is where it has none."""
    if kind == "fused":
        picture = as_data_uri(open_picture(segment.data), largest=256)
        return f'<img style="min-width:96px" src="{picture}"><br>{html.escape(segment.words)}<br>'
    files = [getattr(segment, name) for name in getattr(segment, "files", ())]
    players = "".join(f'<{kind} controls src="{_address(data)}"></{kind}><br>' for data in files)
    return players or html.escape(str(segment))


def _address(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
