"""The command line. The flags of the stages are defined in `experiments.settings.flags`."""
