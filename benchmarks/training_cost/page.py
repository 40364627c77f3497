"""The page of the benchmark, written from the JSON file and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figure import draw_growth, draw_times
from plan import GROWTH_NET, INFERENCE_BATCH, INFERENCE_ROUNDS, LEARNING_RATE, MEMORY_STEPS, MODES, NETS, WEIGHT_DECAY
from summary import Figures, against, duels, ratios_of, verdicts
from wording import NOTHING, billions, joined, markdown, megabytes, rate, with_spread

from convpeft.reporting import format_bytes, format_count, save_figure

NAME, ON_GPU = "training_cost", "training_cost_gpu"
_VARIED = {"rank": "Rank", "batch": "Batch", "size": "Image size", "first": "First adapted stage"}


def write_page(content: dict[str, Any], out: Path) -> None:
    """Write page and plots; equal results give equal bytes."""
    blocks = [*_head(content)]
    name, gpu = name_of(content), content["machine"].get("gpu")
    if not content["trial"] and not gpu:
        blocks += _targets(content)
    if any("ratios" in row for row in content["methods"]):
        save_figure(draw_times(content), out / name / "time.png")
        blocks += [*_methods(content), *_duels(content), *_chosen(content)]
    if any("ratios" in row for rows in content["growth"].values() for row in rows):
        save_figure(draw_growth(content["growth"]), out / name / "growth.png")
        blocks += _growth(content)
    blocks += [*_prefix(content), *_loader(content), *_how(content)]
    (out / f"{name}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def name_of(content: dict[str, Any]) -> str:
    """Of the page and of the folder of its plots."""
    return ON_GPU if content["machine"].get("gpu") else NAME


def _head(content: dict[str, Any]) -> Iterator[str]:
    gpu = content["machine"].get("gpu")
    yield f"# What training costs{' on a GPU' if gpu else ''}"
    if content["trial"]:
        yield "This was a trial whether everything runs. The numbers mean nothing."
    yield (
        "Time and memory of a training step of convpeft, of other libraries and of plain PyTorch on the same networks. "
        "All ratios are to full fine-tuning in plain PyTorch with the same batch, images, optimiser and precision, in "
        "the memory layout, contiguous or channels_last, that was the faster one for it in the very same rounds."
    )


def _targets(content: dict[str, Any]) -> Iterator[str]:
    yield "## Figures to reach"
    rows = []
    for each in verdicts(content):
        found = NOTHING if each.found is None else f"{each.found:.2f}"
        verdict = "not measured" if each.found is None else "met" if each.met else "**missed**"
        rows.append((each.figure, NETS[each.net].title, each.wanted, found, verdict))
    yield markdown(("figure", "network", "wanted", "found", ""), rows)
    yield "LoRA of rank 8 on every convolution and a new head, float32 unless it says bf16; ratios, medians."


def _methods(content: dict[str, Any]) -> Iterator[str]:
    yield "## Step by step"
    yield (
        "One mode, one row, all of its figures from one process. Step time: median of the ratios of each round, in "
        "brackets their quartiles. Saved: bytes that autograd keeps from forward to backward. Peak: by how much the "
        "process grows while it trains. Operations: thousand millions of multiplications and additions, forward and "
        "backward. Merged: inference of the merged network through that of a plain one. Rows in bf16 stand against "
        "full fine-tuning in bf16."
    )
    yield f"![Step time of every mode]({name_of(content)}/time.png)"
    headers = (
        *("mode", "layout", "step time", "images/s", "saved", "ratio", "peak", "ratio"),
        *("forward", "backward", "ratio", "trained", "merged"),
    )
    for net in NETS:
        rows = [row for row in content["methods"] if row["net"] == net]
        if not rows:
            continue
        order = list(MODES)
        rows.sort(key=lambda row: order.index(row["mode"]))
        yield f"### {NETS[net].title}"
        yield f"`{net}` of {NETS[net].library}, {rows[0]['batch']} images of {rows[0]['size']} pixels."
        yield markdown(headers, [_cells(row) for row in rows])
        notes = [_note(row) for row in rows]
        for own, base, told in (
            ("keras-lora", "keras-full", "Keras `enable_lora` against Keras's own full fine-tuning"),
            ("fused", "full-fused", "convpeft LoRA against full fine-tuning, fused AdamW on both sides"),
        ):
            quotient = against(content, net, own, base)
            if quotient is not None:
                notes.append(f"- {told}: step time {quotient:.2f}.")
        if found := [note for note in notes if note]:
            yield "\n".join(found)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    title = MODES[row["mode"]].title
    if "error" in row:
        return (title, *[NOTHING] * 11, "not offered" if row["absent"] else "failed")
    found = Figures(row)
    layout = row["chosen"].get("layout", row["layout"])
    return (
        title,
        {"own": NOTHING}.get(layout, layout),
        with_spread(found.time),
        f"{found.images_per_second:,.0f}",
        megabytes(row["saved_bytes"]),
        f"{found.saved:.2f}",
        megabytes(row["memory_bytes"]),
        f"{found.memory:.2f}",
        billions(row["operations_forward"]),
        billions(row["operations_backward"]),
        f"{found.operations:.2f}",
        format_count(row["trainable"]),
        with_spread(found.merged),
    )


def _note(row: dict[str, Any]) -> str:
    said = [row.get("error", ""), row.get("note", "")]
    if "inference_error" in row:
        said.append(f"not merged: {row['inference_error']}")
    text = "; ".join(each for each in said if each)
    return f"- {MODES[row['mode']].title}: {text}." if text else ""


def _duels(content: dict[str, Any]) -> Iterator[str]:
    found = duels(content)
    if not found:
        return
    yield "## The same method in other libraries"
    slower = [f"{NETS[duel.net].title} against {MODES[duel.rival].title}" for duel in found if duel.verdict == "slower"]
    yield (
        "Step times as ratios to the same baseline; every rival in the layout that was faster for it. Where the "
        f"quartiles overlap nobody is called faster. convpeft is slower on {len(slower)} of {len(found)}"
        f"{': ' + joined(slower) if slower else ''}."
    )
    rows = [
        (
            NETS[duel.net].title,
            MODES[duel.rival].title,
            with_spread(duel.other),
            with_spread(duel.own),
            f"{duel.quotient:.2f}",
            f"**{duel.verdict}**" if duel.verdict == "slower" else duel.verdict,
        )
        for duel in found
    ]
    yield markdown(("network", "library and method", "its time", "convpeft's", "quotient", "convpeft is"), rows)


def _chosen(content: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in content["methods"] if row.get("chosen") and not MODES[row["mode"]].words]
    if not rows:
        return
    yield "## What convpeft chose"
    yield "How many adapted layers each kernel has, and how many norms were folded into their convolution."
    yield markdown(
        ("network", "mode", "layout", "kernels", "norms folded", "not folded"),
        [
            (
                NETS[row["net"]].title,
                MODES[row["mode"]].title,
                row["chosen"]["layout"],
                ", ".join(f"`{name}` {number}" for name, number in row["chosen"]["kernels"].items()) or NOTHING,
                str(row["chosen"]["folded"]),
                str(row["chosen"]["unfolded"]),
            )
            for row in rows
        ],
    )


def _growth(content: dict[str, Any]) -> Iterator[str]:
    yield "## How cost grows"
    yield (
        f"convpeft LoRA on {NETS[GROWTH_NET].title}, one thing varied at a time, each against full fine-tuning of the "
        "same batch and size."
    )
    yield f"![How cost grows]({NAME}/growth.png)"
    for what, rows in content["growth"].items():
        fine = [row for row in rows if "ratios" in row]
        if not fine:
            continue
        first = fine[0]
        same = [
            f"rank {first['rank']}" if what != "rank" else "",
            f"{first['batch']} images" if what != "batch" else "",
            f"of {first['size']} pixels" if what != "size" else "",
        ]
        yield f"### {_VARIED[what]}"
        yield " ".join(each for each in same if each) + "."
        cells = [
            (
                str(row[what] or "all"),
                with_spread(found.time),
                f"{found.images_per_second:,.0f}",
                megabytes(row["saved_bytes"]),
                f"{found.saved:.2f}",
                f"{found.memory:.2f}",
                f"{found.operations:.2f}",
                format_count(row["trainable"]),
            )
            for row, found in ((row, Figures(row)) for row in fine)
        ]
        headers = (_VARIED[what].lower(), "step time", "images/s", "saved", "ratio", "peak", "operations", "trained")
        yield markdown(headers, cells)


def _prefix(content: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in content["prefix"] if "cached_seconds" in row]
    if not rows:
        return
    yield "## Epochs from the prefix cache"
    yield (
        "Adapters in the last stage and a new head; what comes before is computed once for each image. Both runs are "
        "`convpeft.train` with `train.prefix_cache` on and off, the second with method `full` and trained norms; the "
        "first epoch of each is left out. The smaller the images, the larger is the share of the last stage. *Plain* "
        "is a bare loop of PyTorch over images in memory, in its faster layout. *Pays after*: epochs until filling the "
        "cache is made up for."
    )
    cells = []
    for row in rows:
        own, full = statistics.median(row["cached_seconds"]), statistics.median(row["full_seconds"])
        plain, filling = statistics.median(row["plain_seconds"]), statistics.median(row["filling_seconds"])
        by_convpeft, by_plain = ratios_of(row)
        pays = filling / (full - own) if full > own else None
        cells.append(
            (
                NETS[row["net"]].title,
                f"{row['images']} of {row['size']} pixels",
                row["share"],
                f"{own:.2f} s",
                f"{full:.2f} s",
                f"{plain:.2f} s",
                f"{by_convpeft:.2f}",
                f"{by_plain:.2f}",
                f"{filling:.2f} s",
                NOTHING if pays is None else f"{pays:.1f}",
            )
        )
    headers = ("network", "images", "computed once", "epoch", "full", "plain", "of full", "of plain")
    yield markdown((*headers, "filling", "pays after"), cells)


def _loader(content: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in content["loader"] if "served" in row]
    if not rows:
        return
    yield "## Whether the loader keeps up"
    yield (
        "Images a second: what training takes (convpeft LoRA) and what the loader serves with `workers = 0` from a "
        "folder of pictures. *Decoding* reads and decodes every picture anew; *filling* is done once, before the first "
        "epoch, where prepared images fit into memory; *cached* serves them from there."
    )
    cells = []
    for row in rows:
        for form, served in row["served"].items():
            waiting = statistics.median(row["training"]) / statistics.median(served["cached"])
            rates = [rate(served[name]) for name in ("decoding", "filling", "cached", "cached, augmented")]
            name, size = NETS[row["net"]].title, f"{row['size']} px {form.upper()}"
            cells.append((name, size, rate(row["training"]), *rates, f"{100 * waiting:.1f} %"))
    headers = (
        "network",
        "pictures",
        "training",
        "decoding",
        "filling",
        "cached",
        "cached, augmented",
        "loader's share",
    )
    yield markdown(headers, cells)
    yield "The loader's share: time to serve a batch from the cache through the time to train on it."


def _untimed(content: dict[str, Any]) -> str:
    """How many steps were off the clock; rows that do not say it are of a time when it was one."""
    counts = {(row["net"], row.get("untimed", 1)) for row in content["methods"]}
    most = max(count for _, count in counts)
    fewer = {net: count for net, count in sorted(counts) if count != most}
    told = [
        f"{count} for {NETS[net].title}{' in rows of an earlier pass' if (net, most) in counts else ''}"
        for net, count in fewer.items()
    ]
    return f"{most} steps off the clock" + (f" ({'; '.join(told)})" if told else "")


def _how(content: dict[str, Any]) -> Iterator[str]:
    machine, versions = content["machine"], content["versions"]
    gpu = machine.get("gpu")
    yield "## How it was measured"
    lines = [
        "Every mode is a process of its own, forked from one that has imported PyTorch and computed nothing. In each "
        f"of {content['rounds']} rounds every process trains {_untimed(content)} and one on it, while all others wait: "
        "the first ones fetch from the system what the others' turns took away. The order turns from round "
        "to round. A ratio is that of two steps of the same round. The modes of one network take turns in up to "
        "three groups, each with both baselines.",
        "Other libraries and head only were tried in both layouts and measured in the faster one; for Keras that is "
        "its data format. convpeft was left to choose.",
        f"AdamW (rate {LEARNING_RATE:g}, decay {WEIGHT_DECAY:g}) as PyTorch's defaults have it, cross-entropy, random "
        "images and labels, ten classes, random weights. A step is clearing gradients, forward, loss, backward, "
        "optimiser. Keras runs `train_on_batch` with its own AdamW.",
        "Norms: full fine-tuning and the other PyTorch libraries train with batch statistics, as `model.train()` has "
        "it; convpeft's are frozen, its default; head only has them in evaluation mode; Keras has `trainable = False`.",
        "Saved activations: `saved_tensors_hooks` during forward and loss, each storage once, parameters and buffers "
        "left out. Operations: PyTorch's `flop_counter` formulas, that of a grouped convolution's backward corrected.",
        f"Peak: {'allocated memory of the GPU' if gpu else 'resident size'} at its largest during the first "
        f"{MEMORY_STEPS} steps less that before them, with gradients"
        f"{' and optimiser state.' if gpu else ', optimiser state and what the allocator keeps.'}",
        f"Merged inference: {INFERENCE_ROUNDS} rounds of the merged and a plain network in turns, contiguous, "
        f"{INFERENCE_BATCH} images. Merging does not depend on the kernel, so kernels have no figure.",
    ]
    yield "\n".join(f"- {line}" for line in lines)
    yield "## What was not measured"
    yield "\n".join(
        f"- {line}"
        for line in (
            "Any other GPU; Keras; growth, prefix cache and loader."
            if gpu
            else "Any GPU: all figures are of a CPU. There, weight gradients are cheap and launches are not.",
            "More than one machine; other batch sizes, ranks and images than those shown; compiled models where no row "
            "has them.",
            "Accuracy, which is on the pages of the experiments.",
        )
    )
    yield "## Command, machine and versions"
    yield f"```bash\n{content['command']}\n```"
    has = [name for name in ("bf16 instructions", "AMX tiles") if machine[name]]
    instructions = machine["vector instructions"] + (f" with {joined(has)}" if has else "")
    memory = f"{format_bytes(machine['memory_bytes'])} of memory"
    told = [*([gpu] if gpu else []), f"{machine['cores']} cores", f"{machine['threads']} threads", instructions, memory]
    yield ", ".join(told) + "."
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
