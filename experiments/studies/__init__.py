"""Studies beside the stages: drift, layers, other noise, other scores, an atlas, fine-tuning."""
