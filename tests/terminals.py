"""A command at a pseudo-terminal of 80 columns, which is read until the command ends."""

import fcntl
import os
import pty
import re
import struct
import termios

WIDTH = 80
CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"


def at_a_terminal(argv: list[str]) -> tuple[int, str]:
    """Run a command; returns its exit code and all that it wrote, with the sequences that move and colour."""
    pid, master = pty.fork()
    if pid == 0:
        # Before the command starts, and not from outside, where it might be too late.
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        os.execvpe(argv[0], argv, environment | {"TERM": "xterm-256color"})
    written = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the command has closed the terminal
            piece = b""
        if not piece:
            break
        written += piece
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), written.decode(errors="replace")


def shown_lines(written: str) -> list[str]:
    """Return every line that was shown at any time, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
