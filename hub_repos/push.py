"""Checkpoint to the Hub: `hub-unets push CHECKPOINT REPO_ID`.

A push is one commit on `main` and a tag, `v1`, `v2`, ...; the card's snippets load that tag. A push that fails leaves
`main` and the tags as they were, and a repeated push continues from what the Hub holds. The model's Space follows, a
page that runs the network in the reader's browser or a Gradio app pinned to that commit. A sweep's folder becomes one
repository for each finished trial, and a collection, but no Space.
"""

import argparse
import csv
import re
import tempfile
from pathlib import Path

import transformers
from huggingface_hub import HfApi

from hub_unets.hub_repos.page.page import PACKAGE
from hub_unets.hub_repos.publish.dataset import find_dataset
from hub_unets.hub_repos.publish.publication import Publication, require_publishable, require_verified
from hub_unets.hub_repos.publish.remote import explained, limit_waiting, read_remote, require_token
from hub_unets.hub_repos.publish.space import KINDS, Space
from hub_unets.hub_repos.repository.card import Standing
from hub_unets.hub_repos.repository.export import MissingToolError
from hub_unets.training.errors import UserError, run_command


def push(
    checkpoint,
    repo_id,
    tag=None,
    private=False,
    create_pr=False,
    dry_run=False,
    standing=None,
    onnx=False,
    key=None,
    space=None,
    runtime=None,
    dataset=None,
):
    """Publish a run's folder.

    Args:
        checkpoint: the folder, as hub_repos.build takes it.
        repo_id: `namespace/name`; made if it does not exist.
        tag: of the commit; the default is the next free `vN`. A pull request gets none.
        private: make the new repository private.
        create_pr: open a pull request, which leaves `main` alone.
        dry_run: build, verify and compare only.
        standing: the trial's Standing in its sweep, for the card.
        onnx: also publish the network as model.onnx.
        key: sign the manifest with this private key's file; "keyless" lets Sigstore sign it.
        space: the kind of Space that shows `main`: "static", "gradio" or "none"; None is the kind that is there, or a
            static one where it can be built. A pull request and a sweep's trials get none.
        runtime: an unpacked onnxruntime-web for the static Space; None fetches it with npm.
        dataset: `namespace/name[@revision]` of the data set's repository on the Hub, which the card then names.

    Raises:
        UserError: the push failed; the message is one line, with the cure.
    """
    require_sensible(Path(checkpoint), repo_id, tag, create_pr)
    if not dry_run:
        require_token()
    limit_waiting()
    with explained(repo_id), tempfile.TemporaryDirectory() as scratch:
        api = HfApi()
        remote = read_remote(api, repo_id)
        if private and remote.head and not remote.private:
            raise UserError(f"{repo_id} is public: make it private on the Hub first, or leave out --private.")
        shown = Space(api, repo_id, Path(checkpoint), Path(scratch) / "space", space if standing is None else "none")
        named = shown.prepare(runtime, create_pr)
        listed = dataset and find_dataset(api, dataset, Path(checkpoint), Path(scratch))
        publication = Publication(
            api, Path(checkpoint), repo_id, Path(scratch), remote, tag, standing, onnx, key, named, listed
        )
        publication.stage(create_pr)
        if not publication.changed and (create_pr or publication.tag in remote.tags):
            tag_note = "" if create_pr else f", tag {publication.tag}"
            print(f"Nothing changed: {repo_id}, commit {remote.head}{tag_note}.")
            commit = remote.head
        else:
            commit = push_model(publication, private, create_pr, dry_run)
        if shown.kind != "none" and not create_pr:
            send_space(shown, commit, private or publication.remote.private, dry_run, is_asked_for=space is not None)
    if dry_run:
        print("Dry run: nothing was sent.")


def push_model(publication, private, create_pr, dry_run):
    """Check a staged Publication and send it; arguments as `push`. Returns the commit, None in a dry run."""
    print("\n".join(publication.listing()))
    require_publishable(publication.staged)
    require_verified(publication.staged, publication.repo_id, publication.tag)
    publication.run_checkpoint()
    if dry_run:
        return None
    if publication.remote.head is None:
        publication.api.create_repo(publication.repo_id, private=private or None)
        publication.remote = read_remote(publication.api, publication.repo_id)
    commit = publication.open_pull_request() if create_pr else publication.publish()
    print("It loads from the Hub in an isolated process, with the checkpoint's logits bit for bit:")
    print(f'AutoModel.from_pretrained("{publication.repo_id}", revision="{commit}", trust_remote_code=True)')
    return commit


def send_space(space, commit, private, dry_run, is_asked_for):
    """Send a prepared Space of a published model; arguments as its `send`.

    Raises:
        UserError: what went wrong. That no page can be built is only said, unless a Space was asked for.
    """
    try:
        space.send(commit, private, dry_run)
    except UserError as error:
        can_come = error is not space.obstacle or isinstance(error, MissingToolError)
        if error is space.obstacle and not is_asked_for:
            then = "Then the same command sends it; " if can_come else ""
            print(f"No Space: {error} {then}--space none leaves it out.")
            return
        published = f"{space.repo_id} is published, commit {commit}; its Space is not"
        published += ", and the same command sends it" if can_come else ""
        raise UserError(f"{published}: {error}" if commit else str(error)) from error


def push_sweep(sweep, repo_id, private=False, dry_run=False, **options):
    """Publish every finished trial of a sweep as `REPO_ID-<trial>`, and a collection of them.

    Args:
        sweep: the folder, with leaderboard.csv and trials/.
        repo_id, private, dry_run, options: see `push`; the repositories' names begin with `repo_id`.

    Raises:
        UserError: see `push`; the trials before are published, and a repeated push continues after them.
    """
    if not (sweep / "leaderboard.csv").is_file():
        raise UserError(f"{sweep} has no leaderboard.csv yet: repeat the sweep's command until it has ended.")
    with (sweep / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {row["name"]: f"{repo_id}-{re.sub(r'[^A-Za-z0-9._]+', '-', row['name'])}" for row in rows}
    if len(set(names.values())) < len(rows):
        raise UserError(f"two trials of {sweep} would be one repository: rename one, in trials/ and leaderboard.csv.")
    api, slug = HfApi(), None
    if not dry_run:
        with explained(repo_id):
            slug = api.create_collection(
                sweep.resolve().name, namespace=repo_id.split("/")[0], private=private, exists_ok=True
            ).slug
    for row in rows:
        checkpoint = sweep / "trials" / row["name"]
        if not (checkpoint / "model.safetensors").is_file():
            print(f"Left out: the weights of {row['name']} are not here; push it from the machine that trained it.")
            continue
        name = names[row["name"]]
        group_size = sum(other["group"] == row["group"] for other in rows)
        standing = Standing(sweep.resolve().name, row["group"], int(row["place"]), group_size, slug)
        push(checkpoint, name, private=private, dry_run=dry_run, standing=standing, **options)
        if not dry_run:
            with explained(name):
                api.add_collection_item(slug, name, "model", note=standing.note, exists_ok=True)
    if not dry_run:
        print(f"Collection: {api.endpoint}/collections/{slug}")


def require_sensible(checkpoint, repo_id, tag, create_pr):
    """Raise UserError for arguments that contradict each other or can't be used."""
    if repo_id.count("/") != 1:
        raise UserError(f"REPO_ID is namespace/name, such as someone/unet, got {repo_id!r}.")
    if tag and create_pr:
        raise UserError("a pull request gets no tag: leave out --tag or --create-pr.")
    if checkpoint.is_dir() and (links := sorted(path.name for path in checkpoint.iterdir() if path.is_symlink())):
        raise UserError(f"{checkpoint} holds symbolic links ({', '.join(links)}): put the files there or remove them.")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets push", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of a finished run, or of a sweep")
    parser.add_argument("repo_id", metavar="REPO_ID", help="namespace/name on the Hub; a sweep's trials get -<trial>")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request and leave main alone")
    parser.add_argument("--tag", help="the commit's tag (default: the next free v1, v2, ...)")
    parser.add_argument("--onnx", action="store_true", help="also publish the network as model.onnx")
    parser.add_argument("--sign", dest="key", metavar="KEY", help="sign the manifest with this private key's file")
    parser.add_argument("--dry-run", action="store_true", help="build, verify and list what would be sent")
    parser.add_argument(
        "--space",
        choices=KINDS,
        help="static: a page that runs in the reader's browser, free; gradio: an app on the Hub's machines, for a "
        "paid plan or on ZeroGPU; default: the kind that is there, else static; a pull request and a sweep's trials "
        "get none",
    )
    parser.add_argument("--no-space", dest="space", action="store_const", const="none", help="as --space none")
    parser.add_argument(
        "--runtime", metavar="FOLDER", help=f"an unpacked {PACKAGE} for the page (default: npm fetches it)"
    )
    parser.add_argument(
        "--dataset", metavar="ID[@REVISION]", help="the data set's repository, of `hub-unets push-data`"
    )
    options = vars(parser.parse_args(argv))
    folder = Path(options.pop("folder"))
    transformers.logging.disable_progress_bar()
    (push_sweep if (folder / "trials").is_dir() else push)(folder, **options)


if __name__ == "__main__":
    run_command(main)
