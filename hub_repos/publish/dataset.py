"""A data set's repository on the Hub: who is where in a split, and digests that tell every file again; no image."""

import csv
import json
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import BadRequestError, RepositoryNotFoundError

from hub_unets.hub_repos.publish.publication import commit_files, next_tag
from hub_unets.hub_repos.publish.remote import changes, explained, list_files, patience
from hub_unets.hub_repos.repository.eval_results import WITHOUT_TWINS
from hub_unets.training.data.digests import pair_digests
from hub_unets.training.data.partition import PARTS, make_partition, near_duplicates
from hub_unets.training.data.reading import read_pair
from hub_unets.training.errors import UserError
from hub_unets.training.records.results import read_results

SPLIT, BENCHMARK = "split.json", "eval.yaml"
CARD = Path(__file__).with_name("dataset_card.md")
COLUMNS = (
    *("name", "width", "height", "twins"),
    *("image_sha256", "image_pixels_sha256", "mask_sha256", "mask_pixels_sha256"),
)


def stage_dataset(folder, source, name, split, split_seed=42):
    """Write the repository of a split: a table for each part, split.json, eval.yaml and the card.

    Args:
        folder: where to; it is made.
        source: the rows, as `training.data.sources.load_source` gives them.
        name: what the data set is called.
        split, split_seed: as `training.data.partition.make_partition` takes them.

    Raises:
        UserError: the source can't be split so, or a picture can't be read.
    """
    images, partition = make_partition(source, split, split_seed)
    (folder / "parts").mkdir(parents=True)
    for part in PARTS:
        with (folder / "parts" / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(part_rows(images.select(getattr(partition, part))))
    record = {
        "schema_version": 1,
        "name": name,
        "split": split,
        "split_seed": split_seed,
        "sizes": partition.sizes,
        "sha256": partition.sha256,
        "files_sha256": partition.files_sha256,
        "twins": list(partition.twins),
    }
    (folder / SPLIT).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / BENCHMARK).write_text(benchmark_text(record), encoding="utf-8")
    (folder / "README.md").write_text(card_text(record), encoding="utf-8")


def part_rows(images):
    """A part's rows as dictionaries of COLUMNS."""
    twins = {}
    for pair in near_duplicates():
        for own, other in (pair, pair[::-1]):
            twins.setdefault(own, []).append(other)
    for row in images:
        image, labels = read_pair(row)
        digests = pair_digests(row, image, labels)
        yield {
            "name": row["name"],
            "width": image.width,
            "height": image.height,
            "twins": " ".join(sorted(twins.get(row["name"], ()))),
            "image_sha256": digests.image,
            "image_pixels_sha256": digests.image_pixels,
            "mask_sha256": digests.mask,
            "mask_pixels_sha256": digests.mask_pixels,
        }


def benchmark_text(record):
    """eval.yaml, as the Hub documents it for benchmarks: a task for the test part, and one for it without twins."""
    names = [record["split"], *([record["split"] + WITHOUT_TWINS] if record["twins"] else [])]
    benchmark = {
        "name": f"{record['name']}, split {record['split']}",
        "description": f"Mean Dice of the {record['sizes']['test']} test images, each at its original size.",
        "evaluation_framework": "hub-unets",
        "tasks": [{"id": name, "config": "default", "split": "test"} for name in names],
    }
    return yaml.safe_dump(benchmark, sort_keys=False, width=1000)


def card_text(record):
    """README.md."""
    text = CARD.read_text(encoding="utf-8")
    places = {
        **record["sizes"],
        **{key: record[key] for key in ("name", "split", "split_seed", "sha256", "files_sha256")},
        "twins": len(record["twins"]),
    }
    for key, value in places.items():
        text = text.replace("{" + key + "}", str(value))
    return text


def send_dataset(api, repo_id, staged, private=False, dry_run=False):
    """One commit with a tag, or none where nothing changed; other files in it stay. Returns the commit.

    Raises:
        UserError: the repository is public and a private one was asked for.
    """
    head, files, is_private = _read(api, repo_id)
    if private and head and not is_private:
        raise UserError(f"{repo_id} is public: make it private on the Hub first, or leave out --private.")
    changed = [name for name in changes(staged, files) if name != BENCHMARK or not _is_refused(files)]
    if not changed:
        print(f"Nothing changed: data set {repo_id}, commit {head}.")
        return head
    print("\n".join([f"Data set {repo_id}:", *(f"  {name}" for name in changed)]))
    if dry_run:
        return None
    if head is None:
        api.create_repo(repo_id, repo_type="dataset", private=private or None)
        head, *_ = _read(api, repo_id)
    tag = next_tag({ref.name for ref in api.list_repo_refs(repo_id, repo_type="dataset").tags})
    commit = _commit(api, repo_id, staged, changed, head, tag)
    api.create_tag(repo_id, tag=tag, revision=commit, repo_type="dataset")
    print(f"Published: {api.endpoint}/datasets/{repo_id}, commit {commit}, tag {tag}")
    print(f"Next: hub-unets push RUN MODEL_ID --dataset {repo_id}")
    return commit


def _is_refused(files):
    """Whether an earlier push left eval.yaml out, as the Hub refused it."""
    return SPLIT in files and BENCHMARK not in files


def _commit(api, repo_id, staged, changed, head, tag):
    """The commit's hash; without eval.yaml where the Hub, which has a list of benchmarks, does not take that."""
    where = {"repo_type": "dataset", "commit_message": f"Publish {tag}", "parent_commit": head}
    operations = [CommitOperationAdd(name, staged / name) for name in changed]
    try:
        return commit_files(api, repo_id, operations, **where).oid
    except BadRequestError as error:
        if BENCHMARK not in changed or BENCHMARK not in str(error):
            raise
        print(f"Left out: the Hub refuses {BENCHMARK} ({' '.join(str(error.server_message).split())}).")
    operations = [operation for operation in operations if operation.path_in_repo != BENCHMARK]
    return commit_files(api, repo_id, operations, **where).oid


def _read(api, repo_id):
    """Its head, {path: RepoFile}, and whether it is private; None and no files where there is none."""
    try:
        info = api.dataset_info(repo_id, revision="main", timeout=patience())
    except RepositoryNotFoundError:
        return None, {}, False
    return info.sha, list_files(api, repo_id, info.sha, "dataset"), info.private


def find_dataset(api, name, checkpoint, scratch):
    """(repo_id, commit) of a data set's repository whose split is the run's.

    Args:
        api: the Hub's client.
        name: `owner/name`, or `owner/name@revision`.
        checkpoint: the run's folder.
        scratch: a temporary folder.

    Raises:
        UserError: it has another split, or the run has no results.
    """
    if not (checkpoint / "results.json").is_file():
        raise UserError(f"{checkpoint} is not a finished run: results.json is missing; train with training/run.py.")
    repo_id, _, revision = name.partition("@")
    with explained(f"the data set {repo_id}"):
        commit = api.dataset_info(repo_id, revision=revision or "main", timeout=patience()).sha
        target = {"repo_type": "dataset", "revision": commit, "local_dir": scratch / "dataset"}
        path = api.hf_hub_download(repo_id, SPLIT, **target)
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    data = read_results(checkpoint / "results.json")["data"]
    for key in ("split", "sha256"):
        if record.get(key) != data[key]:
            raise UserError(
                f"--dataset {name}: its {key} is {str(record.get(key))[:80]}, the run's {data[key]}: publish the "
                "run's own split with `hub-unets push-data`."
            )
    return repo_id, commit
