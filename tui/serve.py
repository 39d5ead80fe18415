"""The same app in a browser on this machine, through textual-serve (``afm --serve``).

It listens on the loopback address alone, below a path that cannot be guessed: other people on this
machine and pages of other sites in the browser do not reach it. Every tab has an app of its own.
"""

import os
import secrets
import shlex
import socket
import sys
from importlib import import_module
from typing import Any

from afm_mlx.errors import InputError, first_line

HOST = "127.0.0.1"
SCRIPT = """<script>
addEventListener("load", () => document.querySelector(".xterm-helper-textarea")?.focus());
addEventListener("beforeunload", event => {
    if (!document.body.classList.contains("-closed")) event.preventDefault();
});
</script>
</body>"""
"""Keys reach the app without a click into the page, and who leaves the page is asked first."""


def command(model: str | None = None, inbox: str | None = None) -> str:
    """The command line of the app that a tab runs, in the place of its shell."""
    words = [sys.executable, "-m", "afm_mlx", "app"]
    words += ["--model", model] if model else []
    words += ["--inbox", inbox] if inbox else []
    return f"exec {shlex.join(words)}"


def free_port(port: int = 0) -> int:
    """``port`` if it is free, any free one for 0.

    Raises:
        InputError: something else listens there, or it is no port.
    """
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: a port that was just closed counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used ({first_line(error)}): name another, or leave --port"
                " out for a free one"
            ) from error
        return int(probe.getsockname()[1])


def serve(run: str, port: int = 0) -> None:
    """Serve the app that the command ``run`` starts, until Ctrl-C; prints the address.

    Raises:
        InputError: textual-serve is not installed, or the port is taken.
    """
    server = make_server(run, free_port(port), secrets.token_urlsafe(16))
    server.serve()


def make_server(run: str, port: int, secret: str) -> Any:
    """A server of textual-serve whose pages lie below ``/SECRET/``.

    Raises:
        InputError: textual-serve is not installed.
    """
    try:
        module: Any = import_module("textual_serve.server")
        web: Any = import_module("aiohttp.web")
    except ImportError as error:
        raise InputError(
            f"the browser needs another package ({first_line(error)}): run"
            " `pip install 'afm-mlx[serve]'`"
        ) from error

    async def only_here(request: Any, response: Any) -> None:
        """Have the page ask nobody else: textual-serve's wants a font of Google's."""
        response.headers["Content-Security-Policy"] = (
            f"default-src 'self' 'unsafe-inline' data:; connect-src 'self' ws://{HOST}:{port}"
        )
        response.headers["Referrer-Policy"] = "no-referrer"

    class Server(module.Server):
        async def _make_app(self) -> Any:
            root = web.Application()
            root.add_subapp(f"/{secret}", await super()._make_app())
            root.on_response_prepare.append(only_here)
            return root

        async def handle_index(self, request: Any) -> Any:
            page = await super().handle_index(request)
            page.text = page.text.replace("</body>", SCRIPT)
            return page

        def initialize_logging(self) -> None:
            """Be silent: requests name the secret."""

        async def on_startup(self, app: Any) -> None:
            """Say nothing yet: it does not listen before its start-up is over."""

        def serve(self, debug: bool = False) -> None:
            self.debug = debug
            web.run_app(self._make_app(), host=self.host, port=self.port, print=self.announce)

        def announce(self, _: str) -> None:
            address = f"http://{HOST}:{port}/{secret}/"
            self.console.print(f"afm is at {address}", soft_wrap=True, highlight=False)
            self.console.print("Ctrl-C ends it.", highlight=False)

    return Server(run, HOST, port, title="afm")


def main(model: str | None, inbox: str | None, port: int = 0) -> int:
    """``afm app --serve``."""
    serve(command(model, inbox), port)
    return 0
