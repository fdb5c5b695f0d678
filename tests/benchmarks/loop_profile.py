"""What a training step's time consists of: `python -m hub_unets.benchmarks.loop_profile [PIXELS]` (torch.profiler)."""

import sys
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from hub_unets.benchmarks.loops import OURS, PLAIN, prepared, step
from hub_unets.training.fit.threads import keep_freed_memory, usable_cores
from hub_unets.training.records.markdown import table

KINDS = {  # the first whose word is in an operator's name
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "optimiser": ("adamw", "zero_grad", "_foreach", "addcdiv", "addcmul"),
    "upsampling": ("upsample",),
    "activation": ("relu", "hardtanh", "threshold"),
    "copies and casts": ("copy", "clone", "cat", "fill", "zero_", "contiguous", "empty", "slice", "narrow"),
}
REST = "loss and the rest"


def kind_of(operator):
    """The one of KINDS that an operator of PyTorch belongs to."""
    return next((kind for kind, words in KINDS.items() if any(word in operator.lower() for word in words)), REST)


def by_kind(call, rounds):
    """Milliseconds of a call by the kind of operator, mean over rounds; an operator's own time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            call()
    spent = dict.fromkeys((*KINDS, REST), 0.0)
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1000 / rounds
    return {kind: round(milliseconds, 2) for kind, milliseconds in spent.items()}


def measure(backbone, size, rounds, batch_size=8):
    """{threads: {side: milliseconds an image by kind}} of one thread, and of all; the sides take turns."""
    batch = {
        "pixel_values": torch.randn(batch_size, 3, size, size),
        "labels": torch.randint(0, 2, (batch_size, size, size)),
    }
    steps = {name: partial(step, *prepared(backbone, name == OURS), name == OURS, batch) for name in (OURS, PLAIN)}
    threads_before, results = torch.get_num_threads(), {}
    keep_freed_memory()
    for threads in sorted({1, usable_cores()}):
        torch.set_num_threads(threads)
        turns = {name: [] for name in steps}
        for number in range(rounds + 1):  # the first one warms up
            for name, call in steps.items():
                turns[name] += [by_kind(call, 1)] if number else [call()][:0]
        results[str(threads)] = {name: medians(spent, batch_size) for name, spent in turns.items()}
    torch.set_num_threads(threads_before)
    return results


def medians(turns, batch_size):
    """The medians over turns, an image."""
    return {
        kind: round(float(torch.tensor([spent[kind] for spent in turns]).median()) / batch_size, 3)
        for kind in (*KINDS, REST)
    }


def text(results):
    """The tables, and what bounds the loop: its convolutions alone, were all else free."""
    parts = []
    for threads, sides in results.items():
        ours, plain = sides[OURS], sides[PLAIN]
        total, plain_total = sum(ours.values()), sum(plain.values())
        rows = [[kind, ours[kind], plain[kind], round(plain[kind] / max(ours[kind], 1e-9), 2)] for kind in ours]
        rows.append(["all", round(total, 2), round(plain_total, 2), round(plain_total / total, 2)])
        at_most = plain_total / ours["convolution"]
        parts.append(
            f"Milliseconds an image, {threads} thread{'s' if threads != '1' else ''}; with convolutions alone "
            f"the step would be {at_most:.2f} times as fast as the plain one:\n\n"
            + table(["operators", "ours", "plain", "times faster"], rows)
        )
    return "\n\n".join(parts)


def main(argv=None):
    size = int(([*(sys.argv[1:] if argv is None else argv)] or ["256"])[0])
    print(text(measure("mobilenetv2_100", size, 5)))


if __name__ == "__main__":
    main()
