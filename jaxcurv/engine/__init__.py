"""How one batch is computed: the model and its checks, probes, losses, compiled programs."""
