"""A web server of this machine for files in a folder, which honours ranges and can break off."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.limit])

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is pytest's."""


@contextmanager
def served(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """The server; ``asked`` lists the ranges of its requests, ``limit`` is the number of bytes that an answer ends after."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.asked, server.limit = [], None
        server.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever).start()
        try:
            yield server
        finally:
            server.shutdown()
