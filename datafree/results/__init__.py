"""Finished runs, read back: tables beside the published figures, reports and model cards."""
