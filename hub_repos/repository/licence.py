"""LICENSE: the terms of the weights, which follow from the data, and those of the code."""

from hub_unets.hub_repos.repository.card import dataset_name, is_kvasir, is_phantoms

LICENCE = "LICENSE"
CODE = """The code
--------

The Python files of this folder are part of hub-unets and are licensed under the Apache License, Version 2.0: you may
not use them except in compliance with it. Its text is at https://www.apache.org/licenses/LICENSE-2.0. Unless required
by applicable law or agreed to in writing, they are distributed on an "AS IS" basis, WITHOUT WARRANTIES OR CONDITIONS
OF ANY KIND, either express or implied.

Not a medical device: nothing here is for diagnosis, treatment or any decision about a patient.
"""
KVASIR = """They (model.safetensors, and every file model*.onnx) were trained on Kvasir-SEG, whose terms hold for
them as for the data:

- The weights may be used for research and education.
- Any other use, commercial use among it, needs the prior written permission of the data set's authors.
- Publications that use them cite the data set: Jha et al., "Kvasir-SEG: A Segmented Polyp Dataset", MMM 2020,
  https://arxiv.org/abs/1911.07069.

The data set's own words are at https://datasets.simula.no/kvasir-seg/. Where they differ from these, they hold.
"""
PHANTOMS = """They (model.safetensors, and every file model*.onnx) were trained on generated pictures alone, and
are licensed as the code is.
"""
UNKNOWN = """They (model.safetensors, and every file model*.onnx) were trained on {data}. Its terms are not known
here, and may bind whoever uses the weights: ask whoever published this folder. This file grants no right to them.
"""


def licence_text(results):
    """The text of LICENSE, from a checked results.json."""
    weights = KVASIR if is_kvasir(results) else PHANTOMS if is_phantoms(results) else UNKNOWN
    head = "The weights\n-----------\n\n" + weights.replace("{data}", dataset_name(results))
    for extra in results["data"].get("extra", ()):
        head += f"\nThey were trained on {extra['source']} as well, whose terms hold for them too.\n"
    start = results["run"].get("started_from")
    if start:
        head += (
            f"\nTheir training started from {start['repo_id']}, commit {start['commit']}, on the Hugging Face Hub: "
            "its terms hold as well.\n"
        )
    return f"{head}\n{CODE}"
