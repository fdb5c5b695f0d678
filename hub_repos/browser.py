"""A page that runs a model in its reader's browser: `hub-unets browser MODEL OUT`.

The page is a folder of static files that any file server can serve; it contacts no other host. Its preprocessing and
postprocessing are those of the image processor, written again in JavaScript.
"""

import argparse

import transformers

from hub_unets.hub_repos.page.page import PACKAGE, build_page
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.training.errors import run_command


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets browser", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="a built repository, or an id on the Hub")
    parser.add_argument("out", metavar="OUT", help="folder to write the page to")
    parser.add_argument("--runtime", metavar="FOLDER", help=f"an unpacked {PACKAGE} (default: npm fetches it)")
    parser.add_argument("--int8", action="store_true", help=f"the page runs MODEL's {INT8}, a quarter of the size")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    build_page(arguments.model, arguments.out, arguments.runtime, int8=arguments.int8)
    print(f"Page: {arguments.out}")
    print(f"Next: python -m http.server --bind 127.0.0.1 --directory {arguments.out}")


if __name__ == "__main__":
    run_command(main)
