"""The chat as a page in a browser: pictures and clips are dropped or pasted, answers streamed, two checkpoints shown.

A visitor's conversation is kept in their session, as the messages of :class:`~kosmos.Conversation`; the models are
shared. What a person or a model writes is shown as text, never as markup.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from .admission import is_loopback, listening
from .conversation import Conversation
from .pictures import on_white, upright
from .transcript import with_pictures

HINT = "Ask about {}: drop, paste or choose one or several, then write a question"
PLAYED = {"audio": ("sounds", ".wav"), "video": ("clips", ".mp4")}  # what a browser plays: its name, a file's suffix
# Gradio's footer, and its button that would publish a picture on the web.
STYLE = "footer, button[aria-label=Share], button[title=Share] {display: none !important}"


class Page:
    """A page about one conversation, or about two with the same questions.

    Args:
        chats: who answers; what was said to them so far is not shown.

    Attributes:
        folder: where pictures and exported files are kept for the browser; it goes when the page does.
    """

    def __init__(self, chats: Sequence[Conversation]) -> None:
        self.chats = list(chats)
        self.directory = tempfile.TemporaryDirectory(prefix="kosmos-chat-")
        self.folder = Path(self.directory.name)
        self.many = len(self.chats) > 1
        self.kinds = [kind for kind in PLAYED if all(kind in chat.processor.readers for chat in self.chats)]
        self.stopped: set[str | None] = set()  # sessions whose answer is not wanted any more

    def build(self) -> gr.Blocks:
        """Lay the page out and say what its buttons do."""
        first = self.chats[0]
        with gr.Blocks(title="Kosmos", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            said = gr.State([[] for _ in self.chats])
            with gr.Row():
                bots = [
                    gr.Chatbot(
                        label=self.name(number),
                        elem_id=f"answers-{number}",
                        render_markdown=False,
                        height=420,
                        buttons=["copy"],
                    )
                    for number in range(len(self.chats))
                ]
            box = gr.MultimodalTextbox(
                elem_id="question",
                placeholder=HINT.format(" or ".join(["pictures", *(PLAYED[kind][0] for kind in self.kinds)])),
                file_count="multiple",
                file_types=["image", *self.kinds],
                sources=["upload"],
                show_label=False,
                autofocus=True,
            )
            if examples := first.processor.example_questions:
                gr.Examples([[{"text": text, "files": []}] for text in examples], [box], label="It was trained on")
            with gr.Row():
                stop = gr.Button("Stop", elem_id="stop", min_width=90)
                again = gr.Button("Regenerate", elem_id="again", min_width=90)
                edit = gr.Button("Edit", elem_id="edit", min_width=90)
                clear = gr.Button("Clear", elem_id="clear", min_width=90)
                export = gr.Button("Export", elem_id="export", min_width=90)
            with gr.Row():
                warmth, most = (first.generation.get(name) for name in ("temperature", "max_new_tokens"))
                temperature = gr.Slider(0, 2, warmth or 0, step=0.1, label="Temperature (0: the likeliest answer)")
                longest = gr.Slider(1, 256, min(256, most or 64), step=1, label="Longest answer, tokens")
            with gr.Accordion("Exact prompt", open=False):
                prompt = gr.Textbox(elem_id="prompt", show_label=False, lines=4, interactive=False)
            file = gr.File(label="The conversation", elem_id="file", visible=False)
            shown = [*bots, said, box, prompt]
            box.submit(self.ask, [box, said, temperature, longest], shown)
            again.click(self.ask_again, [said, temperature, longest], shown)
            stop.click(self.stop)
            edit.click(self.take_back, [said], shown)
            for emptied in (clear.click, *(bot.clear for bot in bots)):
                emptied(self.forget, None, shown)
            export.click(self.export, [said], [file])
        return page

    def name(self, number: int) -> str:
        """What a model is called on the page."""
        return str(self.chats[number].checkpoint or f"model {number + 1}")

    def ask(
        self, value: dict[str, Any], said: list[list], temperature: float, longest: int, request: gr.Request
    ) -> Iterator[list[Any]]:
        """Put the question in the box to every model."""
        try:
            files = [self.taken(Path(file)) for file in value.get("files") or []]
            parts = self.chats[0].question(value.get("text") or "", files)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        yield from self.answers([parts] * len(said), said, temperature, longest, request.session_hash)

    def ask_again(self, said: list[list], temperature: float, longest: int, request: gr.Request) -> Iterator[list[Any]]:
        """Put the last question again."""
        chats = self.resumed(said)
        try:
            parts = [chat.take_back() for chat in chats]
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        yield from self.answers(parts, [chat.messages for chat in chats], temperature, longest, request.session_hash)

    def answers(
        self, parts: list[list], said: list[list], temperature: float, longest: int, session: str | None
    ) -> Iterator[list[Any]]:
        """Stream the answer of one model after the other."""
        chats = self.resumed(said)
        for chat in chats:
            chat.generation |= {"max_new_tokens": int(longest), "do_sample": temperature > 0}
            chat.generation["temperature"] = float(temperature) if temperature > 0 else None
        written = [""] * len(chats)

        def so_far() -> list[Any]:
            """What is shown while answers are written."""
            now = [
                [*chat.messages, {"role": "user", "content": asked}, _answer(text)]
                for chat, asked, text in zip(chats, parts, written, strict=True)
            ]
            return [*self.histories(now), gr.skip(), _locked(), gr.skip()]

        self.stopped.discard(session)
        yield so_far()
        ended: list[list] = []
        for chat, asked in zip(chats, parts, strict=True):
            before = list(chat.messages)
            pieces = chat.stream_parts(asked, forget=True)
            try:
                for piece in pieces if session not in self.stopped else ():
                    written[len(ended)] += piece
                    yield so_far()
                    if session in self.stopped:
                        break
            except (ValueError, OSError) as error:
                gr.Warning(html.escape(str(error)))
                yield [*self.histories(said), said, gr.MultimodalTextbox(interactive=True), gr.skip()]
                return
            finally:
                pieces.close()  # type: ignore[attr-defined]
            kept = chat.messages
            if len(kept) < 2 or kept[-2]["content"] is not asked:  # stopped before anything was written
                kept = [*kept, {"role": "user", "content": asked}, _answer("")]
            ended.append(kept)
            chat.messages = before
        if forgotten := sum(chat.forgotten for chat in chats):
            gr.Info(f"The context is used up: the oldest turns ({forgotten}) were forgotten.")
        yield self.settled(ended)

    def stop(self, request: gr.Request) -> None:
        """End what is being written for this visitor; it stays as far as it was written."""
        self.stopped.add(request.session_hash)

    def settled(self, said: list[list]) -> list[Any]:
        """The page when nothing is being written."""
        return [*self.histories(said), said, _emptied(), self.prompts(self.resumed(said))]

    def take_back(self, said: list[list]) -> list[Any]:
        """Take the last question back into the box."""
        chats = self.resumed(said)
        try:
            parts, *_ = [chat.take_back() for chat in chats]
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        files = [file for part in parts for file in self.files_of(part)]
        rest = self.settled([chat.messages for chat in chats])
        return [*rest[:-2], gr.MultimodalTextbox({"text": text, "files": files}), rest[-1]]

    def forget(self) -> list[Any]:
        """Begin anew."""
        return self.settled([[] for _ in self.chats])

    def export(self, said: list[list]) -> Any:
        """Write the conversation to a file for the browser."""
        written = [chat.export() for chat in self.resumed(said)]
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder, prefix="conversation-", suffix=".json", delete=False, encoding="utf-8"
        ) as file:
            json.dump(written if self.many else written[0], file, ensure_ascii=False, indent=1)
        return gr.File(file.name, visible=True)

    def resumed(self, said: list[list]) -> list[Conversation]:
        """The conversations of a session."""
        return [chat.fork(messages) for chat, messages in zip(self.chats, said, strict=True)]

    def prompts(self, chats: list[Conversation]) -> str:
        """What the models read; once if they read the same."""
        return "\n\n".join(dict.fromkeys(chat.prompt() for chat in chats if chat.messages))

    def histories(self, said: list[list]) -> list[list[dict[str, Any]]]:
        """What the chatbots show: each picture, the text of its turn, and the picture again with an answer's boxes."""
        return [[line for message in with_pictures(messages) for line in self.lines(message)] for messages in said]

    def lines(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One line of a chatbot for each text and each file of a message."""
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if "text" in part:  # a chatbot reads HTML, with render_markdown=False too
                yield {"role": message["role"], "content": html.escape(part["text"], quote=False) or "…"}
            for file in self.files_of(part):
                yield {"role": message["role"], "content": {"path": file}}

    def taken(self, path: Path) -> Any:
        """What a visitor gave, a picture or a clip; a clip's file is kept for the browser, whatever its format is."""
        given = self.chats[0].take(path)
        for data in _files(given):
            shutil.copyfile(path, self.folder / f"{_digest(data)}{path.suffix.lower()}")
        return given

    def files_of(self, part: dict[str, Any]) -> list[str]:
        """The files of a part for the browser: of a picture one, of a text none."""
        given = part.get(part["type"])
        if part["type"] == "image":
            return [self.path_of(given)]
        return [str(self.clip(part["type"], data)) for data in _files(given)]

    def clip(self, kind: str, data: bytes) -> Path:
        """The file of a clip, which came from a visitor, or from the conversation that was there before the page."""
        name = _digest(data)
        path = next(self.folder.glob(f"{name}.*"), self.folder / f"{name}{PLAYED[kind][1]}")
        if not path.exists():
            path.write_bytes(data)
        return path

    def path_of(self, picture: Any) -> str:
        """The file of a picture for the browser, written once."""
        path = getattr(picture, "shown_at", None)
        if path is None or path.parent != self.folder:
            path = picture.shown_at = self.folder / f"{uuid.uuid4().hex}.png"
            on_white(upright(picture)).save(path)
        return str(path)


def _files(given: Any) -> list[bytes]:
    """The bytes of a segment's files; none of a picture, which is one itself."""
    return [getattr(given, name) for name in getattr(given, "files", ())]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text.strip()}]}


def _locked() -> Any:
    return gr.MultimodalTextbox(interactive=False)


def _emptied() -> Any:
    return gr.MultimodalTextbox({"text": "", "files": []}, interactive=True)


def show(chats: Sequence[Conversation], host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> Any:
    """Serve the page until Ctrl-C, or (``wait=False``) beside a notebook, and show it there.

    Args:
        chats: one conversation, or two side by side.
        host: address to listen on; this machine by default.
        port: the first free one from 7860 by default.
        wait: whether to return only when the page is closed.

    Raises:
        ValueError: others could open the page, and no key is set that they must give; or the port is in use.
    """
    key = os.environ.get("KOSMOS_API_KEY") or None
    if key is None and not is_loopback(host):
        raise ValueError(
            f"--host {host} lets others open the page: set the environment variable KOSMOS_API_KEY to the password "
            "that they must give (as the user kosmos), or listen on 127.0.0.1"
        )
    if port is not None:
        listening(host, port).close()  # Gradio's own words name what a caller of ours cannot set
    made = Page(chats)
    page = made.build().queue(default_concurrency_limit=1)
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none from the web
    page.launch(
        server_name=host, server_port=port, theme=theme, css=STYLE, allowed_paths=[str(made.folder)], quiet=not wait,
        max_file_size="20mb", prevent_thread_lock=not wait, share=False, footer_links=[], ssr_mode=False,
        auth=None if key is None else ("kosmos", key),
        _frontend=False,  # gives a page 3 s to answer, and ends the program where a busy machine takes longer
    )  # fmt: skip
    return page
