"""From sound files to mel images."""
