"""Data-free knowledge distillation with a balanced sample repository (BSR)."""
