"""``python -m metarun.commands.workers``: the process of a sweep that forks its runs, where the sweep's own cannot."""

import socket
import sys

if __name__ == "__main__":
    from metarun.process import prepare

    prepare()
    import metarun.commands.train  # noqa: F401 (what every run imports)
    from metarun.commands.main import main
    from metarun.config.compose import composed
    from metarun.sweep.preloaded import serve

    composed([], [])  # Hydra reads its grammar
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), main)
