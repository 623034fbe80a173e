"""What slots into somebody else's pipeline: MONAI's transforms and inferers, training loops, nnU-Net."""
