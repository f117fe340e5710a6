"""The claims of TME 8: saliency, fooling images and class visualisation, on SqueezeNet 1.1 and on others beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from rdfia import figures, fooling, input_gradients, intervals, saliency_scores
from tests.accuracy import lab8
from tests.accuracy.lab8 import SETUPS, STINGRAY, TREATMENTS, Bench, above, interval, numbers, share, summary, within
from tests.support import margins

# Margins, fixed before anything was measured.
NOISE_RATIO = 1.2  # "very noisy": the map's total variation is this many times SmoothGrad's, in the median
ON_OBJECT = 0.5  # "can segment": half of a mask lies in the quarter of the picture that shows the class
SHUFFLED, ANOTHER = 0.5, 0.8  # rank correlations that a map must stay below when weights or the class asked for change
PSNR, SSIM = 40.0, 0.95  # "nobody sees": dB as of visually lossless compression, and structural similarity
STEPS = 100  # the lab's limit
SMALLER = 0.6  # a closer search: at most this share of the lab's median L2
CERTAIN = 0.9  # "shapes of tarantulas": the probability that the network itself gives
SAME_PROBABILITY, SAME_VARIATION = 0.05, 1.25  # "changes little": within this difference, and this factor
LOSS, HALF = 0.05, 0.5  # a defence that pays: at most this much accuracy lost, at most this share still fooled

Lens = Callable[..., Bench | None]
claim_of = pytest.mark.claim
slow = pytest.mark.timeout(2400)


def cases(claim_id: str, *whats: str, once: Sequence[str] = (), bonus: str | None = None) -> Any:
    """Parameters (title of the network, what), the report's network first.

    What is in `once` is checked on that one alone, `bonus` with VGG16 too (the lab's bonus).
    """
    pairs = [("SqueezeNet 1.1", what) for what in (*(whats or ("",)), *once)]
    pairs += [("EfficientNet-Lite0", what) for what in whats or ("",)]
    pairs += [("VGG16", bonus)] if bonus is not None else []
    marks = [claim_of(claim_id, case=", ".join(filter(None, pair))) for pair in pairs]
    return pytest.mark.parametrize(
        ("title", "what"), [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)]
    )


def photo(bench: Bench, row: int) -> np.ndarray:
    """A photo as matplotlib draws it, 224 x 224 x 3 in 0..1."""
    return picture(bench.space.denormalise(bench.x[row]))


def picture(pixels: torch.Tensor) -> np.ndarray:
    return pixels.clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def names(bench: Bench, classes: Any) -> list[str]:
    return [bench.photos.classes[int(label)] for label in classes]


# --- q1 to q3: saliency ---------------------------------------------------------------------------------------------


def orders(bench: Bench) -> dict[str, torch.Tensor]:
    """The orders in which pixels are taken away: by saliency, and two that have not seen the network."""
    random = torch.rand(bench.maps("gradient").shape, generator=torch.Generator().manual_seed(0))
    centre = saliency_scores.centre_prior(*random.shape[1:]).expand_as(random)
    kinds = ("gradient", "smoothgrad", "gradient x input") if bench.full else ("gradient",)
    return {**{kind: bench.maps(kind) for kind in kinds}, "random order": random, "centre prior": centre}


_CURVES: dict[str, dict[str, dict[str, np.ndarray]]] = {}


def curves(bench: Bench) -> tuple[tuple[float, ...], dict[str, dict[str, np.ndarray]]]:
    """Deletion and insertion curves by order, a row a photo."""
    fractions = saliency_scores.FRACTIONS[:: 2 if bench.full else 4]
    if bench.title not in _CURVES:
        _CURVES[bench.title] = {
            mode: {
                name: saliency_scores.pixel_curve(
                    bench.network.module,
                    bench.x,
                    bench.y,
                    order.to(bench.device),
                    mode=mode,
                    space=bench.space,
                    fractions=fractions,
                )
                for name, order in orders(bench).items()
            }
            for mode in ("deletion", "insertion")
        }
    return fractions, _CURVES[bench.title]


@slow
@cases("tme8.q1.saliency", "against random order", "against a centre prior", bonus="against random order")
def test_salient_pixels_matter(claim: Any, lens: Lens, title: str, what: str) -> None:
    """Taking salient pixels away costs more, and bringing them back gives more, than any pixels, or the middle's."""
    if (bench := lens(title)) is None:
        return
    fractions, found = curves(bench)
    base = "random order" if "random" in what else "centre prior"
    areas = {m: {name: saliency_scores.area(c, fractions) for name, c in rows.items()} for m, rows in found.items()}
    loss = areas["deletion"][base] - areas["deletion"]["gradient"]
    gain = areas["insertion"]["gradient"] - areas["insertion"][base]
    if base == "random order":
        for mode, rows in found.items():
            x = f"share of the pixels {'taken away' if mode == 'deletion' else 'laid on a blurred copy'}"
            claim.figure(
                f"deletion-{mode}-{SETUPS[title].network}",
                figures.curves(fractions, rows, x, "probability of the class"),
                f"{mode.capitalize()} in the order of each map, mean over {len(bench.y)} photos with its 95% band; "
                + ("the lower, the better the order." if mode == "deletion" else "the higher, the better the order."),
                f"{mode.capitalize()} curves of {', '.join(rows)}.",
            )
        rows_shown = [bench.row("wire-haired fox terrier"), bench.row("quail"), bench.row("stole", "Egyptian cat")]
        maps = {kind: bench.maps(kind) for kind in ("gradient", "smoothgrad")}
        shown = [
            [photo(bench, r), *((m[r] / m[r].quantile(0.995)).clamp(max=1).numpy() for m in maps.values())]
            for r in rows_shown
        ]
        titles = [[name, "gradient", "SmoothGrad"] for name in names(bench, bench.y[rows_shown])]
        claim.figure(
            f"figure4-{SETUPS[title].network}",
            figures.pictures([p for row in shown for p in row], [t for row in titles for t in row]),
            "Figure 4 redone: photos, the map of the plain gradient (maximum over RGB), SmoothGrad. "
            f"Area under deletion {areas['deletion']['gradient'].mean():.3f} (random order "
            f"{areas['deletion']['random order'].mean():.3f}), under insertion "
            f"{areas['insertion']['gradient'].mean():.3f} ({areas['insertion']['random order'].mean():.3f}).",
            "Three photos with two saliency maps each.",
        )
    note = "Pixels go one by one: tearing the texture everywhere costs most, wherever it is, which a random order"
    note += " does best. " if base == "random order" else " does best; the middle of a photo holds most objects. "
    claim.measured(
        {
            "deletion": float(areas["deletion"]["gradient"].mean()),
            f"{base}, deletion": float(areas["deletion"][base].mean()),
            "insertion": float(areas["insertion"]["gradient"].mean()),
            f"{base}, insertion": float(areas["insertion"][base].mean()),
        },
        expected=f"deletion below and insertion above the {base}'s",
        holds=interval(loss)[0] > 0 and interval(gain)[0] > 0,
        unit="(area under the class's probability)",
        tolerance="95% interval of the mean paired difference above 0, both ways",
        margin=margins.all_of(
            (interval(loss)[0] > 0, margins.mean(loss, 0)), (interval(gain)[0] > 0, margins.mean(gain, 0))
        ),
        evidence={
            "areas": {
                m: {n: {"mean": float(a.mean()), "interval": interval(a)} for n, a in rows.items()}
                for m, rows in areas.items()
            },
            "deletion gained": interval(loss),
            "insertion gained": interval(gain),
        },
        note=f"{note}Deletion gains {loss.mean():+.3f}, insertion {gain.mean():+.3f}.",
        **bench.record(),
    )


@slow
@cases("tme8.q2.noise")
def test_the_plain_map_is_noisy(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (bench := lens(title)) is None:
        return
    grey = bench.space.denormalise(bench.x).mean(1).cpu()
    kinds = {
        "gradient": bench.maps("gradient"),
        "SmoothGrad": bench.maps("smoothgrad"),
        "gradient x input": bench.maps("gradient x input"),
        "the photo itself": grey,
    }
    variation = {name: saliency_scores.total_variation(maps) for name, maps in kinds.items()}
    high = {name: saliency_scores.high_frequency_share(maps) for name, maps in kinds.items()}
    ratios = variation["gradient"] / variation["SmoothGrad"]
    low = intervals.bootstrap(np.median, ratios, level=0.95).low
    waves = interval(high["gradient"] - high["SmoothGrad"])
    claim.measured(
        {
            "variation over SmoothGrad's": float(np.median(ratios)),
            **{f"short waves, {name}": float(np.median(v)) for name, v in high.items()},
        },
        expected=f"total variation {NOISE_RATIO} times SmoothGrad's or more, and more of its variance in short waves",
        holds=low > NOISE_RATIO and waves[0] > 0,
        unit="(medians)",
        tolerance="95% bounds of the median ratio and of the mean difference",
        margin=margins.all_of(
            (low > NOISE_RATIO, margins.bound_of_median(ratios, NOISE_RATIO, low)),
            (waves[0] > 0, margins.mean(high["gradient"] - high["SmoothGrad"], 0)),
        ),
        evidence={
            "variation": {n: summary(v) for n, v in variation.items()},
            "share of the variance in waves under 4 pixels": {n: summary(v) for n, v in high.items()},
            "lower bound of the ratio": low,
            "difference in short waves": waves,
            "white noise would have": 1 - np.pi / 16,
            "bars": {name: list(v) for name, v in high.items()},
            "unit": "share of the variance in waves under 4 px",
        },
        **bench.record(),
    )


@slow
@cases("tme8.q3.segmentation")
def test_maps_point_at_the_object(claim: Any, lens: Lens, title: str, what: str) -> None:
    """Masks from saliency on mosaics of four photos, where the quarter that shows the class is known."""
    if (bench := lens(title)) is None:
        return
    squares, classes, places = lab8.mosaics(bench.x, bench.y)
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind in ("gradient", "smoothgrad") if bench.full else ("gradient",):
        maps = input_gradients.saliency(
            bench.network.module, squares, classes, kind=kind, samples=4, space=bench.space, chunk=8
        ).cpu()
        inside = (maps.double().numpy() * places).sum((1, 2)) / maps.double().sum((1, 2)).numpy()
        found[kind] = {**saliency_scores.overlap(saliency_scores.masks(maps), places), "energy inside": inside}
    rows = [bench.row("wire-haired fox terrier"), bench.row("quail"), bench.row("snail")]
    masks = saliency_scores.masks(bench.maps("smoothgrad")[rows])
    dim = [photo(bench, row) * np.where(mask, 1, 0.25)[..., None] for row, mask in zip(rows, masks, strict=True)]
    claim.figure(
        f"figure4-masks-{SETUPS[title].network}",
        figures.pictures(dim, names(bench, bench.y[rows])),
        "What a mask from SmoothGrad keeps (blurred by 8 pixels, split by Otsu's threshold); the rest is darkened. On "
        f"mosaics of four photos a plain gradient's mask has {found['gradient']['precision'].mean():.2f} of its area "
        "in the right quarter; chance is 0.25.",
        "Three photos of which saliency keeps a part.",
    )
    precision = found["gradient"]["precision"]
    claim.measured(
        {
            "share of a mask in the right quarter": float(precision.mean()),
            "overlap (IoU)": float(found["gradient"]["iou"].mean()),
        },
        expected=f"more than {ON_OBJECT} of a mask in the quarter that shows the class (chance: 0.25)",
        holds=interval(precision)[0] > ON_OBJECT,
        tolerance="95% interval of the mean",
        margin=margins.mean(precision, ON_OBJECT),
        evidence={
            kind: {name: {**summary(v), "interval": interval(v)} for name, v in rows.items()}
            for kind, rows in found.items()
        },
        note="No photo here comes with the outline of its object. The truth is the place of the photo in a mosaic of "
        "four: it tells whether a map finds the object, not how well it follows its outline.",
        **bench.record(protocol="substitute", data=f"{len(classes)} mosaics of photos of {bench.setup.photos}"),
    )


@slow
@cases("tme8.sanity", "shuffled weights", "another class")
def test_maps_depend_on_weights_and_class(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (bench := lens(title)) is None:
        return
    kind, n = "gradient", len(bench.y)
    if what == "shuffled weights":
        other = lab8.Network(title, bench.device)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in other.module.parameters():
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        maps = input_gradients.saliency(other.module, bench.x, bench.y, space=bench.space).cpu()
    else:
        maps = input_gradients.saliency(bench.network.module, bench.x, bench.targets, space=bench.space).cpu()
    limit = SHUFFLED if what == "shuffled weights" else ANOTHER
    every = saliency_scores.rank_correlation(bench.maps(kind), maps)
    correlation = every[np.isfinite(every)]
    claim.measured(
        float(correlation.mean()),
        expected=f"rank correlation with the map itself below {limit}",
        holds=interval(correlation)[1] < limit,
        unit="(Spearman, mean over photos)",
        tolerance="95% interval",
        margin=margins.mean(correlation, limit, below=True),
        evidence={
            "photos": n,
            "with a constant map, left out": n - len(correlation),
            **summary(correlation),
            "interval": interval(correlation),
        },
        **bench.record(protocol="substitute" if title != "SqueezeNet 1.1" else "report"),
    )


# --- q5, q6: fooling images -----------------------------------------------------------------------------------------


@slow
@cases("tme8.q5.fooling")
def test_a_quail_becomes_a_stingray(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (bench := lens(title)) is None:
        return
    row = bench.row("quail")
    (source,) = names(bench, [bench.y[row]])
    result = fooling.fool(bench.network.module, bench.x[row : row + 1], STINGRAY, space=bench.space, pixels="8 bits")
    free = fooling.fool(bench.network.module, bench.x[row : row + 1], STINGRAY, space=bench.space)
    size = {name: float(v[0]) for name, v in free.size.items()}
    before, after = (bench.space.denormalise(x)[0].cpu() for x in (bench.x[row : row + 1], free.x))
    change = after - before
    confidence = [round(float(p), 4) for p in (*free.before[0], *free.after[0])]
    claim.figure(
        f"figure5-{SETUPS[title].network}",
        figures.pictures(
            [picture(before), picture(after), picture(change + 0.5), picture(10 * change + 0.5)],
            [f"{source}, {confidence[0]:.2f}", f"stingray, {confidence[3]:.2f}", "difference", "difference x 10"],
            2,
        ),
        f"Figure 5 redone: {int(free.steps[0])} steps of the lab's rule. L2 {size['l2']:.2f}, Linf {size['linf']:.3f} "
        f"(pixels in 0..1), PSNR {size['psnr']:.1f} dB, SSIM {size['ssim']:.4f}; differences are drawn around grey.",
        "A photo, the same read as a stingray, their difference and ten times that.",
    )
    claim.measured(
        f"{source} -> {'stingray' if free.reached[0] else 'not reached'} in {int(free.steps[0])} steps, "
        f"PSNR {size['psnr']:.1f} dB, SSIM {size['ssim']:.4f}",
        expected=f"read as a stingray; PSNR from {PSNR:.0f} dB, SSIM from {SSIM}",
        holds=bool(free.reached[0]) and size["psnr"] >= PSNR and size["ssim"] >= SSIM,
        tolerance=f"{STEPS} steps at most",
        margin="one photo: no standard error",
        evidence={
            "status": free.status[0],
            "steps": int(free.steps[0]),
            **size,
            "probability before (source, target)": confidence[:2],
            "after": confidence[2:],
            "in 8 bits": {
                "status": result.status[0],
                "steps": int(result.steps[0]),
                **{name: float(v[0]) for name, v in result.size.items()},
            },
        },
        note="A sample photo of the class; the report's own photo is not public.",
        **bench.record(data=f"one photo of a {source}"),
    )


@slow
@cases("tme8.q5.rate", "the lab's rule", "saved as PNG", bonus="the lab's rule")
def test_every_photo_is_fooled(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (bench := lens(title)) is None:
        return
    result = bench.fooled("free" if what == "the lab's rule" else "8 bits")
    hits = result.reached
    if what == "saved as PNG":  # judged on what a file gives back
        files = lab8.as_files(bench.space.denormalise(result.x).cpu(), lab8.saved("PNG"))
        hits = hits & (bench.network(files).argmax(1) == bench.targets).numpy()
    rate = share(hits)
    taken = result.steps.numpy()
    if what == "the lab's rule":
        within_steps = (taken[:, None] <= np.arange(STEPS + 1)) & hits[:, None]
        claim.figure(
            f"fooling-steps-{SETUPS[title].network}",
            figures.curves(
                list(range(STEPS + 1)), {"fooled": within_steps}, "steps of the lab's rule", "share of the photos"
            ),
            f"{rate['hits']} of {rate['of']} photos are read as a random class within {STEPS} steps; half of them "
            f"within {np.median(taken):.0f}, the last of them after {taken[hits].max()}. Band: 95% interval.",
            "A curve that rises from 0 to the share of fooled photos.",
        )
    missed = [i for i, status in enumerate(result.status) if status == "never"]
    later: dict[str, Any] = {}
    if missed and what == "the lab's rule":  # is it the limit, or can the rule not get there at all?
        x = bench.x[missed]
        more = fooling.fool(bench.network.module, x, bench.targets[missed], steps=4 * STEPS, space=bench.space)
        later = {
            "target": names(bench, bench.targets[missed]),
            "status within 400 steps": more.status,
            "steps": more.steps.tolist(),
            "read as after 100": names(bench, bench.network(bench.space.denormalise(result.x[missed]).cpu()).argmax(1)),
        }
    claim.measured(
        {
            "fooled": f"{rate['hits']} of {rate['of']}",
            "median steps": float(np.median(taken)),
            "most": int(taken.max()),
            "median L2": float(np.median(result.size["l2"])),
        },
        expected=f"all within {STEPS} steps",
        holds=rate["hits"] == rate["of"],
        tolerance=f"Clopper-Pearson 95%: {rate['low']:.3f} to {rate['high']:.3f}",
        margin="all is asked: one photo less and it fails, so that there is no standard error"
        if rate["hits"] == rate["of"]
        else margins.share(rate["share"], 1 - 0.5 / rate["of"], rate["of"]),
        evidence={
            **rate,
            "statuses": {s: result.status.count(s) for s in ("fooled", "already", "never")},
            "steps": summary(taken),
            **{name: summary(v) for name, v in result.size.items()},
            "not fooled": later,
            "probability of the target before": summary(result.before[:, 1]),
            "after": summary(result.after[:, 1]),
            "probability of the class before": summary(result.before[:, 0]),
            "and after": summary(result.after[:, 0]),
        },
        note="L2 in pixels of 0..1."
        + (
            f" Not fooled: towards {', '.join(later['target'])}; in 400: {', '.join(later['status within 400 steps'])}."
            " Raising one logit can raise another as fast."
            if later
            else ""
        )
        + (" Each image was saved as PNG, read back and classified again." * (what != "the lab's rule")),
        **bench.record(),
    )


@slow
@cases("tme8.smaller", "", once=["beside foolbox"])
def test_a_closer_search_changes_less(claim: Any, lens: Lens, title: str, what: str) -> None:
    if what and claim.recorded():
        return
    if (bench := lens(title)) is None:
        return
    closely, lab = bench.fooled("closely"), bench.fooled("8 bits")
    if what:
        pytest.importorskip("eagerpy", reason="foolbox's attacks need it: pip install --no-deps eagerpy")
        rows = slice(0, 32)
        steps = int(closely.steps.max())
        theirs, hits = lab8.foolbox_closely(bench, rows, steps)
        ours = closely.size["l2"][rows]
        claim.measured(
            {
                "ours": float(np.median(ours)),
                "foolbox's": float(np.median(theirs)),
                "ours fools": share(closely.reached[rows])["share"],
                "foolbox's fools": share(hits)["share"],
            },
            expected="a median L2 not above foolbox's decoupled direction and norm, at the same number of gradients",
            holds=float(np.median(ours)) <= float(np.median(theirs)) and bool(closely.reached[rows].all()),
            unit="(L2 of the 8-bit image)",
            tolerance=f"{steps} gradients each",
            margin=margins.all_of(
                (float(np.median(ours)) <= float(np.median(theirs)), margins.medians(ours, theirs)),
                (bool(closely.reached[rows].all()), margins.share(closely.reached[rows].mean(), 1, len(ours))),
            ),
            evidence={
                "bars": {
                    "the lab's rule": list(lab.size["l2"][rows]),
                    "closer search": list(ours),
                    "foolbox, DDN": list(theirs),
                },
                "unit": "L2 of the change, pixels in 0..1",
            },
            note="Both see the image rounded to 8 bits, at the same number of gradients.",
            **bench.record(data=f"the first {len(ours)} photos of {bench.setup.photos} that are classified correctly"),
        )
        return
    ratio = float(np.median(closely.size["l2"]) / np.median(lab.size["l2"]))
    files = lab8.as_files(bench.space.denormalise(closely.x).cpu(), lab8.saved("PNG"))
    hits = closely.reached & (bench.network(files).argmax(1) == bench.targets).numpy()
    rate = share(hits)
    claim.measured(
        {
            "median L2": float(np.median(closely.size["l2"])),
            "the lab's rule": float(np.median(lab.size["l2"])),
            "ratio": ratio,
            "fooled": f"{rate['hits']} of {rate['of']}",
        },
        expected=f"every photo, with at most {SMALLER} times the lab's median L2",
        holds=ratio <= SMALLER and bool(hits.all()),
        unit="(pixels in 0..1)",
        tolerance=f"both on saved 8-bit images; {int(closely.steps.max())} gradients a photo",
        margin=margins.all_of(
            (ratio <= SMALLER, margins.median(closely.size["l2"] / np.median(lab.size["l2"]), SMALLER)),
            (bool(hits.all()), margins.share(rate["share"], 1 - 0.5 / rate["of"], rate["of"])),
        ),
        evidence={
            **rate,
            **{name: summary(v) for name, v in closely.size.items()},
            "bars": {"the lab's rule": list(lab.size["l2"]), "closer search": list(closely.size["l2"])},
            "unit": "L2 of the change, pixels in 0..1",
        },
        **bench.record(),
    )


@slow
@cases("tme8.q6.threat", "survival", "transfer", "defence")
def test_what_becomes_of_fooling_images(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (bench := lens(title, judge=what == "transfer")) is None:
        return
    result = bench.fooled("8 bits")
    rows = torch.from_numpy(result.reached)
    pixels, y, target = (
        bench.space.denormalise(result.x[rows.to(result.x.device)]).cpu(),
        bench.y[rows],
        bench.targets[rows],
    )
    {"survival": survival, "transfer": transfer, "defence": defence}[what](claim, bench, pixels, y, target)


def survival(claim: Any, bench: Bench, pixels: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> None:
    """Fooling images that are saved as JPEG, blurred or resized."""
    found = {}
    for name, treat in TREATMENTS.items():
        predicted = bench.network(pixels, treat).argmax(1)
        found[name] = {"still the target": share(predicted == target), "still misread": share(predicted != y)}
    claim.measured(
        {name: row["still misread"]["share"] for name, row in found.items()},
        expected="half of them or more still misread after each",
        holds=all(row["still misread"]["share"] >= HALF for row in found.values()),
        unit="(share of the fooling images that are not read as their photo)",
        tolerance="point estimates; intervals in the evidence",
        margin=margins.all_of(
            *(
                (row["still misread"]["share"] >= HALF, margins.share(row["still misread"]["share"], HALF, len(y)))
                for row in found.values()
            )
        ),
        evidence={
            **found,
            "bars": {f"{name}, {kind}": [v["share"]] for name, row in found.items() for kind, v in row.items()},
            "unit": "share of the fooling images",
        },
        note="Images of the lab's rule in 8 bits, which stop as soon as they fool and have no margin to lose. "
        "The network is vulnerable to whoever can hand it exact pixels.",
        **bench.record(),
    )


def transfer(claim: Any, bench: Bench, pixels: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> None:
    """Fooling images before other networks, beside the photos that they were made from."""
    rows = torch.from_numpy(bench.fooled("8 bits").reached)
    found: dict[str, dict[str, Any]] = {}
    for network in bench.others():
        clean, predicted = network(bench.pixels[bench.right][rows]).argmax(1), network(pixels).argmax(1)
        lost, won = int(((clean == y) & (predicted != y)).sum()), int(((clean != y) & (predicted == y)).sum())
        found[network.title] = {
            "right on the photos": float((clean == y).float().mean()),
            "right on the fooling images": float((predicted == y).float().mean()),
            "read as the target": share(predicted == target),
            "right before, wrong after": lost,
            "wrong before, right after": won,
            "p": float(stats.binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0,
        }
    judge = found[bench.setup.judge]
    claim.measured(
        {**judge, "read as the target": judge["read as the target"]["share"]},
        expected=f"{bench.setup.judge} misreads more of them than of the photos",
        holds=judge["p"] < 0.05,
        unit="(shares and photos)",
        tolerance="exact test of the images that differ, one-sided at 5%",
        margin=margins.of_p(judge["p"]),
        evidence=found,
        **bench.record(weights=f"made with {bench.title}, shown to {', '.join(found)}"),
    )


def defence(claim: Any, bench: Bench, pixels: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> None:
    """Each treatment as a defence: what it costs on clean photos, what it stops, and one who knows the blur."""
    labels = torch.from_numpy(bench.photos.labels)
    plain = float(bench.right.float().mean())
    found = {"none": {"accuracy": plain, "fooled": 1.0}}
    right = {"none": np.asarray(bench.right)}
    for name, treat in TREATMENTS.items():
        right[name] = (bench.network(bench.pixels, treat).argmax(1) == labels).numpy()
        found[name] = {
            "accuracy": float(right[name].mean()),
            "fooled": float((bench.network(pixels, treat).argmax(1) == target).float().mean()),
        }
    few = slice(0, 24)
    aware = fooling.fool(
        lab8.Blurred(bench.network.module, 1.0).eval(),
        bench.x[few],
        bench.targets[few],
        pixels="8 bits",
        space=bench.space,
    )
    pays = {
        name: plain - row["accuracy"] <= LOSS and row["fooled"] <= HALF for name, row in found.items() if name != "none"
    }
    known = share(np.array(aware.status) == "fooled")
    claim.measured(
        {
            **{f"{name}: accuracy": row["accuracy"] for name, row in found.items()},
            **{f"{name}: fooled": row["fooled"] for name, row in found.items()},
        },
        expected=f"one that costs at most {100 * LOSS:.0f} points of accuracy and stops half of the images or more",
        holds=any(pays.values()),
        unit="(share)",
        tolerance="fixed beforehand",
        margin=(max if any(pays.values()) else min)(
            margins.all_of(
                (plain - row["accuracy"] <= LOSS, margins.shares(right["none"], right[name], LOSS)),
                (row["fooled"] <= HALF, margins.share(row["fooled"], HALF, len(y))),
            )
            for name, row in found.items()
            if pays.get(name, False) or (name != "none" and not any(pays.values()))
        ),
        evidence={
            "found": found,
            "pays": pays,
            "an attack that knows the blur": {**known, "steps": summary(aware.steps)},
            "bars": {f"{name}: {kind}": [v] for name, row in found.items() for kind, v in row.items()},
            "unit": "share",
        },
        note=f"An attack that knows the blur fools {known['hits']} of {known['of']} photos through it: it holds "
        "only against one who does not know it.",
        **bench.record(data=f"{len(labels)} photos of {bench.setup.photos}, and the fooling images made of them"),
    )


# --- q8 to q10: class visualisation ---------------------------------------------------------------------------------

STEPS_OF = {"the lab's step": False, "unit step": True}
SECOND = ("second network", "tarantulas", "easier to see")
SHORT_NAME = {"the lab's step": "lab", "unit step": "unit"}


def sweep(
    claim: Any, lens: Lens, title: str, what: str, *settings: str, judge: bool = False
) -> tuple[Bench, dict[str, dict[str, Any]]] | None:
    """The bench and the pictures of a step rule and these settings, or None where a full run's record serves."""
    setup, rule = SETUPS[title], what.split(", ")[0]
    judge = judge or what.endswith(("second network", "easier to see"))
    if lab8.LONG in settings or rule == "unit step":
        for asset in (setup.weights, setup.photos, *([SETUPS[setup.judge].weights] if judge else [])):
            claim.need(asset)
        if claim.recorded():
            return None
    bench = lens(title, judge=judge)
    return None if bench is None else (bench, {name: bench.drawn(STEPS_OF[rule], name) for name in settings})


def show(claim: Any, title: str, what: str, number: int, rows: dict[str, dict[str, Any]], caption: str) -> None:
    """A figure of the report redone: the first two seeds of each setting, with the probabilities below the name."""
    if what.endswith(SECOND):  # the first check of the two that share the figure shows it
        return
    shown = [
        (picture(row["end"][i]), f"{name}\np {row['probability'][i]:.3f}" + (f", second net {p:.3f}" * (p == p)))
        for i in range(2)
        for name, row in rows.items()
        for p in [float(row["second"][i])]
    ]
    columns, judged = max(2, len(rows)), not np.isnan(np.asarray(next(iter(rows.values()))["second"])).any()
    claim.figure(
        f"figure{number}-{SETUPS[title].network}-{SHORT_NAME[what.split(', ')[0]]}",
        figures.pictures([p for p, _ in shown], [t for _, t in shown], columns),
        f"Figure {number} redone, {what}: {caption} p: probability of the class by {title}"
        + f", and by {SETUPS[title].judge}, which did not take part" * judged
        + ". Two seeds.",
        f"Pictures for {', '.join(rows)}.",
    )


def pictured(bench: Bench, what: str, **values: Any) -> dict[str, Any]:
    """What records of class visualisation have in common."""
    seeds = f"{len(bench.seeds)} seeds, {what}"
    return bench.record(
        data=seeds,
        weights=bench.title + f", judged by {bench.setup.judge} too" * isinstance(bench.judge, lab8.Network),
        **values,
    )


@slow
@cases(
    "tme8.q8.class",
    "the lab's step, score",
    "the lab's step, second network",
    once=["unit step, score", "unit step, second network"],
    bonus="the lab's step, score",
)
def test_a_class_grows_out_of_noise(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (drawn := sweep(claim, lens, title, what, "default")) is None:
        return
    bench, found = drawn
    row = found["default"]
    noise = {
        **row,
        "end": row["begin"],
        "probability": bench.network(row["begin"])[:, lab8.TARANTULA],
        "second": bench.judge(row["begin"])[:, lab8.TARANTULA],
    }
    scores = f"score {row['score_before'].mean():.1f} before, {row['score'].mean():.1f} after."
    show(claim, title, what, 6, {"start": noise, "end": row}, f"noise, and 200 steps later; {scores}")
    if what.endswith("score"):
        expected = f"probability from {CERTAIN} and a higher score than the noise, every seed"
        holds = bool((row["probability"] >= CERTAIN).all() and (row["score"] > row["score_before"]).all())
        margin = margins.all_of(
            (bool((row["probability"] >= CERTAIN).all()), margins.every(row["probability"], CERTAIN)),
            (bool((row["score"] > row["score_before"]).all()), margins.every(row["score"] - row["score_before"], 0)),
        )
    else:
        expected = f"first guess of {bench.setup.judge} for half of the seeds or more"
        holds = float(row["second_top1"].float().mean()) >= HALF
        margin = margins.share(float(row["second_top1"].float().mean()), HALF, len(bench.seeds))
    claim.measured(
        {
            "probability": float(row["probability"].mean()),
            "score, before": float(row["score_before"].mean()),
            "after": float(row["score"].mean()),
            "second network": float(row["second"].mean()),
            "its first guess": float(row["second_top1"].float().mean()),
        },
        expected=expected,
        holds=holds,
        tolerance="fixed beforehand",
        margin=margin,
        evidence=numbers(row),
        **pictured(bench, what),
    )


@slow
@cases("tme8.q9.reg", "the lab's step", once=["unit step"])
def test_regularisation_changes_little(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (drawn := sweep(claim, lens, title, what, "default", "l2 0.1", "l2 1e-10")) is None:
        return
    bench, found = drawn
    rows = {"weight 0.1": found["l2 0.1"], "weight 1e-10": found["l2 1e-10"]}
    strong, weak = rows.values()
    show(claim, title, what, 7, rows, "two weights of the regularisation.")
    ratio = np.log(strong["variation"] / weak["variation"])
    probability = strong["probability"] - weak["probability"]
    apart = (strong["end"] - weak["end"]).flatten(1).norm(dim=1).numpy()
    seeds = (weak["end"] - weak["end"].roll(1, 0)).flatten(1).norm(dim=1).numpy()
    claim.measured(
        {
            "probability, 0.1": float(strong["probability"].mean()),
            "1e-10": float(weak["probability"].mean()),
            "total variation, 0.1 over 1e-10": float(np.exp(ratio.mean())),
            "distance, over that of two seeds": float(apart.mean() / seeds.mean()),
        },
        expected=f"probabilities within {SAME_PROBABILITY}, total variation within a factor of {SAME_VARIATION}",
        holds=within(probability, SAME_PROBABILITY) and within(ratio, np.log(SAME_VARIATION)),
        tolerance="two one-sided tests at 5%, margins fixed beforehand",
        margin=margins.all_of(
            (within(probability, SAME_PROBABILITY), margins.band(probability, SAME_PROBABILITY)),
            (within(ratio, np.log(SAME_VARIATION)), margins.band(ratio, np.log(SAME_VARIATION))),
        ),
        evidence={name: numbers(row) for name, row in {**rows, "weight 1e-3": found["default"]}.items()},
        **pictured(bench, what),
    )


@slow
@cases(
    "tme8.q9.steps",
    "the lab's step, pixels",
    "the lab's step, tarantulas",
    once=["unit step, pixels", "unit step, tarantulas"],
)
def test_more_iterations_change_more(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (drawn := sweep(claim, lens, title, what, "default", lab8.LONG)) is None:
        return
    bench, found = drawn
    rows = {"200 iterations": found["default"], "1,000": found[lab8.LONG]}
    few, many = rows.values()
    show(claim, title, what, 8, rows, "two numbers of iterations.")
    pixels = what.endswith("pixels")
    key = "changed" if pixels else "windows"
    claim.measured(
        {
            "pixels changed, 200": float(few["changed"].mean()),
            "1,000": float(many["changed"].mean()),
            "windows with a tarantula, 200": float(few["windows"].mean()),
            "windows, 1,000": float(many["windows"].mean()),
        },
        expected=f"more {'pixels changed' if pixels else 'windows that show a tarantula'} after 1,000",
        holds=above(many[key] - few[key]),
        margin=margins.mean(np.asarray(many[key] - few[key]), 0, 0.9),
        unit="(share)",
        tolerance="one-sided at 5% over the seeds",
        evidence={name: numbers(row) for name, row in rows.items()},
        note=f"A pixel is changed when a channel moved by over {lab8.CHANGED} of the range; nine windows of 112 px.",
        **pictured(bench, what),
    )


@slow
@cases(
    "tme8.q9.lr",
    "the lab's step, finer",
    "the lab's step, easier to see",
    once=["unit step, finer", "unit step, easier to see"],
)
def test_a_smaller_rate_is_finer(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (drawn := sweep(claim, lens, title, what, "default", "lr 1", "lr 0.5")) is None:
        return
    bench, found = drawn
    rows = {"rate 1": found["lr 1"], "rate 0.5": found["lr 0.5"]}
    fast, slowly = rows.values()
    show(claim, title, what, 9, rows, "two learning rates.")
    finer = what.endswith("finer")
    better = fast["variation"] - slowly["variation"] if finer else slowly["second"] - fast["second"]
    claim.measured(
        {
            "total variation, 1": float(fast["variation"].mean()),
            "0.5": float(slowly["variation"].mean()),
            "second network, 1": float(fast["second"].mean()),
            "second network, 0.5": float(slowly["second"].mean()),
        },
        expected=f"{'less total variation' if finer else 'a higher probability by the second network'} at 0.5",
        holds=above(better),
        margin=margins.mean(np.asarray(better), 0, 0.9),
        tolerance="one-sided at 5% over the seeds",
        evidence={name: numbers(row) for name, row in {**rows, "rate 5": found["default"]}.items()},
        **pictured(bench, what),
    )


@slow
@cases("tme8.q10.init", "the lab's step", once=["unit step"])
def test_a_photo_is_a_better_start(claim: Any, lens: Lens, title: str, what: str) -> None:
    if (drawn := sweep(claim, lens, title, what, lab8.NOISE, lab8.PHOTO, judge=True)) is None:
        return
    bench, found = drawn
    rows = {lab8.NOISE: found[lab8.NOISE], lab8.PHOTO: found[lab8.PHOTO]}
    noise, start = rows.values()
    (name,) = names(bench, [bench.y[bench.snail]])
    photo_of = {
        "start": {
            **start,
            "end": start["begin"],
            "probability": bench.network(start["begin"]).amax(1),
            "second": bench.judge(start["begin"])[:, int(bench.y[bench.snail])],
        }
    }
    show(
        claim, title, what, 10, {**photo_of, **rows}, f"the score of the {name}, climbed from its photo and from noise."
    )
    claim.measured(
        {
            "second network, from the photo": float(start["second"].mean()),
            "from noise": float(noise["second"].mean()),
            "the photo itself": float(photo_of["start"]["second"].mean()),
            "probability, from the photo": float(start["probability"].mean()),
            "from noise, its own": float(noise["probability"].mean()),
            "distance from the photo": float(start["distance"].mean()),
        },
        expected="a higher probability by the second network from the photo",
        holds=above(start["second"] - noise["second"]),
        margin=margins.mean(np.asarray(start["second"] - noise["second"]), 0, 0.9),
        tolerance="one-sided at 5% over the seeds",
        evidence={key: numbers(row) for key, row in rows.items()},
        **pictured(
            bench,
            what,
            note=f"The photo: a {name}. By {bench.setup.judge} the photo itself has "
            f"{photo_of['start']['second'].mean():.3f}: what one network's score gains, another's sight loses.",
        ),
    )
