"""Training, augmentation and scores."""
