"""What each command on a run does, for the first lines of its help."""

DOES = {
    "run": "runs the whole experiment, from images to the report: every stage that is not up to "
    "date.",
    "train": "trains the network, or takes given weights over.",
    "score": "computes the curvature and the other scores of every sample.",
    "export": "takes the trained weights over to PyTorch.",
    "moments": "computes mean and variance of each programmed weight, and what converters add to "
    "each sample's margin.",
    "flips": "computes the probability that a chip flips each sample's prediction; no image runs "
    "on a chip.",
    "simulate": "programs the chips of all profiles and predicts every sample on each.",
    "analyse": "makes the tables of failures, predictors and routing.",
    "report": "draws the figures and writes report.html.",
    "rank-correlation": "compares how the curvature estimators rank the same images.",
    "rescore": "says what each choice that the paper leaves open does to the curvature score and "
    "to Table I.",
    "validate": "compares how the scores rank the training images with figures that others "
    "published of them.",
    "layers": "says which layers of a chip cause failures, each alone on crossbar tiles.",
    "drift": "measures the accuracy of the programmed chips as they age.",
    "compare-noise": "says whether other kinds of noise cause failures on the same samples.",
    "remedies": "tries what can be done about failures, and says what buys how much accuracy at "
    "which energy.",
    "atlas": "counts on how many chips each scored image fails, and says how much of the failures "
    "is the image's own.",
    "finetune": "fine-tunes the network at one budget of gradient steps, on all images alike or "
    "with weight on the vulnerable ones, and tries all on the same chips.",
    "student": "fits a tiny network that predicts from the image alone which images fail, and "
    "compares it with the run's other scores.",
}
"""By command, a sentence that goes on from the command's name and a colon."""
