"""The words of a report, explained with the settings of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.report.tables.formats import small_percent, words
from bridge.report.tables.verdict import RULE
from bridge.routing.costs import Costs

_OF_SCORES = (
    *("decile", "curvature", "hessian", "gradient norm", "entropy", "label free"),
    "cost in forward passes",
)
"""How the terms begin that need no chips."""


_OF_REMEDIES = [
    (
        "compensated, recalibrated, fitted logits",
        "what is done to a chip: global compensation of drift; BatchNorm statistics measured on "
        "it; a scale and a shift of its logits measured on it. 5 % digital: the layers that cost "
        "most failures for their work stay digital, within 5 % of the multiply-accumulates.",
    ),
    (
        "20 % digital by margin, level 1 %",
        "routing: the fifth of the images of smallest margin, by a threshold from other images, "
        "gets the digital model's answer; a level is the largest expected share of all images "
        "that stay on the chip and fail.",
    ),
]


def glossary(
    settings: Mapping[str, Any], last: int, *, chips: bool = True, remedies: bool = False
) -> list[tuple[str, str]]:
    """Terms and what they mean, with the settings of the chips where they are there; without
    `chips` those of scores alone."""
    terms = _terms(settings, last)
    if not chips:
        return [one for one in terms if one[0].startswith(_OF_SCORES)]
    return [*terms, *_OF_REMEDIES] if remedies else terms


def _terms(settings: Mapping[str, Any], last: int) -> list[tuple[str, str]]:
    adc = "each tile's outputs are quantised by a converter"
    wnoise = "Gaussian noise of the weights"
    pcm = "phase-change memory: programming noise, drift and read noise"
    coarse = "fewer"
    if simulate := settings.get("simulate"):
        adc += _adc(simulate["adc"], simulate["adc_calibration"])
        wnoise += _weight_noise(simulate["wnoise"])
        pcm += _phase_change(simulate["pcm"])
        coarse = simulate.get("coarse_bits", coarse)
    return [
        (
            "analog-only failure",
            "a sample that the digital model gets right and the analog chip wrong.",
        ),
        ("verdict", RULE),
        (
            f"decile, D1 to D{last}",
            f"one of {last} equal parts of the samples in the order of a score, curvature unless "
            "said otherwise; D1 has the lowest scores.",
        ),
        ("ideal", "a chip without any of the following; a + joins those that a chip has."),
        ("adc", f"{adc}."),
        ("wnoise", f"{wnoise}."),
        ("pcm", f"{pcm}."),
        (
            "adc_coarse, wnoise_mvm, pcm_gdc",
            f"the same with an ADC of {coarse} bits; with weight noise drawn anew at each "
            "operation; with global drift compensation of the PCM.",
        ),
        (
            "dac, onoise",
            "in profiles of your own: each tile's inputs are quantised; its outputs have Gaussian "
            "noise.",
        ),
        (
            "curvature",
            "how much the gradient of the loss by the input changes when the input moves a small "
            "step in random directions: the mean length of the change (Eq. 1 of the paper).",
        ),
        (
            "hessian vector, hessian trace, gauss newton",
            "the same from exact second derivatives: mean length of H v, trace of H, and trace of "
            "the Gauss-Newton matrix, which takes the network as linear around the input.",
        ),
        (
            "gradient norm, loss, el2n",
            "length of the gradient of the loss by the input; the loss; length of the difference "
            "between the predicted probabilities and the label's (one-hot). Among the digitally "
            "correct samples the loss ranks as least confidence does, and is left out.",
        ),
        (
            "entropy, least confidence, margin",
            "entropy of the predicted probabilities; 1 less the largest of them; the largest logit "
            "less the second largest, a small one counting as fragile. Label margin: the label's "
            "logit less the largest other.",
        ),
        (
            "label free",
            "with the model's own prediction in place of the label, as where no label is known.",
        ),
        (
            "flip probability",
            "the physical predictor: Phi(-(margin at mean weights) / sd), with sd the margin's "
            "standard deviation over chips by linear theory. No chip is run, and the noise of "
            "these chips is known exactly. Margin at mean weights: that of the digital "
            "prediction, were the weights what a chip's are on average. Unshifted: with the "
            "digital margin in its place.",
        ),
        (
            "margin + curvature, logits + gradient norm, all scores",
            "and others with a plus: cross-validated logistic models of several scores, which are "
            "not fitted anew for an interval, so that theirs are somewhat narrow; logits stands "
            "for margin, entropy and least confidence.",
        ),
        (
            "cost in forward passes",
            "what a score takes a sample: its time over that of one forward pass of the network, "
            "measured once for all runs (jaxcurv.costs). Scores of the logits cost 1.",
        ),
        (
            "failure on another chip, failures on 2 or 16 others",
            "Monte Carlo: for each chip, the share of as many other simulated chips on which a "
            "sample fails, where the run has so many and enough samples fail on several. The "
            "inference of a chip counts as one pass, which is not measured.",
        ),
        (
            "AUROC",
            "probability that a failure has a higher score than a survivor; 0.5 is chance. Within "
            "classes: of the score's rank among the samples of its class, so that differences "
            "between classes do not count.",
        ),
    ]


def _adc(adc: Mapping[str, Any], images: int) -> str:
    if adc["range"] != "calibrated":
        return f"; {adc['bits']} bits, range {adc['range']:g}"
    covered = "" if adc["percentile"] == 100 else f" to percentile {adc['percentile']:g}"
    room = "" if adc.get("headroom", 1) == 1 else f", times {adc['headroom']:g}"
    return f"; {adc['bits']} bits, range calibrated{covered} on {images:,} training images{room}"


def _weight_noise(noise: Mapping[str, Any]) -> str:
    growing = "" if noise["kind"] == "constant" else ", growing with the weight as PCM's read noise"
    drawn = "once for each chip" if noise["drawn"] == "per_chip" else "anew at each operation"
    return f"; sigma = {noise['sigma']:g} of a tile's largest weight{growing}, drawn {drawn}"


def _phase_change(pcm: Mapping[str, Any]) -> str:
    levels = [
        f"{words(name)} x {pcm[name]:g}"
        for name in ("programming_noise", "drift", "read_noise")
        if pcm[name] != 1
    ]
    scaled = f", with {', '.join(levels)}" if levels else ""
    compensation = pcm["compensation"]
    compensated = (
        "not compensated" if compensation is None else f"compensated ({words(compensation)})"
    )
    return (
        f"{scaled}; read t_inference = {pcm['t_inference']:,g} s after programming; drift is "
        f"{compensated}"
    )


def energy(settings: Mapping[str, Any], share: float) -> str:
    """What one inference costs; in units of a digital one where the settings do not say.

    Args:
      settings: as `ReportContents` holds them.
      share: of the multiply-accumulates, that tiles compute.
    """
    energy = settings.get("analyse", {}).get("energy")
    if energy is None:
        return "a digital inference costs 1"
    costs = Costs(**energy)
    assumed = (
        f"a digital inference costs {costs.digital:g}, an analog one {costs.analog:g}, as the "
        "settings assume"
    )
    if share == 1:
        return assumed
    return (
        f"{assumed} for a network wholly on tiles; of this one tiles compute "
        f"{small_percent(share)} % of the multiply-accumulates, with which an analog inference "
        f"costs {costs.partly_analog(share).analog:.3g}"
    )
