"""The figures of TME 8's claims: the report's figures redone, and curves behind the estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from torch import Tensor

from rdfia.claims.intervals import Estimate
from rdfia.claims.registry import CLAIMS
from rdfia.experiments.gradients import RADII, TREATMENTS, GradientBench
from rdfia.experiments.visualisation import Drawn
from rdfia.gradients import fooling, saliency, saliency_scores
from rdfia.report import figures
from tests.support.check import Check, Figures

SHORT_NAME = {"the lab's step": "lab", "unit step": "unit"}
SECOND = ("second network", "tarantulas", "easier to see")  # second of two checks with one figure
AT = [f"{levels} / 255" for levels in RADII]
ATTACK = "Untargeted momentum attack on the network, 10 steps, images of 8 bits."


def picture(pixels: Tensor) -> np.ndarray:
    """Pixels, 3 x H x W, as matplotlib draws them: H x W x 3 in 0..1."""
    return pixels.clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def photo(bench: GradientBench, row: int) -> np.ndarray:
    return picture(bench.space.denormalise(bench.x[row]))


def bright(maps: Tensor) -> np.ndarray:
    """Maps divided by their 99.5 % quantile, at most 1."""
    top = maps.flatten(1).quantile(0.995, dim=1)[:, None, None]
    return (maps / top).clamp(max=1).numpy()


def show_block_curves(
    claim: Check,
    bench: GradientBench,
    fractions: Sequence[float],
    found: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Deletion and insertion curves by order."""
    texts = {"deletion": ("blurred", "lower"), "insertion": ("laid on a blurred copy", "higher")}
    for mode, rows in found.items():
        change, better = texts[mode]
        claim.figure(
            f"deletion-{mode}-{bench.setup.network}",
            figures.curves(
                fractions, rows, f"share of the blocks {change}", "probability of the class"
            ),
            f"{mode.capitalize()} in the order of each map, mean over {len(bench.y)} photos with "
            f"its 95% band; the {better}, the better the order.",
            f"{mode.capitalize()} curves of {', '.join(rows)}.",
        )


def show_maps(
    claim: Check, bench: GradientBench, areas: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Figure 4: three photos with their maps."""
    rows = [
        bench.row("wire-haired fox terrier"),
        bench.row("quail"),
        bench.row("stole", "Egyptian cat"),
    ]
    maps = [bright(bench.maps(kind)[rows]) for kind in ("gradient", "smoothgrad")]
    shown, titles = [], []
    for i, name in enumerate(bench.names(bench.y[rows])):
        shown += [photo(bench, rows[i]), maps[0][i], maps[1][i]]
        titles += [name, "gradient", "SmoothGrad"]
    area = {
        mode: [values[order].mean() for order in ("gradient", "random order")]
        for mode, values in areas.items()
    }
    claim.figure(
        f"figure4-{bench.setup.network}",
        figures.picture_grid(shown, titles),
        "Figure 4 redone: photos, the map of the plain gradient (maximum over RGB), SmoothGrad. "
        f"Area under deletion {area['deletion'][0]:.3f} (random order {area['deletion'][1]:.3f}), "
        f"under insertion {area['insertion'][0]:.3f} ({area['insertion'][1]:.3f}).",
        "Three photos with two saliency maps each.",
    )


def show_by_photo(
    claim: Check, bench: GradientBench, x: Tensor, labels: Tensor, energy: np.ndarray
) -> None:
    """The photos with the most and the least energy inside, and the first two, with their maps."""
    order = (-energy.mean(axis=0)).argsort()
    rows = sorted({*order[:3].tolist(), 0, 1, *order[-3:].tolist()}, key=order.tolist().index)
    maps = saliency.saliency_maps(
        bench.network.module, x[rows], labels[rows], space=bench.space
    ).cpu()
    pixels = map(picture, bench.space.denormalise(x[rows]))
    titles = [
        (f"{name}\n{energy[:, row].mean():.2f} inside", "")
        for name, row in zip(bench.names(labels[rows]), rows, strict=True)
    ]
    shown = [*chain(*zip(pixels, bright(maps), strict=True))]
    claim.figure(
        f"saliency-by-photo-{bench.setup.network}",
        figures.picture_grid(shown, [*chain(*titles)], 4),
        f"The three best marked of {len(labels)} photos, the dog, the stole, and the three worst, "
        "best first, with the map of the plain gradient. The number is the share of the map inside "
        f"the photo's quarter, mean over {len(energy)} mosaics; the median photo has "
        f"{np.median(energy, axis=1).mean():.2f}, chance is 0.25.",
        "Photos beside their saliency maps, from the best marked to the worst.",
    )


def show_masks(claim: Check, bench: GradientBench, precision: Estimate) -> None:
    """Three photos with everything outside SmoothGrad's mask darkened."""
    rows = [bench.row("wire-haired fox terrier"), bench.row("quail"), bench.row("snail")]
    masks = saliency_scores.object_masks(bench.maps("smoothgrad")[rows])
    dim = [
        photo(bench, row) * np.where(mask, 1, 0.25)[..., None]
        for row, mask in zip(rows, masks, strict=True)
    ]
    claim.figure(
        f"figure4-masks-{bench.setup.network}",
        figures.picture_grid(dim, bench.names(bench.y[rows])),
        "What a mask from SmoothGrad keeps (blurred by 8 pixels, split by Otsu's threshold); the "
        "rest is darkened. On mosaics of four photos a plain gradient's mask has "
        f"{precision.value:.2f} of its area in the right quarter; chance is 0.25.",
        "Three photos of which saliency keeps a part.",
    )


def show_stingray(claim: Figures, bench: GradientBench, free: fooling.Fooled, source: str) -> None:
    """Figure 5: a photo, the fooling image, and their difference."""
    before, after = (bench.space.denormalise(x)[0].cpu() for x in (free.start, free.x))
    change = after - before
    size = {name: float(values[0]) for name, values in free.size.items()}
    titles = [
        f"{source}, {float(free.before[0, 0]):.2f}",
        f"stingray, {float(free.after[0, 1]):.2f}",
        "difference",
        "difference x 10",
    ]
    shown = [picture(p) for p in (before, after, change + 0.5, 10 * change + 0.5)]
    claim.figure(
        f"figure5-{bench.setup.network}",
        figures.picture_grid(shown, titles, 2),
        f"Figure 5 redone: {int(free.steps[0])} steps of the lab's rule. L2 {size['l2']:.2f}, Linf "
        f"{size['linf']:.3f} (pixels in 0..1), PSNR {size['psnr']:.1f} dB, SSIM "
        f"{size['ssim']:.4f}; differences are drawn around grey.",
        "A photo, the same read as a stingray, their difference and ten times that.",
    )


def show_fooling_steps(
    claim: Check, bench: GradientBench, taken: np.ndarray, hits: np.ndarray, steps: int
) -> None:
    """The share of fooled photos by the number of steps."""
    within_steps = (taken[:, None] <= np.arange(steps + 1)) & hits[:, None]
    axis = [*range(steps + 1)]
    claim.figure(
        f"fooling-steps-{bench.setup.network}",
        figures.curves(
            axis, {"fooled": within_steps}, "steps of the lab's rule", "share of the photos"
        ),
        f"{hits.sum()} of {len(hits)} photos are read as a random class within {steps} steps, half "
        f"of them within {np.median(taken):.0f}. Band: 95% interval.",
        "A curve that rises from 0 to the share of fooled photos.",
    )


def show_attack(
    claim: Check,
    bench: GradientBench,
    found: Mapping[str, Tensor],
    shown: Sequence[Tensor],
    psnr: Sequence[float],
) -> None:
    """Accuracy by radius of the attack for each reader, and one photo at each radius."""
    curves = {f"after {name}" if name in TREATMENTS else name: hits for name, hits in found.items()}
    axes = ("radius of the attack, grey levels of 255", "share of the photos read right")
    claim.figure(
        f"fooling-attack-{bench.setup.network}",
        figures.curves(RADII, curves, *axes),
        f"{ATTACK} It is made with {bench.title}, and read by it, by it after each treatment, and "
        f"by networks that took no part. {len(bench.y)} photos; band: 95% interval.",
        "Curves that fall from 1 as the radius grows.",
    )
    titles = []
    for at, levels, pixels, db in zip(AT, RADII, shown, psnr, strict=True):
        top = bench.network(pixels).max(1)
        below = f"PSNR {db:.1f} dB" if levels else "the photo"
        titles.append(f"{at}: {bench.names(top.indices)[0]} {float(top.values):.2f}\n{below}")
    claim.figure(
        f"figure5-attack-{bench.setup.network}",
        figures.picture_grid([picture(pixels[0]) for pixels in shown], titles, 2),
        "A photo under attack at each radius: what the network reads, its probability, and PSNR to "
        "the photo.",
        "A photo four times, with more noise each time.",
    )


def show_drawn(
    claim: Check,
    bench: GradientBench,
    what: str,
    number: int,
    rows: Mapping[str, Drawn],
    caption: str,
) -> None:
    """A figure of the report: the first two pictures of each setting with their probabilities.

    Of two checks that share a figure, the first one shows it.
    """
    if what.endswith(SECOND):
        return
    shown, titles = [], []
    for i in range(2):
        for name, row in rows.items():
            second = float(row["second"][i])
            beside = "" if np.isnan(second) else f", second net {second:.3f}"
            shown.append(picture(row["end"][i]))
            titles.append(f"{name}\np {row['probability'][i]:.3f}{beside}")
    judged = not np.isnan(np.asarray(next(iter(rows.values()))["second"])).any()
    claim.figure(
        f"figure{number}-{bench.setup.network}-{SHORT_NAME[what.split(', ')[0]]}",
        figures.picture_grid(shown, titles, max(2, len(rows))),
        f"Figure {number} redone, {what}: {caption} p: probability of the class by {bench.title}"
        + f", and by {bench.setup.second_network}, which did not take part" * judged
        + ". Two pictures of each.",
        f"Pictures for {', '.join(rows)}.",
    )


def show_readings(
    claim: Check,
    bench: GradientBench,
    rows: Mapping[str, Sequence[Drawn]],
    compared: Mapping[str, Mapping[str, Estimate]],
) -> None:
    """The estimates of both quantities by reading, and figure 7 in each reading."""
    for (quantity, every), short in zip(
        compared.items(), ("probability", "variation"), strict=True
    ):
        margin = CLAIMS["tme8.q9.reg"].bounds[quantity].margin
        dots = [
            {"values": [part.value], "low": part.low, "high": part.high} for part in every.values()
        ]
        claim.figure(
            f"sweeps-reg-{short}-{bench.setup.network}",
            figures.values_with_intervals(list(every), dots, quantity, 0.0, "no difference"),
            f"What the weight of the regularisation changes, by reading, with 99% intervals: "
            f"{quantity}. Little is {margin:g} at most, to either side.",
            "A dot with an interval for each reading.",
        )
    shown, titles = [], []
    for name, pair in rows.items():
        penalty, step, rate = name.split(", ")
        for row, weight in zip(pair, ("0.1", "1e-10"), strict=True):
            p = row["probability"][0]
            shown.append(picture(row["end"][0]))
            titles.append(f"{penalty}\n{step}, {rate}\nweight {weight}\np {p:.2f}")
    claim.figure(
        f"figure7-readings-{bench.setup.network}",
        figures.picture_grid(shown, titles, 4),
        "Figure 7 in each reading of the report's sentence: the penalty (the squared norm, or the "
        f"norm), the step, the rate. p: the class's probability by {bench.title}. One seed.",
        "Pairs of pictures with a large and a small weight.",
    )
