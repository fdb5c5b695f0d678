""".eval_results/: the test figures in the Hub's own form, which its leaderboard of the data set reads.

The form is that of hub-docs, `eval_results.yaml`; it takes the place of `model-index`, which the card still has.
"""

import yaml

FOLDER = ".eval_results"
EVAL_RESULTS = f"{FOLDER}/test.yaml"
WITHOUT_TWINS = "-without-twins"  # of the task's id
TASKS = {"test": "", "test_without_twins": WITHOUT_TWINS}  # part: what its task is called after the split


def eval_results_text(results, repo_id=None, revision=None):
    """The text of the file; None where the run was not scored on a test part, or its data set is not on the Hub.

    Args:
        results: a checked results.json; `data.repository` names the data set's repository and commit.
        repo_id, revision: the model's, where a reader finds the row of each image.
    """
    dataset = results["data"].get("repository")
    parts = [part for part in TASKS if part in results["metrics"]]
    if dataset is None or not parts:
        return None
    rows = f"https://huggingface.co/{repo_id}/blob/{revision or 'main'}/per_image.csv"
    entries = [
        {
            "dataset": {
                "id": dataset["repo_id"],
                "task_id": results["data"]["split"] + TASKS[part],
                "revision": dataset["revision"],
            },
            "value": round(results["metrics"][part]["per_image"]["dice"]["value"], 4),
            **({"source": {"url": rows, "name": "A row for each image"}} if repo_id else {}),
            "notes": f"mean Dice of {results['metrics'][part]['images']} images, each at its original size",
        }
        for part in parts
    ]
    return yaml.safe_dump(entries, sort_keys=False, width=1000)
