"""Names of the stages, in order."""

STAGE_NAMES = (
    *("train", "score", "export", "moments", "flips"),
    *("simulate", "analyse", "report"),
)
