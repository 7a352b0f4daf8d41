"""The program of a rank process: `python -m interlace.engine.ranks.main FD`, which `ranks.processes` starts.

FD is the rank's end of the socket pair: the specification comes in as one line, a reason goes out when the rank
fails, and when the other end closes the parent is gone and so is the rank.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

PARENT_CHECK_S = 1.0


def main() -> None:
    lifeline = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    line = lifeline.makefile("rb").readline()
    if not line:
        return
    threading.Thread(
        target=_exit_with_parent, args=(lifeline,), name="interlace-lifeline", daemon=True
    ).start()
    try:
        _serve(json.loads(line))
    except Exception as error:
        _say(lifeline, f"failed with {type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(1)  # no clean-up may wait for ranks that are no longer in step
    os._exit(0)


def _serve(fields: dict[str, Any]) -> None:
    from interlace.engine.ranks.connect import attach, connect
    from interlace.engine.ranks.follow import follow
    from interlace.engine.ranks.processes import RankSpec

    spec = RankSpec(**fields)
    follow(spec.engine_config(), connect(spec, attach(spec)), ranks_on_host=spec.size)


def _exit_with_parent(lifeline: socket.socket) -> None:
    """Exit when the parent closes its end, or is gone while some child it forked still holds that end."""
    parent = os.getppid()
    lifeline.settimeout(PARENT_CHECK_S)
    while os.getppid() == parent:
        try:
            if not lifeline.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    os._exit(0)


def _say(lifeline: socket.socket, text: str) -> None:
    with suppress(OSError):  # nobody may be left to be told
        lifeline.sendall(text.encode())


if __name__ == "__main__":
    main()
