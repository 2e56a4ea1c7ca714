#!/bin/bash
# Scores your own model and images on a SLURM cluster. On a login node, in the folder that holds
# your module, with MODEL, DATA and OUT set (OUT on a file system that all nodes see):
#
#   MODEL=package.module:factory DATA=/data/images OUT=scores.parquet bash slurm_scores.sh job
#   MODEL=... DATA=... OUT=...                                        bash slurm_scores.sh array
#
# "job" is one job of two nodes, which ends with the table. "array" is eight small jobs, which start
# whenever a GPU is free, and a last one that joins their work. Either may be killed and submitted
# again: it goes on from what OUT.parts holds.
set -euo pipefail

gpus_per_node=4
tasks=8
score="python -m experiments score --model $(printf %q "$MODEL") --data $(printf %q "$DATA")"
score+=" --out $(printf %q "$OUT")"

case "${1:-}" in
job)
    # One process a GPU: under SLURM JAX gives the k-th process of a node its k-th GPU. Each process
    # must therefore see all GPUs of its node: no --gpus-per-task, no --gpu-bind.
    # A process that fails ends the step at once, instead of leaving the others to wait for it.
    sbatch --job-name=scores --nodes=2 --ntasks-per-node="$gpus_per_node" \
        --gpus-per-node="$gpus_per_node" --cpus-per-task=8 --time=04:00:00 \
        --wrap "srun --kill-on-bad-exit=1 $score --distributed"
    ;;
array)
    # The task's number is I of --shard I/N. The index of an image keys its random vectors, so that
    # the table is the same as that of a single process.
    job=$(sbatch --parsable --job-name=scores --array="1-$tasks" --requeue --ntasks=1 --gpus=1 \
        --cpus-per-task=8 --time=04:00:00 \
        --wrap "$score --shard \$SLURM_ARRAY_TASK_ID/$tasks")
    # After any end, for merge names what is missing. --parsable prints "job" or "job;cluster".
    sbatch --job-name=merge --dependency="afterany:${job%%;*}" --ntasks=1 --time=00:30:00 \
        --wrap "python -m experiments merge $(printf %q "$OUT")"
    ;;
*)
    echo "usage: MODEL=package.module:factory DATA=FOLDER OUT=FILE bash $0 job|array" >&2
    exit 2
    ;;
esac
