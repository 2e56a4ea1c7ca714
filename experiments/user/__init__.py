"""A user's own model, images, scores and predictions, without a preset."""
