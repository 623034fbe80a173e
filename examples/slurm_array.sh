#!/bin/bash
# A cohort as a SLURM array: `sbatch --array=1-8 slurm_array.sh cases.csv bundle_folder`. Submit it again to go on.
# Then, whatever failed: sbatch --dependency=afterany:JOB --wrap 'medcam merge shards/* --out results'
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
exec medcam cohort "$1" --model "$2" --workers 2 --limit 900 \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --out "shards/$SLURM_ARRAY_TASK_ID"
