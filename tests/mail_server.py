"""A mail server on 127.0.0.1 for tests: speaks enough SMTP, keeps what it takes, refuses what it is told to refuse."""

from __future__ import annotations

import email
import email.policy
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage


class MailServer(socketserver.ThreadingTCPServer):
    """``refuses``: recipients that it does not know. ``down``: it hangs up at once."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.messages: list[EmailMessage] = []
        self.envelopes: list[list[str]] = []
        self.logins: list[str] = []
        self.refuses: set[str] = set()
        self.down = False

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.server_address[1]}"


class _Session(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        if self.server.down:
            return
        recipients: list[str] = []
        self._say("220 mail.example ESMTP")
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self._say("250-mail.example", "250-AUTH PLAIN", "250 SIZE 100000")
                case "AUTH":
                    self.server.logins.append(rest)
                    self._say("235 welcome")
                case "RCPT":
                    address = rest.partition("<")[2].partition(">")[0]
                    known = address not in self.server.refuses
                    recipients += [address] if known else []
                    self._say("250 ok" if known else "550 no such user")
                case "DATA":
                    self._say("354 go on")
                    self._keep(recipients)
                    self._say("250 taken")
                case "QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("250 ok")

    def _keep(self, recipients: list[str]) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line)
        parsed = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
        self.server.messages.append(parsed)
        self.server.envelopes.append(recipients)

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """A server that takes mail until the end."""
    with MailServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)
