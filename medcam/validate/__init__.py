"""The judge: numbers from a heatmap and a lesion mask."""
