"""What each stage does: reads files of a run's folder, writes files into it."""
