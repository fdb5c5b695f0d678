"""Run by a test in a process of its own, `python -I`: the Space's app.py as Hugging Face runs it.

Usage: space_process.py APP. The project is not installed there, and only this machine can be reached; attempts to
reach others, and each run of the network, are printed.
"""

import runpy
import sys

LOCAL = {"127.0.0.1", "localhost", "::1", "0.0.0.0", None}


def refuse(event, arguments):
    """An audit hook that lets no name but this machine's be looked up."""
    host = arguments[0] if event == "socket.getaddrinfo" else None
    if (host.decode() if isinstance(host, bytes) else host) not in LOCAL:
        print(f"reached for {host}", flush=True)
        raise OSError(f"{host} is out of reach")


def tell(module, arguments, output):
    """A hook of every module's forward."""
    if type(module).__name__.endswith("ForSemanticSegmentation"):
        print("network", flush=True)


def main(app):
    sys.modules["hub_unets"] = None  # the project is not installed here, even where it is
    sys.addaudithook(refuse)
    import torch

    torch.set_num_threads(1)
    torch.nn.modules.module.register_module_forward_hook(tell)
    runpy.run_path(app, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
