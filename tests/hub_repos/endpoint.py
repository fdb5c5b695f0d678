"""Run by tests in a process of its own, `python -I`: a repository's handler.py as an Inference Endpoint runs it.

Usage: endpoint.py REPOSITORY. Each pickled (data, threads) that it reads is a request, made by as many threads at
once, and answered with a pickled list of (answer as JSON, None) or (None, error).
"""

import importlib.util
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import transformers


def main(repository):
    sys.dont_write_bytecode = True
    transformers.logging.disable_progress_bar()
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", Path(repository, "handler.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(repository)

    def answer(data):
        try:
            return json.dumps(handler(data)), None
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"

    while True:
        data, threads = pickle.load(sys.stdin.buffer)
        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(answer, [data] * threads))
        pickle.dump(answers, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
