"""Training a student as a whole: fine-tuning, distillation, feature alignment, recorded GPU updates."""
