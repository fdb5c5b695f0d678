"""What a model is worth: Dice and its relatives, polyps, outlines, false alarms, calibration, cost."""
