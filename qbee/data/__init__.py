"""From label tables to folds of mel images."""
