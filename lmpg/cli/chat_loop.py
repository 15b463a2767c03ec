"""`lmpg chat`: a loop that reads what the user says and prints what the model answers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmpg.cli.asking import settings_for
from lmpg.language.trained.command_settings import ChatSettings
from lmpg.runs.printable import printable
from lmpg.settings.section import UserError

if TYPE_CHECKING:
    from lmpg.language.trained.conversation import Conversation

HELP = (
    "/new forgets the chat, /system TEXT sets the system message (none without TEXT),\n"
    "/special shows special tokens or hides them, /help says this; /exit, Ctrl-D and Ctrl-C leave"
)


def chat(argv: Sequence[str]) -> None:
    """`lmpg chat --flags`: talk with a model until /exit, Ctrl-D or Ctrl-C."""
    settings = settings_for("chat", ChatSettings, argv)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (what is typed can be edited then)
    from lmpg.language.trained.conversation import begun

    loop = _Loop(settings.show_special)
    conversation = begun(settings, loop.tell)
    print(printable(f"{settings.model.path}\n{HELP}"), flush=True)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while loop.turn(conversation):
            pass
    print(flush=True)


class _Loop:
    """special: whether special tokens are shown; then a response is printed when it is whole."""

    def __init__(self, special: bool) -> None:
        self.special = special

    def tell(self, piece: str) -> None:
        """A piece of a response, as it is sampled."""
        if not self.special:
            print(printable(piece), end="", flush=True)

    def turn(self, conversation: Conversation) -> bool:
        """Reads a line and answers it; False when the chat is over."""
        line = input("\n> ").strip()
        if line.startswith("/"):
            return self._command(line, conversation)
        if not line:
            return True
        forgotten = conversation.forgotten
        try:
            response = conversation.answer(line)
        except UserError as error:
            print(printable(f"error: {error}"), flush=True)
            return True
        print(printable(response.shown(True)) if self.special else "", flush=True)
        if not response.ended:
            print("(cut off at --sampling.max-new-tokens)", flush=True)
        if conversation.forgotten > forgotten:
            print("(the context is full: the chat's oldest messages are forgotten)", flush=True)
        return True

    def _command(self, line: str, conversation: Conversation) -> bool:
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/new":
            conversation.forget()
            done = "(the chat is forgotten)"
        elif name == "/system":
            conversation.system = rest.strip() or None
            done = "(the system message is set)" if conversation.system else "(no system message)"
        elif name == "/special":
            self.special = not self.special
            done = f"(special tokens are {'shown' if self.special else 'hidden'})"
        else:
            done = ("" if name == "/help" else f"unknown command {name}\n") + HELP
        print(printable(done), flush=True)
        return True
